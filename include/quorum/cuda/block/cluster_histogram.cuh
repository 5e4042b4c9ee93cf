// Weights and tokens of a row's clusters by bucket of the reading order, and the places in that order where sums reach a value
// (algorithm.md eq. 6 and 7). Weights are shares of a head's total in steps of 2^-30: sums of integers do not depend on their order.
#pragma once

#include "quorum/core/cluster_order.hpp"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

inline constexpr float kShareUnit = 0x1p30f;

// Column g < group: shares of head g; column `group`: tokens. In shared memory.
struct ClusterHistogram {
  uint32_t* sums = nullptr;  // [group + 1][kNumOrderBuckets]

  static int64_t bytes(int group) { return int64_t(group + 1) * kNumOrderBuckets * 4; }
  __device__ __forceinline__ uint32_t* column(int g) const { return sums + g * kNumOrderBuckets; }
};

// A place in an order by one column: everything in buckets before `bucket` sums up to `before`, and the value that was asked for is reached
// within the bucket, or not at all if the bucket is the number of buckets.
template <class Sum>
struct BucketPlace {
  int32_t bucket = 0;
  Sum before = 0;
};
using OrderPlace = BucketPlace<uint32_t>;

// Where the column's sum first reaches `wanted` (at least 1), by one warp; every lane gets it.
template <int kNumBuckets = kNumOrderBuckets, class Sum>
__device__ __forceinline__ BucketPlace<Sum> find_place(const Sum* column, Sum wanted) {
  constexpr int kOfLane = kNumBuckets / kWarpSize;
  static_assert(kNumBuckets % kWarpSize == 0 && kOfLane <= kWarpSize, "a lane sums a run of buckets, and the lanes then share one run");
  const int lane = int(threadIdx.x) % kWarpSize;
  Sum own = 0;  // of the lane's run, each lane beginning at another bank
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) own += column[lane * kOfLane + (i + lane) % kOfLane];
  const Sum through_own = warp_inclusive_sum(own);
  const unsigned lanes = __ballot_sync(kFullMask, through_own >= wanted);
  if (lanes == 0) return {kNumBuckets, __shfl_sync(kFullMask, through_own, kWarpSize - 1)};
  const int first = __ffs(int(lanes)) - 1;
  const Sum before = __shfl_sync(kFullMask, through_own - own, first);
  const Sum value = lane < kOfLane ? column[first * kOfLane + lane] : Sum(0), through = before + warp_inclusive_sum(value);
  const int at = __ffs(int(__ballot_sync(kFullMask, through >= wanted))) - 1;
  return {first * kOfLane + at, __shfl_sync(kFullMask, through - value, at)};
}

}  // namespace quorum::cuda
