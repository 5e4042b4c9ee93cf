// The order in which single tokens and candidate clusters are chosen: by share of the total weight, in buckets (algorithm.md eq. 14 and
// 15).
#pragma once

#include <bit>

#include "quorum/core/config.hpp"

namespace quorum {

// Keys are shares of weight per token, the largest over a group's heads. Buckets are sixteenths of an octave: the leading bits of a float.
// Weights and counts by bucket then give the tokens that a target needs without a sort; which bits of a key are dropped is far below what
// the estimates err by.
inline constexpr int kKeyBucketBits = 19;  // 4 bits of the mantissa are kept
inline constexpr int kNumKeyBuckets = 36 * 16;
inline constexpr uint32_t kTopKeyBits = std::bit_cast<uint32_t>(16.0f) >> kKeyBucketBits;

// Bucket of a key >= 0: 0 holds keys of 16 and above and NaN, the last one those below 9/8 * 2^-32, which are never worth a look.
QUORUM_HOST_DEVICE constexpr int key_bucket(float key) {
  const int below_top = int(kTopKeyBits) - int(std::bit_cast<uint32_t>(key) >> kKeyBucketBits);
  return below_top < 0 ? 0 : below_top < kNumKeyBuckets ? below_top : kNumKeyBuckets - 1;
}
// Smallest key of a bucket: keys at or above it are those of buckets [0, bucket], below the last bucket.
QUORUM_HOST_DEVICE constexpr float bucket_key(int bucket) {
  return std::bit_cast<float>((kTopKeyBits - uint32_t(bucket)) << kKeyBucketBits);
}

}  // namespace quorum
