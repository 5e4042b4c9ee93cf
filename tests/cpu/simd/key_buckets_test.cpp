// Buckets of sixteen keys at once: the scalar rule's numbers, exact sums by bucket, and the lanes above one.
#include "quorum/cpu/simd/key_buckets.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "tests/support/random.hpp"

using namespace quorum;

namespace {

constexpr uint16_t kSentinel = 54321;

// Keys whose bucket is not the scalar rule's, and writes beyond the sixteen.
int differences(std::vector<float> keys) {
  keys.resize(size_t(round_up(int64_t(keys.size()), 16)), 0.5f);
  int count = 0;
  for (size_t i = 0; i < keys.size(); i += 16) {
    uint16_t buckets[18];  // one before and one after
    buckets[0] = buckets[17] = kSentinel;
    simd::key_buckets(keys.data() + i, buckets + 1);
    for (size_t lane = 0; lane < 16; ++lane) count += int(buckets[lane + 1]) != key_bucket(keys[i + lane]);
    count += buckets[0] != kSentinel || buckets[17] != kSentinel;
  }
  return count;
}

// Adds blocks of `count` entries for G heads to sums that hold something already, and compares with sums in double. Weights are multiples
// of 2^-10 below 1, so that sums in float are exact. Returns the number of wrong sums; the columns of other heads must stay as they were.
template <int G>
int wrong_bucket_sums(int count, int row_stride, int column, int num_used_buckets, test::Random& random) {
  std::vector<float> sums(size_t(kNumKeyBuckets * row_stride));
  for (float& sum : sums) sum = float(random.below(1024)) * 0x1p-10f;
  std::vector<double> want(sums.begin(), sums.end());
  for (int block = 0; block < 20; ++block) {
    uint16_t buckets[16];
    float weights[G * 16] = {};
    for (uint16_t& bucket : buckets) {
      const int used = random.below(num_used_buckets);
      bucket = uint16_t(used % 2 == 0 ? used / 2 : kNumKeyBuckets - 1 - used / 2);  // from both ends
    }
    for (int g = 0; g < G; ++g)
      for (int i = 0; i < count; ++i) {
        weights[g * 16 + i] = float(random.below(1024)) * 0x1p-10f;
        want[size_t(buckets[i] * row_stride + column + g)] += double(weights[g * 16 + i]);
      }
    simd::add_to_buckets<G>(buckets, weights, count, sums.data() + column, row_stride);
  }
  int wrong = 0;
  for (size_t i = 0; i < sums.size(); ++i) wrong += double(sums[i]) != want[i];
  return wrong;
}

int wrong_lanes(const uint16_t* buckets, int bucket) {
  const uint32_t lanes = simd::lanes_up_to(buckets, bucket);
  int wrong = (lanes >> 16) != 0;
  for (int i = 0; i < 16; ++i) wrong += ((lanes >> i & 1) != 0) != (int(buckets[i]) <= bucket);
  return wrong;
}

}  // namespace

TEST_CASE("numbers of buckets at every edge, and of keys outside of all") {
  std::vector<float> keys;
  for (int bucket = 0; bucket < kNumKeyBuckets; ++bucket) {
    const float edge = bucket_key(bucket);
    for (const float key : {edge, std::nextafter(edge, 100.0f), std::nextafter(edge, 0.0f)}) keys.push_back(key);
  }
  CHECK(differences(keys) == 0);
  CHECK(differences({0.0f, 1e-45f, 1e-38f, 1e-30f, 0x1p-32f, 16.0f, 17.0f, 1e10f, std::numeric_limits<float>::max(), kInfinity, kNan, -kNan,
                     1.0f, std::bit_cast<float>(0x7f800001u), std::bit_cast<float>(0xffffffffu), 0.5f}) == 0);
}

TEST_CASE("numbers of buckets of random keys, of the sizes that occur and of any bits") {
  const uint64_t seed = 161;
  CAPTURE(seed);
  test::Random random(seed);
  std::vector<float> keys;
  for (int i = 0; i < 64000; ++i) keys.push_back(float(std::exp2(random.uniform(-36.0, 6.0))));
  for (int i = 0; i < 64000; ++i) keys.push_back(std::bit_cast<float>(uint32_t(random.bits()) & 0x7fffffffu));  // NaN among them
  CHECK(differences(keys) == 0);
}

TEST_CASE("sums by bucket are exact, for any count, stride and number of entries in one bucket") {
  const uint64_t seed = 162;
  CAPTURE(seed);
  test::Random random(seed);
  for (int count = 1; count <= 16; ++count)
    for (const int used : {1, 2, 5, kNumKeyBuckets})  // 1: all entries in the first bucket
      for (const int stride : {4, 8})
        for (int column = 0; column < stride; column += 4) {
          CAPTURE(count);
          CAPTURE(used);
          CAPTURE(stride);
          CAPTURE(column);
          CHECK(wrong_bucket_sums<1>(count, stride, column, used, random) == 0);
          CHECK(wrong_bucket_sums<2>(count, stride, column, used, random) == 0);
          CHECK(wrong_bucket_sums<3>(count, stride, column, used, random) == 0);
          CHECK(wrong_bucket_sums<4>(count, stride, column, used, random) == 0);
        }
}

