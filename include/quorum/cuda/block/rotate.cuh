// The fixed orthogonal mixing of coordinates, quorum::simd::rotate on a device: signs, then Hadamard transforms, by one warp.
#pragma once

#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// Unnormalised Walsh-Hadamard transform of kSize elements in shared memory by one warp.
template <int kSize>
__device__ __forceinline__ void hadamard(float* x) {
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll 1
  for (int half = kSize / 2; half >= 1; half /= 2) {
#pragma unroll
    for (int pair = lane; pair < kSize / 2; pair += kWarpSize) {
      const int i = 2 * pair - (pair & (half - 1));
      const float a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
    __syncwarp();
  }
}

// x = rotation(signs * x) by one warp, as quorum::simd::rotate: two overlapping transforms where kHeadDim is no power of two.
template <int kHeadDim>
__device__ __forceinline__ void rotate(float* x, const float* signs) {
  constexpr int kPower = kHeadDim >= 256 ? 256 : kHeadDim >= 128 ? 128 : 64;
  const int lane = int(threadIdx.x) % kWarpSize;
  const float norm = rsqrtf(float(kPower));
  for (int c = lane; c < kHeadDim; c += kWarpSize) x[c] *= signs[c] * (c < kPower ? norm : 1.0f);
  __syncwarp();
  hadamard<kPower>(x);
  if constexpr (kPower != kHeadDim) {
    float* back = x + kHeadDim - kPower;
    for (int c = lane; c < kPower; c += kWarpSize) back[c] *= norm * signs[c];
    __syncwarp();
    hadamard<kPower>(back);
  }
}

}  // namespace quorum::cuda
