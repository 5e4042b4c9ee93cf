// The sampled certificate: quantiles, draw weights, and that a stratified sum is unbiased with an honest error.
#include "quorum/core/certificate.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

TEST_CASE("quantiles of the standard normal distribution") {
  // Tables: NIST/SEMATECH e-Handbook, and the usual one-sided values.
  const double table[][2] = {{0.5, 0.0},         {0.6, 0.2533471},  {0.75, 0.6744898},  {0.9, 1.2815516},    {0.95, 1.6448536},
                             {0.975, 1.9599640}, {0.99, 2.3263479}, {0.999, 3.0902323}, {0.9999, 3.7190165}, {0.99999, 4.2648908}};
  for (const auto& row : table) {
    const double confidence = row[0], quantile = row[1];
    CAPTURE(confidence);
    // Rounding of the confidence to float, by the density at the quantile, and of the quantile.
    const double tolerance = 6e-8 / (0.3989423 * std::exp(-quantile * quantile / 2.0)) + 4e-7;
    CHECK(test::near(normal_quantile(float(confidence)), quantile, tolerance));
    CHECK(test::near(normal_quantile(float(1.0 - confidence)), -quantile, tolerance));
  }
}

TEST_CASE("quantiles invert the distribution function and ascend") {
  float previous = -kInfinity;
  for (float p = 0.0005f; p < 1.0f; p += 0.0005f) {
    const float z = normal_quantile(p);
    if (!(z > previous) || !test::near(0.5 * std::erfc(-double(z) / std::sqrt(2.0)), double(p), 1e-6)) {
      CAPTURE(p);
      CHECK(z > previous);
      CHECK(test::near(0.5 * std::erfc(-double(z) / std::sqrt(2.0)), double(p), 1e-6));
    }
    previous = z;
  }
}

TEST_CASE("draw probabilities are a defensive mixture that sums to one") {
  const double shares[4] = {0.7, 0.2, 0.1, 0.0}, sizes[4] = {1.0, 9.0, 40.0, 50.0};
  const DrawRule rule = draw_rule(1.0, 100.0);
  double sum = 0.0;
  for (int j = 0; j < 4; ++j) {
    const double probability = rule.probability(shares[j], sizes[j]);
    CHECK(probability >= (1.0 - double(kDrawByEstimate)) * sizes[j] / 100.0);  // however small its estimate
    sum += probability;
  }
  CHECK(test::near(sum, 1.0, 1e-12));
  // Without any estimate draws go by count alone; without anything there is nothing to draw.
  CHECK(draw_rule(0.0, 100.0).probability(0.0, 5.0) == doctest::Approx(0.05));
  CHECK(draw_rule(0.0, 0.0).probability(0.5, 5.0) == 0.0);
}

TEST_CASE("believed rest: between sample and estimate, the sample alone without a variance model") {
  const float trust = sample_trust(VarianceModel::shared);
  CHECK(believed_rest({2.0f, 0.1f}, 2.0f, trust) == doctest::Approx(2.0));
  CHECK(believed_rest({1.0f, 0.1f}, 8.0f, 1.0f / 3.0f) == doctest::Approx(4.0));     // 8^(2/3) * 1^(1/3)
  CHECK(believed_rest({1000.0f, 0.1f}, 1.0f, 1.0f / 3.0f) == doctest::Approx(2.0));  // a disagreement counts as 8 at most
  CHECK(believed_rest({0.0f, 0.0f}, 1.0f, 1.0f / 3.0f) == doctest::Approx(0.5));
  CHECK(believed_rest({3.0f, 0.1f}, 0.0f, trust) == 3.0f);
  CHECK(believed_rest({3.0f, 0.1f}, 1.0f, sample_trust(VarianceModel::none)) == 3.0f);
}

TEST_CASE("upper bound of the rest: the larger of sample and estimate, and z standard errors") {
  CHECK(rest_upper_bound({2.0f, 0.5f}, 1.0f, 2.0f) == 3.0f);
  CHECK(rest_upper_bound({1.0f, 0.5f}, 2.0f, 2.0f) == 3.0f);
}

TEST_CASE("stratified sums: hand-computed") {
  StratifiedSum none;
  CHECK(none.result().weight == 0.0f);
  StratifiedSum one;
  one.add(2.0f);
  CHECK(one.result().weight == 2.0f);
  CHECK(one.result().standard_error == 2.0f);  // nothing is known of the error: all of it
  StratifiedSum three;
  for (const float x : {1.0f, 3.0f, 2.0f}) three.add(x);
  CHECK(three.result().weight == 6.0f);
  // sqrt(3 / (2 * 2) * (4 + 1))
  CHECK(test::near(three.result().standard_error, std::sqrt(3.75), 1e-6));
  StratifiedSum equal;
  for (int i = 0; i < 64; ++i) equal.add(0.5f);
  CHECK(equal.result().standard_error == 0.0f);
}

