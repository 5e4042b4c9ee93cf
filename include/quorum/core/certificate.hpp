// The sampled certificate: how much weight the unread rest holds, with a standard error (algorithm.md eq. 8-11).
#pragma once

#include <cmath>

#include "quorum/core/cluster_estimate.hpp"
#include "quorum/core/config.hpp"
#include "quorum/core/stopping_rule.hpp"

namespace quorum {

// Share of the draws that goes by estimated weight; the remainder goes by token count. The second part bounds the importance weights,
// without it heavy tails of badly estimated clusters go unseen (Owen, "Monte Carlo theory, methods and examples", ch. 9: defensive
// mixture).
inline constexpr float kDrawByEstimate = 0.75f;

// How clusters of the rest are drawn (eq. 8): probability = share * per_share + size * per_token, where a cluster's share is its
// estimated share of the rest (largest over the group's heads). Probabilities of all clusters add up to 1, unless there is nothing to draw.
struct DrawRule {
  double per_share = 0.0;
  double per_token = 0.0;

  QUORUM_HOST_DEVICE constexpr double probability(double share, double size) const { return share * per_share + size * per_token; }
};
QUORUM_HOST_DEVICE constexpr DrawRule draw_rule(double total_share, double total_size) {
  const double by_estimate = total_share > 0.0 ? double(kDrawByEstimate) : 0.0;
  return {total_share > 0.0 ? by_estimate / total_share : 0.0, total_size > 0.0 ? (1.0 - by_estimate) / total_size : 0.0};
}

// The unread rest's weight as the sample sees it.
struct SampledRest {
  float weight = 0.0f;          // unbiased estimate
  float standard_error = 0.0f;  // of the estimate
};

// What a stratified sum of `count` draws says: variance by successive differences (Owen ch. 8.4): n / (2 (n - 1)) * sum of squares.
QUORUM_HOST_DEVICE inline SampledRest stratified_rest(float sum, float squared_differences, int count) {
  if (count < 2) return {sum, sum};
  return {sum, std::sqrt(squared_differences * float(count) / (2.0f * float(count - 1)))};
}

// Sums one draw per stratum; neighbours in the draw order are alike, so their differences measure the error.
class StratifiedSum {
 public:
  // contribution: importance weight times the drawn token's weight, already divided by the number of draws.
  QUORUM_HOST_DEVICE void add(float contribution) {
    sum_ += contribution;
    if (count_ > 0) differences_ += (contribution - last_) * (contribution - last_);
    last_ = contribution;
    ++count_;
  }
  QUORUM_HOST_DEVICE SampledRest result() const { return stratified_rest(sum_, differences_, count_); }

 private:
  float sum_ = 0.0f;
  float differences_ = 0.0f;
  float last_ = 0.0f;
  int count_ = 0;
};

// How much of the rest's weight, on a log scale, is believed to the sample; the remainder is the clusters' estimate. A sample of 64 draws
// misses heavy tokens more often than not (it is unbiased but skewed: half of the samples are about 10 % low or more), the second-order
// estimate misjudges whole heads; their weighted geometric mean has about half the error of the sample and at most about that of the
// estimate (docs/algorithm.md section 5). Without a variance model the estimate is biased low and the sample stands alone.
QUORUM_HOST_DEVICE constexpr float sample_trust(VarianceModel model) { return model == VarianceModel::none ? 1.0f : 1.0f / 3.0f; }

// The rest's weight by sample and estimate together (eq. 10). Disagreements beyond a factor of 8 count as 8.
QUORUM_HOST_DEVICE inline float believed_rest(SampledRest sampled, float estimated, float trust) {
  if (!(estimated > 0.0f) || trust >= 1.0f) return sampled.weight;
  const float ratio = sampled.weight / estimated;
  return estimated * std::pow(ratio < 0.125f ? 0.125f : ratio > 8.0f ? 8.0f : ratio, trust);
}

// An upper bound of the rest's weight: the larger of sample and estimate, plus z standard errors (eq. 11). The sample alone would not
// do: its standard error is small exactly when the heavy tokens were missed. Measured coverage on real traces at z = 1.645: 0.95.
QUORUM_HOST_DEVICE inline float rest_upper_bound(SampledRest sampled, float estimated, float z) {
  return (sampled.weight > estimated ? sampled.weight : estimated) + z * sampled.standard_error;
}

// Quantile of the standard normal distribution for a one-sided confidence in (0, 1); |error| < 1.2e-9 before rounding to float.
// Source: P. J. Acklam's rational approximation.
inline float normal_quantile(float confidence) {
  const double p = confidence;
  const double tail = 0.02425;
  if (p < tail || p > 1.0 - tail) {
    const double q = std::sqrt(-2.0 * std::log(p < tail ? p : 1.0 - p));
    const double x = (((((-7.784894002430293e-03 * q - 3.223964580411365e-01) * q - 2.400758277161838) * q - 2.549732539343734) * q +
                       4.374664141464968) *
                          q +
                      2.938163982698783) /
                     ((((7.784695709041462e-03 * q + 3.224671290700398e-01) * q + 2.445134137142996) * q + 3.754408661907416) * q + 1.0);
    return float(p < tail ? x : -x);
  }
  const double q = p - 0.5, r = q * q;
  return float((((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r + 1.383577518672690e+02) * r -
                 3.066479806614716e+01) *
                    r +
                2.506628277459239) *
               q /
               (((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r + 6.680131188771972e+01) * r -
                 1.328068155288572e+01) *
                    r +
                1.0));
}

}  // namespace quorum
