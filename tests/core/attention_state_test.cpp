// Partial results of online softmax and their merge.
#include "quorum/core/attention_state.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

// State of a list of scores, one at a time.
AttentionState state_of(const std::vector<float>& scores) {
  AttentionState state;
  for (const float score : scores) state = merge(state, {score, 1.0f});
  return state;
}

// 2^-24 for each of `merges` roundings of sums, and the error of exp and log at scores of up to 30.
constexpr double tolerance(int merges) { return (merges + 30) * 0x1p-23; }

}  // namespace

TEST_CASE("empty state") {
  CHECK(AttentionState{}.lse() == -kInfinity);
  CHECK(merge({}, {}).lse() == -kInfinity);
  CHECK(merge({}, {}).sum == 0.0f);
}

TEST_CASE("merging with an empty state changes nothing") {
  const AttentionState state{2.5f, 3.0f};
  for (const AttentionState merged : {merge(state, {}), merge({}, state)}) {
    CHECK(merged.max == 2.5f);
    CHECK(merged.sum == 3.0f);
  }
}

TEST_CASE("weights 1, 2 and 5") {
  const AttentionState state = state_of({0.0f, std::log(2.0f), std::log(5.0f)});
  CHECK(test::near(state.lse(), std::log(8.0), 1e-6));
  CHECK(test::near(state.sum, 8.0 / 5.0, 1e-6));
  CHECK(state.max == std::log(5.0f));
}

TEST_CASE("merge is commutative and associative up to rounding") {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    CAPTURE(seed);
    test::Random random(seed);
    AttentionState parts[3];
    std::vector<float> all;
    for (auto& part : parts) {
      std::vector<float> scores(size_t(random.below(20)));
      for (float& score : scores) score = float(random.uniform(-30.0, 30.0));
      part = state_of(scores);
      all.insert(all.end(), scores.begin(), scores.end());
    }
    const AttentionState ab = merge(parts[0], parts[1]), ba = merge(parts[1], parts[0]);
    CHECK(ab.max == ba.max);
    CHECK(test::near(ab.sum, ba.sum, double(ab.sum) * 0x1p-23));  // the compiler may fuse either product with the sum
    const float left = merge(ab, parts[2]).lse(), right = merge(parts[0], merge(parts[1], parts[2])).lse();
    CHECK(test::near(left, right, tolerance(60)));
    double sum = 0.0;
    for (const float score : all) sum += std::exp(double(score));
    CHECK(test::near(left, std::log(sum), tolerance(60)));
  }
}

TEST_CASE("scores far apart do not overflow") {
  const AttentionState merged = merge({-1e30f, 1.0f}, {1e30f, 2.0f});
  CHECK(merged.max == 1e30f);
  CHECK(merged.sum == 2.0f);
}

TEST_CASE("a NaN maximum or sum is not lost in a merge, on either side") {
  for (const AttentionState poisoned : {AttentionState{kNan, 1.0f}, AttentionState{1.0f, kNan}, AttentionState{-kInfinity, kNan}}) {
    CHECK(std::isnan(merge(poisoned, {5.0f, 1.0f}).lse()));
    CHECK(std::isnan(merge({5.0f, 1.0f}, poisoned).lse()));
    CHECK(std::isnan(merge(merge({}, poisoned), {7.0f, 1.0f}).lse()));
  }
  CHECK(std::isnan(larger_max(kNan, 1.0f)));
  CHECK(std::isnan(larger_max(1.0f, kNan)));
  CHECK(larger_max(1.0f, 2.0f) == 2.0f);
  CHECK(larger_max(2.0f, 1.0f) == 2.0f);
}

TEST_CASE("rescale factor") {
  CHECK(rescale_factor(-kInfinity, -kInfinity) == 0.0f);
  CHECK(rescale_factor(-kInfinity, 3.0f) == 0.0f);
  CHECK(rescale_factor(2.0f, 2.0f) == 1.0f);
  CHECK(test::near(rescale_factor(1.0f, 3.0f), std::exp(-2.0), 1e-7));
}

TEST_CASE("a sink joins the denominator, at any distance from the scores") {
  for (double lse = -30.0; lse <= 30.0; lse += 7.5)
    for (double logit = -30.0; logit <= 30.0; logit += 4.0) {
      const SinkShare share = add_sink(lse, logit);
      CHECK(test::near(share.factor, std::exp(lse) / (std::exp(lse) + std::exp(logit)), 1e-12));
      CHECK(test::near(share.lse, std::log(std::exp(lse) + std::exp(logit)), 1e-12));
    }
  CHECK(add_sink(5.0, 1e30).factor == 0.0);
  CHECK(add_sink(5.0, 1e30).lse == 1e30);
  CHECK(add_sink(1e30, 5.0).factor == 1.0);
  CHECK(add_sink(1e30, 5.0).lse == 1e30);
}

TEST_CASE("a sink beside nothing, no sink, NaN") {
  const double infinity = double(kInfinity);
  CHECK(add_sink(-infinity, 2.0).factor == 0.0);
  CHECK(add_sink(-infinity, 2.0).lse == 2.0);
  CHECK(add_sink(2.0, -infinity).factor == 1.0);
  CHECK(add_sink(2.0, -infinity).lse == 2.0);
  CHECK(add_sink(-infinity, -infinity).lse == -infinity);
  for (const SinkShare share : {add_sink(double(kNan), 1.0), add_sink(1.0, double(kNan))}) {
    CHECK(std::isnan(share.factor));
    CHECK(std::isnan(share.lse));
  }
}
