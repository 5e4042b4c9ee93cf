// Single rows of keys, values and queries by one warp, two neighbouring elements a lane at a time.
#pragma once

#include "quorum/core/element.hpp"
#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// Words of a row that a lane holds: elements 2 (lane + 32 i) and the next.
template <int kHeadDim>
inline constexpr int kPairsOfLane = (kHeadDim / 2 + kWarpSize - 1) / kWarpSize;

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < kInfinity; }

// Elements 2 pair and the next of a row in f16, bf16 or fp8_e4m3.
__device__ __forceinline__ float2 load_pair(const std::byte* row, ElementType type, int pair) {
  if (type == ElementType::fp8_e4m3) return unpack_f16(widen_fp8(reinterpret_cast<const uint16_t*>(row)[pair]));
  const uint32_t word = reinterpret_cast<const uint32_t*>(row)[pair];
  return type == ElementType::f16 ? unpack_f16(word) : unpack_bf16(word);
}

// The row's elements times `scale`, zeros beyond its end; all zeros if one of them is not finite. Returns whether all are. The whole warp
// calls it.
template <int kHeadDim>
__device__ __forceinline__ bool load_finite_row(const std::byte* row, ElementType type, float scale,
                                                float2 (&out)[kPairsOfLane<kHeadDim>]) {
  const int lane = int(threadIdx.x) % kWarpSize;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kPairsOfLane<kHeadDim>; ++i) {
    const int pair = i * kWarpSize + lane;
    const bool has = 2 * pair < kHeadDim;
    if (type == ElementType::f32)
      out[i] = has ? reinterpret_cast<const float2*>(row)[pair] : float2{};
    else
      out[i] = has ? load_pair(row, type, pair) : float2{};
    out[i].x *= scale;
    out[i].y *= scale;
    finite = finite && is_finite(out[i].x) && is_finite(out[i].y);
  }
  finite = __all_sync(kFullMask, finite) != 0;
#pragma unroll
  for (int i = 0; i < kPairsOfLane<kHeadDim>; ++i)
    if (!finite) out[i] = {0.0f, 0.0f};
  return finite;
}

}  // namespace quorum::cuda
