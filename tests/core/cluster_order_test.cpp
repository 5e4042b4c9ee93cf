// Buckets of the reading order.
#include "quorum/core/cluster_order.hpp"

#include <doctest/doctest.h>

#include <cmath>

using namespace quorum;

TEST_CASE("buckets ascend as shares fall and stay in range") {
  int previous = 0;
  for (float log_share = 2.0f; log_share > -40.0f; log_share -= 0.001f) {
    const int bucket = order_bucket(log_share);
    if (bucket < previous || bucket >= kNumOrderBuckets) {
      CAPTURE(log_share);
      CHECK(bucket >= previous);
      CHECK(bucket < kNumOrderBuckets);
    }
    previous = bucket;
  }
  CHECK(previous == kNumOrderBuckets - 1);
}

TEST_CASE("a bucket is 1/32 nat wide") {
  CHECK(order_bucket(0.0f) == 0);
  CHECK(order_bucket(-1.0f / 64) == 0);
  CHECK(order_bucket(-1.5f / 32) == 1);
  CHECK(order_bucket(-1.0f) == 32);
  CHECK(order_bucket(-10.25f) == 328);
  // Shares a bucket apart or more are never in the wrong order.
  for (float log_share = 0.0f; log_share > -31.0f; log_share -= 0.01f)
    CHECK(order_bucket(log_share) < order_bucket(log_share - 1.01f / 32));
}

TEST_CASE("edges: infinite and NaN shares") {
  CHECK(order_bucket(-kInfinity) == kNumOrderBuckets - 1);
  CHECK(order_bucket(-1e30f) == kNumOrderBuckets - 1);
  CHECK(order_bucket(kInfinity) == 0);
  CHECK(order_bucket(kNan) == 0);  // read first, never hidden
  CHECK(order_bucket(-kNan) == 0);
}
