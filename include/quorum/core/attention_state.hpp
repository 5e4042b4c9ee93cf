// Online softmax: a partial attention result over some tokens, and how two disjoint ones become one.
#pragma once

#include <cmath>

#include "quorum/core/config.hpp"

namespace quorum {

// Running maximum and sum of one head's weights; the weighted value sum lies beside it, in units of exp(max).
//
// Post: after all tokens, output = accumulated / sum and lse = max + log(sum) (algorithm.md eq. 2).
struct AttentionState {
  float max = -kInfinity;  // largest score so far
  float sum = 0.0f;        // sum of exp(score - max)

  // Log of the sum of exp(score), natural logarithm; -inf if nothing was seen.
  QUORUM_HOST_DEVICE float lse() const { return sum == 0.0f ? -kInfinity : max + std::log(sum); }
};

// exp(from - to) for maxima of states: 0 for an empty state, so that -inf - -inf never makes a NaN.
QUORUM_HOST_DEVICE inline float rescale_factor(float from, float to) { return from == -kInfinity ? 0.0f : std::exp(from - to); }

// A NaN maximum wins, so that a poisoned partial result cannot be lost in a merge.
QUORUM_HOST_DEVICE inline float larger_max(float a, float b) { return (a > b || a != a) ? a : b; }

// State of the union of two disjoint token sets. Commutative and, up to rounding, associative.
QUORUM_HOST_DEVICE inline AttentionState merge(AttentionState a, AttentionState b) {
  const float max = larger_max(a.max, b.max);
  return {max, a.sum * rescale_factor(a.max, max) + b.sum * rescale_factor(b.max, max)};
}

// What a sink does to a head: a logit that joins the softmax's denominator and has no value. lse: of the tokens alone.
//
// Post: the output of the tokens alone times `factor`, in [0, 1], is the output with the sink. A logit far above all scores gives 0, one of
// -inf changes nothing; NaN stays NaN.
struct SinkShare {
  double factor = 1.0;
  double lse = 0.0;
};
QUORUM_HOST_DEVICE inline SinkShare add_sink(double lse, double logit) {
  if (logit == -double(kInfinity)) return {1.0, lse};
  const double larger = lse > logit || lse != lse ? lse : logit, smaller = larger == logit ? lse : logit;
  return {1.0 / (1.0 + std::exp(logit - lse)), larger + std::log1p(std::exp(smaller - larger))};
}

}  // namespace quorum
