// Weights and counts by key bucket, the order in which candidates and single tokens are chosen (algorithm.md eq. 14 and 15). As in the
// histogram of whole clusters, weights are shares of a head's total in steps of 2^-30: sums of integers do not depend on their order.
#pragma once

#include "quorum/core/options.hpp"
#include "quorum/core/token_order.hpp"
#include "quorum/cuda/block/cluster_histogram.cuh"

namespace quorum::cuda {

// Columns of sums by key bucket; which columns there are is a matter of whoever fills them.
template <class Sum>
struct KeyHistogram {
  Sum* sums = nullptr;  // [columns][kNumKeyBuckets]

  static constexpr int64_t bytes(int columns) { return int64_t(columns) * kNumKeyBuckets * int64_t(sizeof(Sum)); }
  __device__ __forceinline__ Sum* column(int c) const { return sums + c * kNumKeyBuckets; }
};

// The last bucket holds what is never worth a look: a threshold ends before it.
inline constexpr int kLastKeyBucket = kNumKeyBuckets - 2;

// Unit of what the scan of codes adds up: expected weights, or squared ones where an error is wanted, which are smaller.
inline constexpr float kSquareUnit = 0x1p40f;
QUORUM_HOST_DEVICE constexpr float token_unit(const DecodeOptions& options) {
  return options.target_error > 0.0f ? kSquareUnit : kShareUnit;
}

// Steps that a share of the total is: more than a word holds if codes flatter a token. Bounded so that sums stay in 64 bits.
__device__ __forceinline__ unsigned long long share_steps(float share, float unit) {
  const float steps = share > 0.0f ? rintf(fminf(share * unit, 0x1p46f)) : 0.0f;
  return steps < 0x1p31f ? static_cast<unsigned long long>(uint32_t(steps)) : static_cast<unsigned long long>(steps);
}

// The highest threshold at which a column has `wanted`: its bucket, -1 if nothing is wanted; by one warp, every lane gets it.
template <class Sum>
__device__ __forceinline__ int find_threshold(const Sum* column, Sum wanted) {
  if (wanted == 0) return -1;
  return min(find_place<kNumKeyBuckets>(column, wanted).bucket, kLastKeyBucket);
}

// Sum of a column over buckets [0, bucket], by one warp; every lane gets it.
template <class Sum>
__device__ __forceinline__ Sum sum_through(const Sum* column, int bucket) {
  Sum sum = 0;
#pragma unroll 4
  for (int i = int(threadIdx.x) % kWarpSize; i <= bucket; i += kWarpSize) sum += column[i];
  return warp_sum(sum);
}

}  // namespace quorum::cuda
