// Buckets of keys: sixteenths of an octave, in order, with exact edges.
#include "quorum/core/token_order.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

constexpr int kLast = kNumKeyBuckets - 1;

}  // namespace

TEST_CASE("bucket_key is the smallest key of buckets up to this one: the float below it is in the next") {
  int wrong = 0;
  for (int bucket = 0; bucket < kLast; ++bucket) {
    const float key = bucket_key(bucket);
    wrong += key_bucket(key) != bucket;
    wrong += key_bucket(std::nextafter(key, kInfinity)) != bucket;
    wrong += key_bucket(std::nextafter(key, 0.0f)) != bucket + 1;
  }
  CHECK(wrong == 0);
  CHECK(key_bucket(bucket_key(kLast)) == kLast);
  CHECK(key_bucket(std::nextafter(bucket_key(kLast), 0.0f)) == kLast);  // nothing comes after the last one
}

TEST_CASE("keys at or above bucket_key are exactly those of buckets up to this one") {
  const uint64_t seed = 141;
  CAPTURE(seed);
  test::Random random(seed);
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    const float key = float(std::exp2(random.uniform(-40.0, 8.0)));
    const int bucket = random.below(kLast);
    wrong += (key >= bucket_key(bucket)) != (key_bucket(key) <= bucket);
  }
  CHECK(wrong == 0);
}

TEST_CASE("an octave has sixteen buckets of equal width, from 16 downwards") {
  for (int octave = 0; octave < kNumKeyBuckets / 16; ++octave) {
    const double top = std::ldexp(16.0, -octave), width = top / 32.0;
    int wrong = 0;
    for (int i = 0; i < 16; ++i) wrong += double(bucket_key(octave * 16 + i)) != top - i * width;
    CAPTURE(octave);
    CHECK(wrong == 0);
  }
  CHECK(key_bucket(1.0f) == 4 * 16);
  CHECK(key_bucket(1.06f) == 4 * 16);  // up to 17/16
  CHECK(key_bucket(17.0f / 16) == 4 * 16 - 1);
  CHECK(key_bucket(0.999f) == 4 * 16 + 1);
}

TEST_CASE("buckets never descend as keys fall, and stay in range") {
  const uint64_t seed = 142;
  CAPTURE(seed);
  test::Random random(seed);
  std::vector<float> keys{0.0f, kInfinity};
  for (int i = 0; i < 200000; ++i) keys.push_back(float(random.uniform() * std::exp2(random.uniform(-149.0, 127.0))));
  std::sort(keys.begin(), keys.end(), [](float a, float b) { return a > b; });
  int descents = 0, outside = 0, previous = 0;
  for (const float key : keys) {
    const int bucket = key_bucket(key);
    descents += bucket < previous;
    outside += bucket < 0 || bucket >= kNumKeyBuckets;
    previous = bucket;
  }
  CHECK(descents == 0);
  CHECK(outside == 0);
  CHECK(previous == kLast);
}

TEST_CASE("edges: zero and tiny keys are last, huge, infinite and NaN ones first") {
  static_assert(key_bucket(16.0f) == 0 && key_bucket(0.0f) == kLast && bucket_key(0) == 16.0f);
  for (const float key : {0.0f, 1e-45f, 1e-38f, 1e-30f, std::nextafter(0x1p-32f, 0.0f), 0x1p-32f}) {
    CAPTURE(key);
    CHECK(key_bucket(key) == kLast);
  }
  // The last bucket begins an eighth above 2^-32: it is the one that 2^-32 * 17/16 begins, and holds all that is smaller.
  CHECK(bucket_key(kLast) == 0x1.1p-32f);
  CHECK(key_bucket(0x1.2p-32f) == kLast - 1);
  CHECK(key_bucket(std::nextafter(0x1.2p-32f, 0.0f)) == kLast);
  for (const float key : {16.0f, 16.5f, 17.0f, 1e10f, std::numeric_limits<float>::max(), kInfinity, kNan, -kNan}) {
    CAPTURE(key);
    CHECK(key_bucket(key) == 0);  // looked at first, never hidden
  }
  CHECK(key_bucket(std::nextafter(16.0f, 0.0f)) == 1);
}
