// Keys and values in fp8_e4m3 with a scale for every KV head: exact with respect to what rows and scales say.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"
#include "tests/support/error_message.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

BatchSpec fp8_batch(AttentionShape shape, std::vector<int> lengths, bool codes) {
  return test::batch_of_type(ElementType::fp8_e4m3, shape, std::move(lengths), codes);
}
DecodeOptions sparse_options(bool codes, float target = 0.8f) { return test::unit_options(codes, target); }

}  // namespace

TEST_CASE("fp8_e4m3: head_dims and groups, by clusters and by codes: the reference over what was read") {
  for (const bool codes : {false, true})
    for (const int d : {8, 64, 72, 96, 128, 256})
      for (const int group : {1, 4, 7, 16}) {
        if (d != 96 && group == 7) continue;
        const Batch batch(fp8_batch({2 * group, 2, d, 0.0f}, {500, 0, 33}, codes));
        CAPTURE(codes);
        CAPTURE(d);
        CAPTURE(group);
        CHECK(test::error_over_selection(batch, sparse_options(codes)) <= 1.0);
        SerialExecutor executor;
        CHECK(test::reference_error(batch, batch.dense(executor)) <= 1.0);
      }
}

TEST_CASE("fp8_e4m3: the tail and the certificate, and a report in bytes of one an element") {
  for (const bool codes : {false, true}) {
    CAPTURE(codes);
    BatchSpec spec = fp8_batch({4, 2, 64, 0.0f}, {1200}, codes);
    spec.key_noise = 0.6f;
    const Batch batch(spec);
    DecodeOptions options = sparse_options(codes, 0.95f);
    options.certificate.enabled = true;
    const auto result = batch.decode(options);
    REQUIRE(result.status == DecodeStatus::ok);
    for (int h = 0; h < 4; ++h) {
      CHECK(result.reports[size_t(h)].bytes_dense == 2 * 1200 * 64);
      CHECK(!is_dense(result.reports[size_t(h)].path));
      CHECK(test::relative_error(&result.output[size_t(h * 64)], batch.attention(0, h).output.data(), 64) < 0.1);
    }
  }
}

TEST_CASE("fp8_e4m3: scales of 1 are the same as none, twice the values' scale is twice the output") {
  const Batch batch(fp8_batch({4, 2, 64, 0.0f}, {300}, false));
  const AttentionShape& shape = batch.spec().shape;
  SerialExecutor executor;
  const auto dense = [&](const float* key_scales, const float* value_scales) {
    KvCacheView kv = batch.sequences()[0].kv;
    kv.key_scales = key_scales;
    kv.value_scales = value_scales;
    std::vector<float> output(4 * 64);
    dense_attention(shape, batch.query_view(), std::span<const KvCacheView>(&kv, 1), {output.data(), nullptr}, executor);
    return output;
  };
  const float ones[2] = {1.0f, 1.0f}, twos[2] = {2.0f, 2.0f};
  const std::vector<float> without = dense(nullptr, nullptr);
  CHECK(dense(ones, ones) == without);
  std::vector<float> doubled = without;
  for (float& x : doubled) x *= 2.0f;
  CHECK(dense(nullptr, twos) == doubled);
  CHECK(dense(twos, nullptr) != without);
}

TEST_CASE("fp8_e4m3: a NaN poisons its own heads alone, which are attended densely") {
  for (const bool codes : {false, true})
    for (const bool in_value : {false, true}) {
      Batch batch(fp8_batch({4, 2, 64, 0.0f}, {600, 600}, codes));
      if (in_value)
        batch.cache(1).set_value(300, 0, 32, kInfinity);
      else
        batch.cache(1).set_key(300, 0, 32, kNan);
      batch.build_indexes();
      const auto result = batch.decode(sparse_options(codes));
      REQUIRE(result.status == DecodeStatus::ok);
      CAPTURE(codes);
      CAPTURE(in_value);
      for (int i = 0; i < 8; ++i) {
        const bool poisoned = i == 4 || i == 5;
        CHECK((result.reports[size_t(i)].path == DecodePath::dense_by_numerics) == poisoned);
        CHECK(std::isnan(result.output[size_t(i * 64 + 32)]) == poisoned);
      }
    }
}

TEST_CASE("fp8_e4m3: an index grows with the cache; scales beside another type are refused") {
  BatchSpec spec = fp8_batch({4, 2, 64, 0.0f}, {900}, true);
  spec.build_indexes = false;
  const Batch batch(spec);
  ClusterIndex index(spec.shape, IndexOptions{});
  KvCacheView kv = batch.sequences()[0].kv;
  test::build_index(index, kv.first(500));
  test::append_index(index, kv);
  CHECK(index.view().indexed_end > 500);
  CHECK_FALSE(index.view().empty());
  kv.type = ElementType::bf16;
  CHECK(test::argument_error([&] { test::append_index(index, kv); }) ==
        "ClusterIndex::append: kv.key_scales and kv.value_scales must be null unless keys and values are fp8_e4m3, got bf16");
}
