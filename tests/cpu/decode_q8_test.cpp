// Keys, values and queries in q8_0: exact with respect to what the blocks hold, whatever their scales.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

BatchSpec q8_batch(AttentionShape shape, std::vector<int> lengths, bool codes) {
  return test::batch_of_type(ElementType::q8_0, shape, std::move(lengths), codes);
}
DecodeOptions sparse_options(bool codes, float target = 0.8f) { return test::unit_options(codes, target); }
int sparse_heads(const test::DecodeResult& result) {
  int count = 0;
  for (const HeadReport& report : result.reports) count += !is_dense(report.path);
  return count;
}

// A block of one scale whose integers go through all values, -128 too.
q8_0 block_of(f16 scale, int seed) {
  q8_0 block{scale, {}};
  for (int i = 0; i < q8_0::kElements; ++i) block.q[i] = int8_t((seed * 37 + i * 73) % 256 - 128);
  return block;
}

}  // namespace

TEST_CASE("head_dims and groups, by clusters and by codes: the reference over what was read") {
  for (const bool codes : {false, true})
    for (const int d : {32, 64, 96, 128, 256})
      for (const int group : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
        if (d != 96 && group != 1 && group != 4 && group != 7) continue;
        const Batch batch(q8_batch({2 * group, 2, d, 0.0f}, {500, 0, 33}, codes));
        CAPTURE(codes);
        CAPTURE(d);
        CAPTURE(group);
        CHECK(test::error_over_selection(batch, sparse_options(codes)) <= 1.0);
        CHECK(sparse_heads(batch.decode(sparse_options(codes))) >= 2 * group);
        SerialExecutor executor;
        CHECK(test::reference_error(batch, batch.dense(executor)) <= 1.0);
      }
}

TEST_CASE("queries in q8_0, of prompt and step") {
  BatchSpec spec = q8_batch({8, 2, 64, 0.0f}, {900}, true);
  spec.query_type = ElementType::q8_0;
  spec.num_prompt_queries = 20;
  const Batch batch(spec);
  CHECK(test::error_over_selection(batch, sparse_options(true)) <= 1.0);
  CHECK(sparse_heads(batch.decode(sparse_options(true))) == 8);
}

TEST_CASE("the tail and the certificate over quantised rows: close to dense attention, and the bound holds") {
  for (const bool codes : {false, true}) {
    CAPTURE(codes);
    int covered = 0, trials = 0;
    double error = 0.0;
    for (uint64_t seed = 1; seed <= 40; ++seed) {
      BatchSpec spec = q8_batch({4, 2, 64, 0.0f}, {1200}, codes);
      spec.seed = seed;
      spec.key_noise = 0.6f;
      const Batch batch(spec);
      DecodeOptions options = sparse_options(codes, 0.9f);
      options.certificate.enabled = true;
      options.seed = seed;
      const auto result = batch.decode(options);
      const auto selected = batch.select(options);
      REQUIRE(result.status == DecodeStatus::ok);
      for (int h = 0; h < 4; ++h, ++trials) {
        const double attained = batch.attained_ratio(0, h, selected.rows[size_t(h / 2)]);
        covered += attained >= double(result.reports[size_t(h)].attained_ratio_lower_bound) - 1e-6;
        CHECK(result.reports[size_t(h)].bytes_dense == 2 * 1200 * 68);
        error += test::relative_error(&result.output[size_t(h * 64)], batch.attention(0, h).output.data(), 64);
      }
    }
    CHECK(error / trials < 0.05);
    CAPTURE(covered);
    CHECK(covered >= 0.9 * trials);
  }
}

TEST_CASE("scales zero, subnormal, largest and negative, and q of -128, are what they say") {
  const f16 zero{0}, smallest{1}, largest_subnormal{0x03ff}, ordinary = from_float<f16>(0.01f), negative = from_float<f16>(-0.02f);
  for (const bool codes : {false, true}) {
    Batch batch(q8_batch({4, 2, 64, 0.0f}, {700}, codes));
    for (int t = 0; t < 700; t += 3)
      for (int h = 0; h < 2; ++h) {
        const f16 scale = t % 5 == 0 ? zero : t % 5 == 1 ? smallest : t % 5 == 2 ? largest_subnormal : t % 5 == 3 ? ordinary : negative;
        batch.cache(0).set_key_block(t, h, t % 2 * 32, block_of(scale, t));
        batch.cache(0).set_value_block(t, h, t % 2 * 32, block_of(scale, t + 1));
      }
    batch.build_indexes();
    CAPTURE(codes);
    CHECK(test::error_over_selection(batch, sparse_options(codes)) <= 1.0);
    CHECK(sparse_heads(batch.decode(sparse_options(codes))) == 4);
    SerialExecutor executor;
    CHECK(test::reference_error(batch, batch.dense(executor)) <= 1.0);
  }
}

TEST_CASE("the largest finite scale in a value: attended as it is") {
  Batch batch(q8_batch({2, 2, 32, 0.0f}, {40}, false));
  batch.cache(0).set_value_block(7, 1, 0, block_of(f16{0x7bff}, 1));
  SerialExecutor executor;
  const auto result = batch.dense(executor);
  const auto want = batch.attention(0, 1);
  CHECK(test::relative_error(&result.output[32], want.output.data(), 32) < 1e-5);
  CHECK(test::relative_error(&result.output[0], batch.attention(0, 0).output.data(), 32) < 1e-5);
}

TEST_CASE("a NaN or infinite scale poisons its own heads alone, which are attended densely") {
  const f16 scales[] = {{0x7c00}, {0xfc00}, {0x7e00}};
  for (const bool codes : {false, true})
    for (const f16 scale : scales)
      for (const bool in_value : {false, true}) {
        Batch batch(q8_batch({4, 2, 64, 0.0f}, {600, 600}, codes));
        if (in_value)
          batch.cache(1).set_value_block(300, 0, 32, block_of(scale, 5));
        else
          batch.cache(1).set_key_block(300, 0, 32, block_of(scale, 5));
        batch.build_indexes();
        DecodeOptions options = sparse_options(codes);
        options.certificate.enabled = true;
        const auto result = batch.decode(options);
        REQUIRE(result.status == DecodeStatus::ok);
        CAPTURE(codes);
        CAPTURE(int(scale.bits));
        CAPTURE(in_value);
        int wrong_paths = 0, wrong_nan = 0;
        for (int i = 0; i < 8; ++i) {
          const bool poisoned = i == 4 || i == 5;
          wrong_paths += (result.reports[size_t(i)].path == DecodePath::dense_by_numerics) != poisoned;
          const auto want = batch.attention(i / 4, i % 4);
          for (int c = 0; c < 64; ++c) wrong_nan += std::isnan(result.output[size_t(i * 64 + c)]) != std::isnan(want.output[size_t(c)]);
          if (!poisoned) CHECK(test::relative_error(&result.output[size_t(i * 64)], want.output.data(), 64) < 0.15);
        }
        CHECK(wrong_paths == 0);
        CHECK(wrong_nan == 0);
      }
}
