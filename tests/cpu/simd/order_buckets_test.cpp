// Buckets of a block agree with the scalar rule for every input, the odd ones included.
#include "quorum/cpu/simd/order_buckets.hpp"

#include <doctest/doctest.h>

#include "tests/support/random.hpp"

using namespace quorum;

TEST_CASE("order buckets: the same integers as the scalar rule") {
  test::Random random(7);
  const float odd[] = {0.0f, -0.0f,      1.0f,    1e30f,  -1e30f,  -kInfinity, kInfinity,
                       kNan, -31.96875f, -31.97f, -32.0f, -1e-30f, -0.03125f,  -0.0312f};
  for (int trial = 0; trial < 2000; ++trial) {
    float shares[16];
    int32_t buckets[16];
    for (float& share : shares)
      share = random.uniform() < 0.2 ? odd[size_t(random.uniform() * std::size(odd))] : float(-40.0 * random.uniform() + 1.0);
    simd::order_buckets(shares, buckets);
    for (int i = 0; i < 16; ++i) {
      CAPTURE(shares[i]);
      CHECK(buckets[i] == order_bucket(shares[i]));
    }
  }
}
