// Properties of a layer: soft-capping, attention sinks as logits, sliding windows; on every path, alone and together.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "quorum/cpu/sparse_attention.hpp"
#include "tests/support/masked_sequence.hpp"

using namespace quorum;
using test::MaskedSequence;
using test::MaskedSpec;

namespace {

MaskedSpec spec_of(float softcap, int window, bool sinks, bool codes = true) {
  MaskedSpec spec;
  spec.shape = {6, 2, 64, 0.0f};
  spec.shape.logit_softcap = softcap;
  spec.shape.sliding_window = window;
  if (sinks) spec.sinks = {2.0f, -5.0f, 9.0f, 0.0f, -kInfinity, 30.0f};
  spec.codes = codes;
  spec.window_tokens = 10;
  return spec;
}

DecodeOptions read_everything(int num_tokens) {
  DecodeOptions options = test::sparse_options(0.9f);
  options.fixed_budget = num_tokens;
  options.candidate_coverage = 1.0f;
  return options;
}

}  // namespace

TEST_CASE("soft-capping, windows and sinks, all combinations: densely and with everything read the sparse way") {
  for (const float softcap : {0.0f, 3.0f, 50.0f})
    for (const int window : {0, 1, 130, 5000})
      for (const bool sinks : {false, true})
        for (const bool codes : {false, true})
          for (const int rows : {1, 3}) {
            MaskedSpec spec = spec_of(softcap, window, sinks, codes);
            spec.num_rows = rows;
            if (window == 130) spec.density = 0.5;
            const MaskedSequence sequence(spec);
            CAPTURE(softcap);
            CAPTURE(window);
            CAPTURE(sinks);
            CAPTURE(codes);
            CAPTURE(rows);
            for (const int workers : {1, 2}) {
              const auto dense = sequence.decode(test::sparse_options(1.0f), workers);
              CHECK(sequence.error(dense) <= sequence.tolerance());
              const auto sparse = sequence.decode(read_everything(spec.num_tokens), workers);
              CHECK(sequence.error(sparse) <= 2e-3);
              if (window != 1) CHECK_FALSE(is_dense(sparse.reports[0].path));
            }
          }
}

TEST_CASE("a window within dense_below is attended densely, and only it is read") {
  MaskedSpec spec = spec_of(0.0f, 200, false);
  const MaskedSequence sequence(spec);
  DecodeOptions options = test::sparse_options(0.9f);
  options.dense_below = 200;
  const auto result = sequence.decode(options);
  CHECK(sequence.error(result) <= sequence.tolerance());
  for (const HeadReport& report : result.reports) {
    CHECK(report.path == DecodePath::dense_by_length);
    CHECK(report.tokens_read == 200);
    CHECK(report.bytes_dense == 200 * 2 * 128);
    CHECK(report.bytes_read == report.bytes_dense);
  }
}

TEST_CASE("with soft-capping targets are met: estimates are capped as scores are") {
  for (const bool codes : {false, true})
    for (const float softcap : {2.0f, 5.0f, 30.0f}) {
      double attained = 0.0;
      for (uint64_t seed = 1; seed <= 4; ++seed) {
        MaskedSpec spec = spec_of(softcap, 0, false, codes);
        spec.num_tokens = 1500;
        spec.seed = seed;
        const MaskedSequence sequence(spec);
        DecodeOptions options = test::sparse_options(0.8f);
        options.tail = Tail::drop;
        options.unit = codes ? ReadUnit::tokens : ReadUnit::clusters;
        const auto result = sequence.decode(options);
        for (int h = 0; h < 6; ++h) {
          const double ratio = std::exp(double(result.lse[size_t(h)]) - sequence.attention(0, h).lse);
          CHECK(ratio >= 0.65);
          CHECK(test::near(double(result.reports[size_t(h)].attained_ratio_estimate), ratio, 0.15));
          CHECK(result.reports[size_t(h)].tokens_read < 1500);
          attained += ratio / 24.0;
        }
      }
      CAPTURE(codes);
      CAPTURE(softcap);
      CAPTURE(attained);
      CHECK(attained >= 0.79);
    }
}

TEST_CASE("sinks change output and lse alone: reports are of the tokens") {
  for (const bool codes : {false, true}) {
    const MaskedSequence with(spec_of(0.0f, 0, true, codes)), without(spec_of(0.0f, 0, false, codes));
    const auto sunk = with.decode(test::sparse_options(0.9f)), plain = without.decode(test::sparse_options(0.9f));
    for (int h = 0; h < 6; ++h) {
      const size_t at = size_t(h);
      CHECK(sunk.reports[at].tokens_read == plain.reports[at].tokens_read);
      CHECK(sunk.reports[at].attained_ratio_estimate == plain.reports[at].attained_ratio_estimate);
      const double sink = double(spec_of(0.0f, 0, true).sinks[at]), lse = double(plain.lse[at]);
      const double share = 1.0 / (1.0 + std::exp(sink - lse));
      for (int c = 0; c < 64; ++c)
        CHECK(test::near(double(sunk.output[at * 64 + size_t(c)]), share * double(plain.output[at * 64 + size_t(c)]), 1e-5));
      CHECK(test::near(double(sunk.lse[at]), lse - std::log(share), 1e-5));
    }
  }
}

TEST_CASE("a sink far above all scores takes everything, smoothly") {
  for (const float target : {1.0f, 0.9f}) {
    float previous = kInfinity;
    for (const float logit : {-1e30f, 0.0f, 20.0f, 60.0f, 1000.0f, 1e30f}) {
      MaskedSpec spec = spec_of(0.0f, 0, false);
      spec.sinks.assign(6, logit);
      const auto result = MaskedSequence(spec).decode(test::sparse_options(target));
      float size = 0.0f;
      for (const float x : result.output) size += x * x;
      CHECK(size <= previous);
      previous = size;
      if (logit >= 1000.0f) CHECK(size == 0.0f);
      if (logit >= 1000.0f) CHECK(result.lse[0] == logit);
    }
  }
}

TEST_CASE("sparse_attention over given tokens: soft-capping and sinks are the layer's") {
  MaskedSpec spec = spec_of(4.0f, 0, true);
  const MaskedSequence sequence(spec);
  std::vector<int32_t> tokens;
  for (int i = 0; i < spec.num_tokens; ++i) tokens.push_back(i);
  tokens.insert(tokens.end(), tokens.begin(), tokens.begin() + spec.num_tokens);  // both KV heads
  const int64_t indptr[] = {0, spec.num_tokens, 2 * spec.num_tokens};
  test::DecodeResult result(sequence.shape(), 1);
  SerialExecutor executor;
  const KvCacheView kv = sequence.view().kv;
  sparse_attention(sequence.shape(), sequence.query_view(), {&kv, 1}, {tokens.data(), indptr, nullptr, 0, 1, 2}, result.out(), executor);
  CHECK(sequence.error(result) <= sequence.tolerance());
}
