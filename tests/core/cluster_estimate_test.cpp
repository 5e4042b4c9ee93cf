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