TEST_CASE("a stratified importance sample is unbiased, and its error neither too small nor vastly too large") {
  const uint64_t seed = 41;
  CAPTURE(seed);
  test::Random random(seed);
  // Items with weights that fall off, drawn with the estimate's probabilities, which are off by up to a factor of two.
  constexpr int kItems = 2000, kSamples = 64, kTrials = 4000;
  std::vector<double> weight(kItems), probability(kItems);
  double total = 0.0, total_probability = 0.0;
  for (int i = 0; i < kItems; ++i) {
    weight[size_t(i)] = std::exp(-6.0 * i / kItems) * random.uniform(0.5, 1.5);
    total += weight[size_t(i)];
    probability[size_t(i)] = std::exp(-6.0 * i / kItems) * random.uniform(0.7, 1.4) + 0.02;
    total_probability += probability[size_t(i)];
  }
  double mean = 0.0, mean_square = 0.0, mean_variance = 0.0;
  int covered = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    StratifiedSum sum;
    double cumulative = probability[0];
    int item = 0;
    for (int s = 0; s < kSamples; ++s) {
      const double point = (s + random.uniform()) / kSamples * total_probability;
      while (cumulative < point && item + 1 < kItems) cumulative += probability[size_t(++item)];
      sum.add(float(weight[size_t(item)] * total_probability / probability[size_t(item)] / kSamples));
    }
    const SampledRest rest = sum.result();
    mean += double(rest.weight) / kTrials;
    mean_square += double(rest.weight) * double(rest.weight) / kTrials;
    mean_variance += double(rest.standard_error) * double(rest.standard_error) / kTrials;
    covered += double(rest.weight) + 1.645 * double(rest.standard_error) >= total;
  }
  const double variance = mean_square - mean * mean;
  CHECK(test::near(mean, total, 5.0 * std::sqrt(variance / kTrials)));
  CHECK(mean_variance > 0.9 * variance);
  CHECK(mean_variance < 2.0 * variance);
  // 0.95 is stated; binomial standard deviation over the trials 0.0034, and a little for the normal approximation.
  CHECK(double(covered) / kTrials > 0.94);
}

TEST_CASE("the bound on the rest is no less than sample and estimate and grows with z") {
  const SampledRest rest{1.0f, 0.25f};
  for (const float estimated : {0.0f, 0.5f, 1.0f, 3.0f}) {
    CAPTURE(estimated);
    CHECK(rest_upper_bound(rest, estimated, 0.0f) >= rest.weight);
    CHECK(rest_upper_bound(rest, estimated, 0.0f) >= estimated);
    CHECK(rest_upper_bound(rest, estimated, 2.0f) > rest_upper_bound(rest, estimated, 1.0f));
  }
  CHECK(rest_upper_bound(rest, 0.5f, 2.0f) == 1.5f);
}

TEST_CASE("the believed rest lies between sample and estimate, unless one of them is absurd") {
  for (const float sampled : {0.3f, 1.0f, 2.5f})
    for (const float estimated : {0.5f, 1.0f, 2.0f}) {
      const float believed = believed_rest({sampled, 0.1f}, estimated, 0.5f);
      CHECK(believed >= std::min(sampled, estimated) * 0.9999f);
      CHECK(believed <= std::max(sampled, estimated) * 1.0001f);
    }
  CHECK(believed_rest({0.7f, 0.1f}, 2.0f, 1.0f) == 0.7f);  // full trust
  CHECK(believed_rest({0.7f, 0.1f}, 0.0f, 0.5f) == 0.7f);  // no estimate
  CHECK(believed_rest({0.0f, 0.0f}, 1.0f, 0.5f) > 0.0f);   // a sample that missed everything does not make the rest vanish
  CHECK(sample_trust(VarianceModel::none) == 1.0f);        // that estimate is biased
}

TEST_CASE("stratified rest: by sums what StratifiedSum says one by one") {
  StratifiedSum one_by_one;
  float sum = 0.0f, differences = 0.0f, last = 0.0f;
  for (int i = 0; i < 9; ++i) {
    const float own = float(i * i % 7) + 0.5f;
    one_by_one.add(own);
    sum += own;
    if (i > 0) differences += (own - last) * (own - last);
    last = own;
  }
  CHECK(stratified_rest(sum, differences, 9).weight == one_by_one.result().weight);
  CHECK(stratified_rest(sum, differences, 9).standard_error == one_by_one.result().standard_error);
  CHECK(stratified_rest(2.0f, 0.0f, 1).standard_error == 2.0f);  // a single draw says nothing of its error
}
