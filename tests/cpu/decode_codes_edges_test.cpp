// Edges of decoding by single tokens: diffuse heads, degenerate keys, poisoned input, growing sequences, teams.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/attention_error.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::coded_batch;
using test::worst_error;

namespace {

// By ratio, by budget, by target error, with a certificate.
std::vector<DecodeOptions> all_modes() {
  std::vector<DecodeOptions> modes(4);
  modes[1].fixed_budget = 100;
  modes[2].target_error = 0.05f;
  modes[3].certificate.enabled = true;
  for (DecodeOptions& options : modes) {
    options.dense_below = 0;
    options.unit = ReadUnit::tokens;
  }
  return modes;
}

int count(const test::DecodeResult& result, DecodePath path) {
  return int(std::count_if(result.reports.begin(), result.reports.end(), [&](const HeadReport& r) { return r.path == path; }));
}

}  // namespace

TEST_CASE("diffuse heads: dense where that is cheaper, unless tokens are asked for") {
  BatchSpec spec = coded_batch({1500});
  spec.sharpness = 0.01f;
  const Batch batch(spec);
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = 0.95f;
  SerialExecutor executor;
  const auto by_cost = batch.decode(options);
  CHECK(count(by_cost, DecodePath::dense_by_cost) == 4);
  CHECK(by_cost.same_bits(batch.dense(executor)));
  for (const HeadReport& report : by_cost.reports) {
    CHECK(report.tokens_read == 1500);
    CHECK(report.attained_ratio_lower_bound == 1.0f);
  }
  for (const auto& row : batch.select(options).rows) CHECK(row.size() == 1500);
  options.unit = ReadUnit::tokens;
  const auto by_tokens = batch.decode(options);
  CHECK(count(by_tokens, DecodePath::sparse_tokens) == 4);
  CHECK(worst_error(batch, by_tokens) < 0.2);
  options.unit = ReadUnit::clusters;
  CHECK(count(batch.decode(options), DecodePath::sparse) == 4);
}

TEST_CASE("the automatic unit reads tokens where there are codes and few are needed") {
  const Batch batch(coded_batch({3000}));
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = 0.8f;
  const auto result = batch.decode(options);
  CHECK(count(result, DecodePath::sparse_tokens) == 4);
  for (const HeadReport& report : result.reports) {
    CHECK(report.tokens_coded > 0);
    CHECK(report.bytes_read < report.bytes_dense);
    CHECK(report.tokens_sampled == 0);
  }
  BatchSpec plain = coded_batch({3000});
  plain.index = test::cluster_index_options();
  for (const HeadReport& report : Batch(plain).decode(options).reports) CHECK(report.path == DecodePath::sparse);
}

TEST_CASE("all keys equal; zero keys: every mode gives the mean value") {
  for (const float element : {0.0f, 0.7f}) {
    Batch batch(coded_batch({500}));
    for (int i = 0; i < 500; ++i)
      for (int h = 0; h < 2; ++h)
        for (int c = 0; c < 64; ++c) {
          batch.cache(0).set_key(i, h, c, element);
          batch.cache(0).set_value(i, h, c, float(c + 1));
        }
    batch.build_indexes();
    for (DecodeOptions options : all_modes())
      for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated}) {
        options.tail = tail;
        const auto result = batch.decode(options);
        CAPTURE(element);
        CAPTURE(options.target_error);
        CHECK(worst_error(batch, result) < 0.01);
        if (tail != Tail::drop)
          for (int h = 0; h < 4; ++h) CHECK(test::near(result.lse[size_t(h)], batch.attention(0, h).lse, 0.2));
      }
  }
}

TEST_CASE("one or few indexed tokens, fewer than a block of codes; window only") {
  for (const int length : {1, 4, 5, 6, 20, 21, 36, 37})
    for (const int window : {0, 1, 16, 40}) {
      BatchSpec spec = coded_batch({length, 700});
      spec.index.window_tokens = window;
      const Batch batch(spec);
      for (DecodeOptions options : all_modes()) {
        options.fixed_budget = options.fixed_budget > 0 ? 1000 : 0;
        options.target_ratio = 0.999f;
        options.candidate_coverage = 1.0f;
        options.target_error = options.target_error > 0.0f ? 0.001f : 0.0f;
        const auto result = batch.decode(options);
        CAPTURE(length);
        CAPTURE(window);
        CHECK(result.status == DecodeStatus::ok);
        CHECK(worst_error(batch, result) < 0.05);
        for (int h = 0; h < 4; ++h) CHECK(result.reports[size_t(h)].tokens_read <= length);
        if (length <= 4 + window) CHECK(result.reports[0].path == DecodePath::dense_by_length);
      }
    }
}

TEST_CASE("no sinks, no window: nothing is read before tokens are chosen") {
  BatchSpec spec = coded_batch({1500});
  spec.index.num_sink_tokens = 0;
  const Batch batch(spec);
  for (const DecodeOptions& options : all_modes()) {
    const auto result = batch.decode(options);
    CAPTURE(options.fixed_budget);
    CAPTURE(options.target_error);
    CHECK(count(result, DecodePath::sparse_tokens) == 4);
    CHECK(worst_error(batch, result) < 0.5);
  }
}