TEST_CASE("no entries: no sum changes") {
  std::vector<float> sums(size_t(kNumKeyBuckets * 4), 3.0f);
  const uint16_t buckets[16] = {};
  const float weights[4 * 16] = {};
  simd::add_to_buckets<4>(buckets, weights, 0, sums.data(), 4);
  CHECK(sums == std::vector<float>(sums.size(), 3.0f));
}

TEST_CASE("lanes up to a bucket, for every bucket and none") {
  const uint64_t seed = 163;
  CAPTURE(seed);
  test::Random random(seed);
  uint16_t own[17], *buckets = own + 1;  // not aligned
  int wrong = 0;
  for (int bucket = -1; bucket < kNumKeyBuckets; ++bucket) {
    for (int i = 0; i < 16; ++i) buckets[i] = uint16_t(random.below(kNumKeyBuckets));
    wrong += wrong_lanes(buckets, bucket);
    for (int i = 0; i < 16; ++i) buckets[i] = uint16_t(std::min(std::max(bucket - 8 + i, 0), kNumKeyBuckets - 1));  // on both sides
    wrong += wrong_lanes(buckets, bucket);
    for (int lane = 0; lane < 16; ++lane) {  // one lane alone
      for (int i = 0; i < 16; ++i) buckets[i] = uint16_t(i == lane ? std::max(bucket, 0) : kNumKeyBuckets - 1);
      wrong += wrong_lanes(buckets, bucket);
    }
  }
  CHECK(wrong == 0);
  for (int i = 0; i < 16; ++i) buckets[i] = uint16_t(i % 2 == 0 ? 0 : kNumKeyBuckets - 1);
  CHECK(simd::lanes_up_to(buckets, -1) == 0);
  CHECK(simd::lanes_up_to(buckets, 0) == 0x5555);
  CHECK(simd::lanes_up_to(buckets, kNumKeyBuckets - 2) == 0x5555);
  CHECK(simd::lanes_up_to(buckets, kNumKeyBuckets - 1) == 0xffff);
}

TEST_CASE("lanes of keys at or above a threshold; a NaN key reaches none") {
  const uint64_t seed = 29;
  CAPTURE(seed);
  test::Random random(seed);
  for (int round = 0; round < 200; ++round) {
    float keys[16];
    for (float& key : keys) key = float(random.below(8));
    keys[random.below(16)] = std::bit_cast<float>(0x7fc00000u);
    const float threshold = float(random.below(10));
    uint32_t want = 0;
    for (int i = 0; i < 16; ++i) want |= uint32_t(keys[i] >= threshold) << i;
    CHECK(simd::lanes_at_least(keys, threshold) == want);
  }
}

TEST_CASE("lanes are listed in order, and nothing further than sixteen entries is written") {
  const uint64_t seed = 29;
  CAPTURE(seed);
  test::Random random(seed);
  for (int round = 0; round < 200; ++round) {
    const uint32_t lanes = round == 0 ? 0u : round == 1 ? 0xffffu : uint32_t(random.below(65536));
    int32_t out[17];
    out[16] = -1;
    REQUIRE(simd::list_lanes(lanes, 480, out) == std::popcount(lanes));
    int at = 0;
    for (int i = 0; i < 16; ++i)
      if ((lanes >> i & 1) != 0) CHECK(out[at++] == 480 + i);
    CHECK(out[16] == -1);
  }
}

TEST_CASE("sums over the wanted lanes, for some heads; what the others hold does not matter") {
  const uint64_t seed = 29;
  CAPTURE(seed);
  test::Random random(seed);
  for (int round = 0; round < 200; ++round) {
    const uint32_t lanes = round == 0 ? 0u : round == 1 ? 0xffffffffu : uint32_t(random.below(65536));
    f16 values[3 * 16];
    double want[3];
    simd::Vector sums[3];
    for (int g = 0; g < 3; ++g) {
      sums[g] = simd::Vector(0.5f);
      want[g] = 0.5 * simd::kVectorSize;
      for (int i = 0; i < 16; ++i) {
        const bool wanted = (lanes >> i & 1) != 0;
        values[g * 16 + i] = from_float<f16>(wanted ? float(random.uniform()) : kNan);
        if (wanted) want[g] += double(to_float(values[g * 16 + i]));
      }
    }
    simd::add_lanes<3>(values, lanes, sums);
    for (int g = 0; g < 3; ++g) CHECK(!(std::fabs(double(simd::reduce_add(sums[g])) - want[g]) > 1e-5));
  }
}
