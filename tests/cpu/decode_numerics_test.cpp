// NaN, infinities and scores far apart: they reach the heads that see them, as in dense attention, and no other.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

constexpr int kHeads = 6, kDim = 64, kTokens = 600;

BatchSpec two_sequences() {
  BatchSpec spec;
  spec.shape = {kHeads, 2, kDim, 0.0f};
  spec.lengths = {kTokens, kTokens};
  spec.type = ElementType::f32;
  spec.index.window_tokens = 20;
  return spec;
}

DecodeOptions options_of(Tail tail, bool certify) {
  DecodeOptions options;
  options.dense_below = 0;
  options.tail = tail;
  options.certificate.enabled = certify;
  return options;
}

// Whether every head's output and lse are NaN exactly where dense attention's are, and close to it elsewhere.
bool agrees(const Batch& batch, const test::DecodeResult& result) {
  for (int s = 0; s < 2; ++s)
    for (int h = 0; h < kHeads; ++h) {
      const auto row = size_t(s * kHeads + h);
      const auto want = batch.attention(s, h);
      double error = 0.0, norm = 0.0;
      for (size_t c = 0; c < kDim; ++c) {
        const double got = double(result.output[row * kDim + c]);
        if (std::isnan(got) != std::isnan(want.output[c])) return false;
        if (std::isnan(got) || got == want.output[c]) continue;
        error += (got - want.output[c]) * (got - want.output[c]);
        norm += want.output[c] * want.output[c];
      }
      if (!(error <= 0.05 * norm)) return false;
      if (std::isnan(result.lse[row]) != std::isnan(want.lse)) return false;
    }
  return true;
}

// Number of dense_by_numerics heads per sequence and KV head after a change of the batch, with every tail and policy the same.
std::vector<int> numerics_heads(bool rebuild, const std::function<void(Batch&)>& change) {
  Batch batch(two_sequences());
  change(batch);
  if (rebuild) batch.build_indexes();
  std::vector<int> counts;
  for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
    for (const bool certify : {false, true})
      for (const int workers : {1, 2, 3}) {
        ThreadExecutor executor(workers);
        const auto result = batch.decode(options_of(tail, certify), executor);
        CHECK(result.status == DecodeStatus::ok);
        CHECK(agrees(batch, result));
        std::vector<int> now(4, 0);
        for (size_t i = 0; i < result.reports.size(); ++i) now[i / 3] += result.reports[i].path == DecodePath::dense_by_numerics;
        CHECK((counts.empty() || counts == now));
        counts = now;
      }
  return counts;
}

}  // namespace

TEST_CASE("nothing wrong: no head leaves the sparse path for numerics") {
  CHECK(numerics_heads(false, [](Batch&) {}) == std::vector<int>{0, 0, 0, 0});
}

TEST_CASE("NaN or infinity in a query: its own head is poisoned, its group is attended densely") {
  for (const float element : {kNan, kInfinity, -kInfinity}) {
    CAPTURE(element);
    CHECK(numerics_heads(false, [&](Batch& batch) { batch.queries().set(1, 4, 13, element); }) == std::vector<int>{0, 0, 0, 3});
  }
}

TEST_CASE("NaN or infinity in an indexed key") {
  for (const float element : {kNan, kInfinity, -kInfinity}) {
    CAPTURE(element);
    CHECK(numerics_heads(true, [&](Batch& batch) { batch.cache(0).set_key(300, 1, 5, element); }) == std::vector<int>{0, 3, 0, 0});
  }
}

TEST_CASE("NaN or infinity in an indexed value") {
  for (const float element : {kNan, kInfinity, -kInfinity}) {
    CAPTURE(element);
    CHECK(numerics_heads(true, [&](Batch& batch) { batch.cache(1).set_value(300, 0, 5, element); }) == std::vector<int>{0, 0, 3, 0});
  }
}

TEST_CASE("NaN or infinity in a sink or window key or value, which the index does not hold") {
  for (const int token : {1, kTokens - 3})
    for (const float element : {kNan, kInfinity, -kInfinity}) {
      CAPTURE(token);
      CAPTURE(element);
      numerics_heads(true, [&](Batch& batch) { batch.cache(0).set_key(token, 0, 5, element); });
      numerics_heads(true, [&](Batch& batch) { batch.cache(0).set_value(token, 1, 5, element); });
    }
}

TEST_CASE("NaN in a token appended after the index was built") {
  Batch batch(two_sequences());
  std::vector<SequenceView> sequences = batch.sequences();
  ClusterIndex shorter(batch.shape(), batch.spec().index);
  SerialExecutor executor;
  test::build_index(shorter, batch.cache(0).view().first(500));
  sequences[0].index = &shorter.view();
  batch.cache(0).set_key(590, 0, 3, kNan);
  Decoder decoder(batch.shape(), options_of(Tail::calibrated, false), batch.limits());
  test::DecodeResult result(batch.shape(), 2);
  REQUIRE(decoder.decode(batch.query_view(), sequences, result.out(), result.reports, executor) == DecodeStatus::ok);
  CHECK(agrees(batch, result));
  for (size_t h = 0; h < 2 * kHeads; ++h) CHECK((result.reports[h].path == DecodePath::dense_by_numerics) == (h < 3));
}

TEST_CASE("masked everything: scores of -inf give output 0 and lse -inf") {
  Batch batch(two_sequences());
  for (int i = 0; i < kTokens; ++i) batch.cache(0).set_key(i, 1, 0, -kInfinity);
  for (int h = 3; h < kHeads; ++h) batch.queries().set(0, h, 0, 1.0f);
  batch.build_indexes();
  const auto result = batch.decode(options_of(Tail::calibrated, false));
  for (size_t h = 3; h < kHeads; ++h) {
    CHECK(result.lse[h] == -kInfinity);
    for (size_t c = 0; c < kDim; ++c) CHECK(result.output[h * kDim + c] == 0.0f);
  }
}

TEST_CASE("scores far apart: the output is that of dense attention") {
  for (const float factor : {30.0f, 1000.0f, 1e5f, 1e18f}) {
    BatchSpec spec = two_sequences();
    spec.sharpness = factor;
    const Batch batch(spec);
    CAPTURE(factor);
    for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
      for (const bool certify : {false, true}) {
        const auto result = batch.decode(options_of(tail, certify));
        REQUIRE(result.status == DecodeStatus::ok);
        // One token has all the weight; with scores of 1e5 and more two may be a rounding apart.
        if (factor <= 1000.0f) CHECK(agrees(batch, result));
        for (const float x : result.output) CHECK_FALSE(std::isnan(x));
      }
  }
}

TEST_CASE("keys of any finite size never crash, and never give NaN where dense attention gives none") {
  for (const float size : {1e-30f, 1e10f, 1e18f, 1e25f, 1e37f}) {
    CAPTURE(size);
    Batch batch(two_sequences());
    for (int i = 0; i < kTokens; ++i)
      for (int c = 0; c < kDim; ++c) batch.cache(0).set_key(i, 0, c, size * float((i * 7 + c * 3) % 11 - 5));
    batch.build_indexes();
    SerialExecutor executor;
    const auto dense = batch.dense(executor);
    for (const Tail tail : {Tail::drop, Tail::calibrated}) {
      const auto result = batch.decode(options_of(tail, true));
      REQUIRE(result.status == DecodeStatus::ok);
      for (size_t i = 0; i < 3 * kDim; ++i) CHECK(std::isnan(result.output[i]) <= std::isnan(dense.output[i]));
    }
  }
}