TEST_CASE("residuals of zero: clusters of one token, and of equal ones") {
  BatchSpec spec = coded_batch({600});
  spec.index.cluster_size = 1;
  const Batch single(spec);
  spec.index.cluster_size = 16;
  Batch equal(spec);
  for (int i = 0; i < 600; ++i)
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 64; ++c) equal.cache(0).set_key(i, h, c, float(equal.cache(0).keys(h).row(i % 12)[c]));
  equal.build_indexes();
  for (const Batch* batch : {&single, static_cast<const Batch*>(&equal)})
    for (DecodeOptions options : all_modes()) {
      options.target_ratio = 0.95f;
      if (options.fixed_budget > 0) options.fixed_budget = 300;
      CHECK(worst_error(*batch, batch->decode(options)) < 0.2);
    }
}

TEST_CASE("NaN and infinity poison their own heads, in every mode") {
  for (const float element : {kNan, kInfinity, -kInfinity})
    for (const DecodeOptions& options : all_modes()) {
      const auto numerics = [&](const std::function<void(Batch&)>& change) {
        BatchSpec spec = coded_batch({800, 800});
        spec.type = ElementType::f32;
        spec.index.window_tokens = 20;
        Batch batch(spec);
        change(batch);
        batch.build_indexes();
        const auto result = batch.decode(options);
        CHECK(worst_error(batch, result) < 0.5);
        return count(result, DecodePath::dense_by_numerics);
      };
      CAPTURE(element);
      CHECK(numerics([&](Batch& batch) { batch.queries().set(1, 2, 9, element); }) == 2);
      CHECK(numerics([&](Batch& batch) { batch.cache(0).set_key(300, 1, 5, element); }) == 2);
      CHECK(numerics([&](Batch& batch) { batch.cache(0).set_value(300, 0, 5, element); }) == 2);
      CHECK(numerics([](Batch&) {}) == 0);
      // In the window: the index does not know. A length that is not finite is an error that nothing can be measured by.
      const int of_value = numerics([&](Batch& batch) { batch.cache(0).set_value(790, 0, 5, element); });
      CHECK(of_value == (options.target_error > 0.0f ? 2 : 0));
      numerics([&](Batch& batch) { batch.cache(0).set_key(790, 0, 5, element); });
    }
}

TEST_CASE("scores too far apart for any estimate end as dense attention says") {
  for (const float size : {30.0f, 1e3f, 3e3f, 1e4f})  // from about 1e5 on nothing is left of the other keys' coordinates
    for (const DecodeOptions& options : all_modes()) {
      BatchSpec spec = coded_batch({800});
      spec.type = ElementType::f32;
      Batch batch(spec);
      for (int c = 0; c < 64; ++c) {
        batch.cache(0).set_key(400, 0, c, size * float(batch.queries().get(0, 0)[size_t(c)]));
        batch.cache(0).set_key(600, 1, c, -size * float(batch.queries().get(0, 2)[size_t(c)]));
      }
      batch.build_indexes();
      CAPTURE(size);
      CAPTURE(options.fixed_budget);
      CAPTURE(options.target_error);
      CHECK(worst_error(batch, batch.decode(options)) < 0.5);
    }
}

TEST_CASE("appended segments, f32 storage, variance models") {
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
    for (const VarianceModel model : {VarianceModel::none, VarianceModel::shared, VarianceModel::diagonal}) {
      BatchSpec spec = coded_batch({2000});
      spec.index.storage = storage;
      spec.index.variance = model;
      spec.index.segment_tokens = 512;
      spec.index.window_tokens = 40;
      spec.build_indexes = false;
      Batch batch(spec);
      test::build_index(batch.index(0), batch.cache(0).view().first(900));
      for (const int length : {1300, 1700, 2000}) test::append_index(batch.index(0), batch.cache(0).view().first(length));
      REQUIRE(batch.index(0).view().heads[0].num_segments >= 4);
      for (DecodeOptions options : all_modes()) {
        options.variance = model;
        const auto result = batch.decode(options);
        CHECK(count(result, DecodePath::sparse_tokens) == 4);
        CHECK(worst_error(batch, result) < 0.5);
      }
    }
}

TEST_CASE("one set per query head: no more tokens than the group's, the same accuracy") {
  BatchSpec spec = coded_batch({2000});
  spec.shape = {8, 2, 64, 0.0f};
  const Batch batch(spec);
  for (DecodeOptions options : all_modes()) {
    const auto together = batch.decode(options);
    options.scope = SelectionScope::head;
    const auto alone = batch.decode(options);
    CHECK(count(alone, DecodePath::sparse_tokens) == 8);
    CHECK(worst_error(batch, alone) < 0.8);
    int fewer = 0;
    for (size_t h = 0; h < 8; ++h) fewer += together.reports[h].tokens_read - alone.reports[h].tokens_read;
    if (options.fixed_budget == 0) CHECK(fewer > 0);
  }
}

TEST_CASE("the same for the same team and seed; nearly the same for every team") {
  BatchSpec spec = coded_batch({2000, 700});
  spec.shape = {6, 2, 64, 0.0f};
  const Batch batch(spec);
  for (const DecodeOptions& options : all_modes()) {
    const auto alone = batch.decode(options);
    for (const int workers : {1, 2, 3, 5}) {
      ThreadExecutor executor(workers);
      const auto first = batch.decode(options, executor);
      for (int repeat = 0; repeat < 3; ++repeat) CHECK(batch.decode(options, executor).same_bits(first));
      for (size_t row = 0; row < 12; ++row) {
        CHECK(std::abs(first.reports[row].tokens_read - alone.reports[row].tokens_read) <= 2 + alone.reports[row].tokens_read / 20);
        CHECK(test::relative_error(&first.output[row * 64], &alone.output[row * 64], 64) < 0.1);  // a few tokens on the edge of a bucket
      }
    }
  }
}
