// A linear map of 16 rows by one block, in f32: a thread a coordinate. Rows and results lie in shared memory.
#pragma once

#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

template <int kHeadDim>
struct MappedRows {
  alignas(16) float from[kBuildRows][kHeadDim];
  alignas(16) float to[kBuildRows][kHeadDim];
};

// to[r] = sum of from[r][i] map[i] over i. map: [kHeadDim][kHeadDim], row i of it is where coordinate i goes. Ends with a barrier.
template <int kHeadDim>
__device__ __forceinline__ void apply_map(const float* map, MappedRows<kHeadDim>& s) {
  constexpr int kGroups = kBuildThreads / kHeadDim, kRows = kBuildRows / kGroups;
  static_assert(kRows * kGroups == kBuildRows);
  const int group = int(threadIdx.x) / kHeadDim, c = int(threadIdx.x) % kHeadDim;
  if (group < kGroups) {
    float sum[kRows] = {};
#pragma unroll 1
    for (int i = 0; i < kHeadDim; i += 4) {
      float factor[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) factor[k] = map[int64_t(i + k) * kHeadDim + c];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(&s.from[group * kRows + r][i]);
        sum[r] += x.x * factor[0] + x.y * factor[1] + x.z * factor[2] + x.w * factor[3];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) s.to[group * kRows + r][c] = sum[r];
  }
  __syncthreads();
}

// Largest magnitude of a row, by one warp.
template <int kHeadDim>
__device__ __forceinline__ float largest_magnitude(const float* row) {
  float largest = 0.0f;
  for (int c = int(threadIdx.x) % kWarpSize; c < kHeadDim; c += kWarpSize) largest = fmaxf(largest, fabsf(row[c]));
  return warp_max(largest);
}

}  // namespace quorum::cuda
