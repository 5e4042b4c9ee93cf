// The defined edges: when decoding is dense attention bit for bit, and degenerate caches.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

DecodeOptions options_of(float target, int dense_below) {
  DecodeOptions options;
  options.target_ratio = target;
  options.dense_below = dense_below;
  return options;
}

BatchSpec spec_of(std::vector<int> lengths) {
  BatchSpec spec;
  spec.shape = {6, 2, 72, 0.0f};
  spec.lengths = std::move(lengths);
  return spec;
}

bool all_paths(const test::DecodeResult& result, DecodePath path) {
  return std::all_of(result.reports.begin(), result.reports.end(), [&](const HeadReport& report) { return report.path == path; });
}

// The largest error of the outputs, in units of the tolerance, against the reference over the whole cache.
double dense_error(const Batch& batch, const test::DecodeResult& result) {
  const AttentionShape& shape = batch.shape();
  double worst = 0.0;
  for (int s = 0; s < batch.num_sequences(); ++s)
    for (int h = 0; h < shape.num_qo_heads; ++h) {
      const auto row = size_t(s * shape.num_qo_heads + h);
      const auto want = batch.attention(s, h);
      const double error =
          test::larger_error(test::largest_difference(&result.output[row * size_t(shape.head_dim)], want.output.data(), shape.head_dim),
                             test::largest_difference(&result.lse[row], &want.lse, 1));
      worst = test::larger_error(worst, error / test::attention_tolerance(shape.head_dim, 1000, 40.0));
    }
  return worst;
}

}  // namespace

TEST_CASE("target 1 is dense attention bit for bit, with any number of workers") {
  const Batch batch(spec_of({700, 300, 5}));
  for (const int workers : {1, 2, 3}) {
    ThreadExecutor executor(workers);
    const auto result = batch.decode(options_of(1.0f, 0), executor);
    REQUIRE(result.status == DecodeStatus::ok);
    CHECK(result.same_bits(batch.dense(executor)));
    CHECK(all_paths(result, DecodePath::dense_by_target));
    for (const HeadReport& report : result.reports) {
      CHECK(report.bytes_read == report.bytes_dense);
      CHECK(report.attained_ratio_lower_bound == 1.0f);
      CHECK(report.confidence == 1.0f);
    }
  }
}

TEST_CASE("sequences of at most dense_below tokens are dense bit for bit, longer ones are not") {
  const Batch batch(spec_of({500, 501}));
  for (const int workers : {1, 2, 3}) {
    ThreadExecutor executor(workers);
    const auto result = batch.decode(options_of(0.5f, 501), executor);
    CHECK(result.same_bits(batch.dense(executor)));
    CHECK(all_paths(result, DecodePath::dense_by_length));
  }
  const auto result = batch.decode(options_of(0.5f, 500));
  for (size_t h = 0; h < 12; ++h) CHECK(result.reports[h].path == (h < 6 ? DecodePath::dense_by_length : DecodePath::sparse));
}

TEST_CASE("without an index, and with one that covers nothing: dense bit for bit") {
  BatchSpec spec = spec_of({400});
  Batch batch(spec);
  Decoder decoder(spec.shape, options_of(0.5f, 0), batch.limits());
  SerialExecutor executor;
  test::DecodeResult result(spec.shape, 1);
  const SequenceView no_index{batch.cache(0).view(), nullptr};
  REQUIRE(decoder.decode(batch.query_view(), {&no_index, 1}, result.out(), result.reports, executor) == DecodeStatus::ok);
  CHECK(result.same_bits(batch.dense(executor)));
  CHECK(all_paths(result, DecodePath::dense_by_length));
  spec.index.window_tokens = 1000;  // longer than the sequence
  const Batch windowed(spec);
  const auto all_window = windowed.decode(options_of(0.5f, 0));
  CHECK(all_window.same_bits(windowed.dense(executor)));
  CHECK(all_paths(all_window, DecodePath::dense_by_length));
}

TEST_CASE("a plan for fewer clusters than the index has: dense bit for bit") {
  const Batch batch(spec_of({700}));
  DecodeLimits limits = batch.limits();
  limits.max_clusters = 16;
  Decoder decoder(batch.shape(), options_of(0.5f, 0), limits);
  SerialExecutor executor;
  test::DecodeResult result(batch.shape(), 1);
  REQUIRE(decoder.decode(batch.query_view(), batch.sequences(), result.out(), result.reports, executor) == DecodeStatus::ok);
  CHECK(result.same_bits(batch.dense(executor)));
  CHECK(all_paths(result, DecodePath::dense_by_capacity));
}

