// Sums over a block's threads in thread order. Two barriers and few instructions: kernels that run once are short of instruction fetches,
// not of arithmetic, and CUB's general scan is several times longer.
#pragma once

#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// Sum of the threads before this one; `total` gets that of all. warp_sums: shared memory for one T a warp. Ends with a barrier.
template <int kThreads, class T>
__device__ __forceinline__ T block_exclusive_sum(T value, T& total, T* warp_sums) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kWarps <= kWarpSize);
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const T through_own = warp_inclusive_sum(value);
  if (lane == kWarpSize - 1) warp_sums[warp] = through_own;
  __syncthreads();
  const T through = warp_inclusive_sum(lane < kWarps ? warp_sums[lane] : T(0));
  total = __shfl_sync(kFullMask, through, kWarps - 1);
  const T before = __shfl_sync(kFullMask, through, warp == 0 ? 0 : warp - 1);
  __syncthreads();
  return (warp == 0 ? T(0) : before) + through_own - value;
}

}  // namespace quorum::cuda
