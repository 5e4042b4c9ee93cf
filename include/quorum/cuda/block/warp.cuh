// Sums and maxima over the lanes of a warp, in a fixed order.
#pragma once

#include "quorum/core/config.hpp"

namespace quorum::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;

// Every lane gets the sum over the lanes that differ from it in the bits kFrom, 2 kFrom, ... below kTo.
template <int kFrom = 1, int kTo = kWarpSize, class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int bit = kFrom; bit < kTo; bit *= 2) value += __shfl_xor_sync(kFullMask, value, bit);
  return value;
}

template <int kFrom = 1, int kTo = kWarpSize>
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int bit = kFrom; bit < kTo; bit *= 2) value = fmaxf(value, __shfl_xor_sync(kFullMask, value, bit));
  return value;
}

// Sum over this lane and the lanes below it.
template <class T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T below = __shfl_up_sync(kFullMask, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

}  // namespace quorum::cuda