TEST_CASE("no tokens: output 0, lse -inf") {
  const Batch batch(spec_of({0, 0}));
  const auto result = batch.decode(options_of(0.5f, 0));
  REQUIRE(result.status == DecodeStatus::ok);
  CHECK(result.output == std::vector<float>(2 * 6 * 72, 0.0f));
  CHECK(result.lse == std::vector<float>(12, -kInfinity));
  for (const HeadReport& report : result.reports) CHECK(report.tokens_read == 0);
}

TEST_CASE("one token, few tokens, fewer keys than clusters") {
  for (const int sinks : {0, 1, 4})
    for (int length = 1; length <= 40; length += length < 8 ? 1 : 7) {
      BatchSpec spec = spec_of({length});
      spec.index.num_sink_tokens = sinks;
      spec.index.cluster_size = 1;
      const Batch batch(spec);
      CAPTURE(sinks);
      CAPTURE(length);
      const auto result = batch.decode(options_of(0.9999f, 0));
      CHECK(result.status == DecodeStatus::ok);
      // Nearly everything is read, the rest enters by its value means, which are single tokens here.
      for (int h = 0; h < 6; ++h)
        CHECK(test::relative_error(&result.output[size_t(h * 72)], batch.attention(0, h).output.data(), 72) < 0.01);
      if (length == 1) CHECK(dense_error(batch, result) <= 1.0);
    }
}

TEST_CASE("all keys equal: weights are equal, the target is met by count, the tail gives the mean of the values") {
  BatchSpec spec = spec_of({1000});
  spec.shape = {4, 2, 64, 0.0f};
  Batch batch(spec);
  for (int i = 0; i < 1000; ++i)
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 64; ++c) batch.cache(0).set_key(i, h, c, 0.5f);
  batch.build_indexes();
  for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated}) {
    DecodeOptions options = options_of(0.6f, 0);
    options.tail = tail;
    const auto result = batch.decode(options);
    const auto selected = batch.select(options);
    for (int h = 0; h < 4; ++h) {
      const auto& tokens = selected.rows[size_t(h / 2)];
      CHECK(tokens.size() >= 600);
      if (tail == Tail::drop) {
        const auto want = batch.attention(0, h, tokens);
        CHECK(test::largest_difference(&result.output[size_t(h * 64)], want.output.data(), 64) <= 1e-5);
      } else {
        const auto want = batch.attention(0, h);
        CHECK(test::largest_difference(&result.output[size_t(h * 64)], want.output.data(), 64) <= 0.01);  // int8 value means
        CHECK(test::near(result.lse[size_t(h)], want.lse, 0.01));
      }
    }
  }
}

TEST_CASE("zero queries and zero keys: all weights are one") {
  for (const bool zero_queries : {true, false}) {
    Batch batch(spec_of({500}));
    for (int h = 0; h < 6; ++h)
      for (int c = 0; c < 72 && zero_queries; ++c) batch.queries().set(0, h, c, 0.0f);
    for (int i = 0; i < 500 && !zero_queries; ++i)
      for (int c = 0; c < 72; ++c)
        for (int h = 0; h < 2; ++h) batch.cache(0).set_key(i, h, c, 0.0f);
    batch.build_indexes();
    const auto result = batch.decode(options_of(0.5f, 0));
    for (int h = 0; h < 6; ++h) {
      CHECK(result.reports[size_t(h)].tokens_read >= 250);
      CHECK(test::near(result.lse[size_t(h)], std::log(500.0), 0.02));
    }
  }
}

TEST_CASE("empty clusters: fewer different keys than clusters") {
  BatchSpec spec = spec_of({600});
  Batch batch(spec);
  for (int i = 0; i < 600; ++i)
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 72; ++c) batch.cache(0).set_key(i, h, c, float(i % 3) * (c % 2 == 0 ? 1.0f : -0.5f));
  batch.build_indexes();
  DecodeOptions options = options_of(0.9f, 0);
  options.tail = Tail::drop;
  const auto result = batch.decode(options);
  const auto selected = batch.select(options);
  for (int h = 0; h < 6; ++h) {
    const auto want = batch.attention(0, h, selected.rows[size_t(h / 3)]);
    CHECK(test::largest_difference(&result.output[size_t(h * 72)], want.output.data(), 72) <= test::attention_tolerance(72, 600, 40.0));
    CHECK(batch.attained_ratio(0, h, selected.rows[size_t(h / 3)]) >= 0.88);
  }
}
