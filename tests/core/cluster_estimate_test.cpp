// The second-order estimate of a cluster's weight.
#include "quorum/core/cluster_estimate.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

TEST_CASE("score of the centroid plus half the variance") {
  CHECK(token_log_weight(1.5f, 4.0f, 0.25f) == 2.5f);
  CHECK(token_log_weight(-3.0f, 0.0f, 100.0f) == -3.0f);  // a cluster of equal keys
  CHECK(cluster_weight(16.0f, 0.5f) == 8.0f);
  CHECK(cluster_weight(0.0f, 0.5f) == 0.0f);
}

TEST_CASE("it is the mean weight of Gaussian scores, which the centroid alone under-estimates") {
  const uint64_t seed = 21;
  CAPTURE(seed);
  test::Random random(seed);
  // Scores with mean 0.7 and standard deviation 0.9: spread 1, half_query_variance 0.405.
  const int count = 200000;
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += std::exp(0.7 + 0.9 * random.gaussian());
  const double estimate = std::exp(double(token_log_weight(0.7f, 1.0f, 0.405f)));
  // The relative standard error of the mean is sqrt((exp(0.81) - 1) / count) = 0.0025; four of them.
  CHECK(test::near(sum / count, estimate, 0.01 * estimate));
  CHECK(std::exp(0.7) < 0.7 * estimate);
}

TEST_CASE("it works on any arithmetic type") { CHECK(token_log_weight(1.0, 2.0, 0.5) == 2.0); }

TEST_CASE("the limited half variance: as it is up to 3, then it grows with the standard deviation; no jump, no kink, never more") {
  for (const double v : {0.0, 0.5, 2.0, 3.0}) CHECK(limited_half_variance(v) == doctest::Approx(v));
  CHECK(limited_half_variance(12.0) == doctest::Approx(9.0));
  CHECK(limited_half_variance(3.0 + 1e-6) - limited_half_variance(3.0) == doctest::Approx(1e-6).epsilon(1e-3));
  for (double v = 0.0; v < 60.0; v += 0.25) {
    CHECK(limited_half_variance(v) <= v + 1e-12);
    CHECK(limited_half_variance(v + 0.25) > limited_half_variance(v));
  }
  CHECK(limited_token_log_weight(1.0, 8.0, 1.5) == doctest::Approx(10.0));
}

TEST_CASE("of few tokens with scores of large variance the mean weight is near the limited estimate, far below the full one") {
  const uint64_t seed = 22;
  CAPTURE(seed);
  test::Random random(seed);
  const double half_variance = 12.0, deviation = std::sqrt(2.0 * half_variance);
  double mean_log = 0.0;
  const int trials = 2000, tokens = 20;
  for (int trial = 0; trial < trials; ++trial) {
    double sum = 0.0;
    for (int i = 0; i < tokens; ++i) sum += std::exp(deviation * random.gaussian()) / tokens;
    mean_log += std::log(sum) / trials;
  }
  CHECK(std::fabs(mean_log - limited_half_variance(half_variance)) < 3.0);
  CHECK(mean_log < half_variance - 3.0);
}
