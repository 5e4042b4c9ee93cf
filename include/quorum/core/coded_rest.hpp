// What codes say about the tokens that are not read: their weight, for the stopping rule, and the error they leave in the output
// (algorithm.md eq. 15 and 18).
#pragma once

#include <cmath>

#include "quorum/core/cluster_estimate.hpp"
#include "quorum/core/residual_code.hpp"
#include "quorum/core/tail_estimate.hpp"

namespace quorum {

// Without a certificate the unread weight is taken for this much more than codes and clusters say. Chosen where hits per token are best.
inline constexpr float kCodedMargin = 1.2f;

// Half the variance of a score, given the code, for each unit of a cluster's spread. query_square: |q'|^2.
QUORUM_HOST_DEVICE constexpr float half_lost_variance(VarianceModel model, float query_square, int head_dim) {
  return model == VarianceModel::none ? 0.0f : 0.5f * lost_variance(query_square, head_dim);
}

// Share of the weight that candidates and the other clusters that enter the output must hold together, if candidates hold `covered`
// (eq. 17): what is further outside stands for as little as in the tail of whole clusters.
QUORUM_HOST_DEVICE constexpr double coverage_with_outside(double covered) { return 1.0 - (1.0 - covered) * (1.0 - double(kTailCoverage)); }

// Factor on the estimates of clusters outside the candidates: what codes made of the candidates' estimate goes for the others too, if it is
// less. `expected`: weight of the candidates by code, `estimate`: the same by cluster.
QUORUM_HOST_DEVICE constexpr double outside_factor(double expected, double estimate) {
  const double least = 1e-30, found = expected / (estimate > least ? estimate : least);
  return found < 1.0 ? found : 1.0;
}

// Expected weight that must still be listed so that a head meets its target (eq. 15), if what has been read weighs `read`, the rest is
// taken for `rest`, `factor` times that with what is not seen, and tokens weigh `surprise` times what is expected of them.
QUORUM_HOST_DEVICE constexpr double coded_need(double target, double read, double rest, double factor, double surprise) {
  return (target * (read + factor * rest) - read) / (surprise * (1.0 - target + target * factor));
}

// How much heavier the tokens read last were than their codes said, at least 1: the unread ones are likely to be so too. `exact` and
// `expected`: their weights; `count` of them. Four more tokens that are just as expected keep chance out.
QUORUM_HOST_DEVICE inline double code_surprise(double exact, double expected, int count) {
  constexpr double kPrior = 4.0, kMost = 8.0;
  if (count < 1 || !(expected > 0.0)) return 1.0;
  const double prior = kPrior * expected / count, ratio = (exact + prior) / (expected + prior);
  return ratio > 1.0 ? ratio < kMost ? ratio : kMost : 1.0;
}
// Fewest tokens that code_surprise() is asked about.
inline constexpr int kFewestSurprised = 16;

// What the error estimate knows of a KV head's values and codes.
struct ValueMoments {
  float spread = 0.0f;       // mean squared distance of a value from its cluster's mean
  float mean_square = 0.0f;  // mean squared length of the clusters' value means
  float code_scale = 0.0f;   // mean square of the codes' scales
};

// Expected squared error of a head's output relative to its squared length, from sums over what was left unread.
//
// A coded token enters with its cluster's value mean instead of its value, and with a weight that is off by the variance that the code
// lost: both errors are independent between tokens, so squares add up. So do those of clusters outside, where a token stands for n.
struct ErrorModel {
  double per_square = 0.0;   // of the sum of squared coded weights
  double per_outside = 0.0;  // of the sum of squared cluster weights over cluster sizes

  // output_square: |o|^2 of the output with nothing read but sinks and window, total: its weight Z, query_square: |q'|^2.
  QUORUM_HOST_DEVICE static ErrorModel of(const ValueMoments& moments, double query_square, double output_square, double total) {
    constexpr double kLost = 0.570796, kMostLost = 3.0;  // pi / 2 - 1: lost energy by the square of the scale
    constexpr double kCalibration = 1.6 * 1.6;           // measured error by the bare estimate's, both models, errors of 2 to 10 %
    const double lost = kLost * query_square * double(moments.code_scale), bounded = lost < kMostLost ? lost : kMostLost;
    const double length = double(moments.mean_square) + output_square, unit = kCalibration / (total * total * output_square);
    return {unit * (double(moments.spread) + 0.5 * (std::exp(bounded) - 1.0) * length), unit * (double(moments.spread) + length)};
  }
  // Squared coded weights, out of `squares` in all, that must be listed to leave an error of `target`.
  QUORUM_HOST_DEVICE double squares_to_list(double squares, double outside, double target) const {
    return per_square > 0.0 ? squares - (target * target - per_outside * outside) / per_square : 0.0;
  }
  QUORUM_HOST_DEVICE double error(double squares, double outside) const { return std::sqrt(per_square * squares + per_outside * outside); }
};

}  // namespace quorum
