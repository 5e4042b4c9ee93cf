// Buckets of sixteen clusters at once: the same integers as the scalar rule.
#include "quorum/cpu/simd/order_buckets.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/random.hpp"

using namespace quorum;

namespace {

int differences(const std::vector<float>& shares) {
  int count = 0;
  for (size_t i = 0; i + 16 <= shares.size(); i += 16) {
    int32_t buckets[16];
    simd::order_buckets(shares.data() + i, buckets);
    for (size_t lane = 0; lane < 16; ++lane) count += buckets[lane] != order_bucket(shares[i + lane]);
  }
  return count;
}

}  // namespace

TEST_CASE("on a fine grid and at every bucket's edge") {
  std::vector<float> shares;
  for (float share = 3.0f; share > -40.0f; share -= 0.0005f) shares.push_back(share);
  for (int bucket = 0; bucket <= kNumOrderBuckets + 1; ++bucket) {
    const float edge = -float(bucket) / float(kOrderBucketsPerNat);
    for (const float x : {edge, std::nextafter(edge, 1.0f), std::nextafter(edge, -100.0f)}) shares.push_back(x);
  }
  shares.resize(shares.size() / 16 * 16 + 16, 0.0f);
  CHECK(differences(shares) == 0);
}

TEST_CASE("infinities, NaN, zeros, extremes") {
  CHECK(differences({kNan, -kNan, kInfinity, -kInfinity, 0.0f, -0.0f, 3.4e38f, -3.4e38f, 1e-45f, -1e-45f, 1.0f, -1.0f, kNan, 2.0f, -2.0f,
                     kNan}) == 0);
}

TEST_CASE("random floats of all sizes") {
  const uint64_t seed = 55;
  CAPTURE(seed);
  test::Random random(seed);
  std::vector<float> shares(16000);
  for (float& share : shares) share = float(random.uniform(-1.0, 1.0) * std::exp2(random.uniform(-140.0, 127.0)));
  CHECK(differences(shares) == 0);
}
