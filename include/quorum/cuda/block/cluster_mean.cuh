// Rows of the search in a warp's registers, and the mean of a cluster's: row after row, so that the sum is the same every time.
#pragma once

#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// Lane l holds coordinates 4 (l + 32 i) to 4 (l + 32 i) + 3; those beyond the last are zero.
template <int kHeadDim>
struct LaneRow {
  static constexpr int kWords = (kHeadDim / 4 + kWarpSize - 1) / kWarpSize;
  float x[kWords][4] = {};

  __device__ static __forceinline__ bool has(int i) { return i * kWarpSize + int(threadIdx.x) % kWarpSize < kHeadDim / 4; }
  __device__ static __forceinline__ int coordinate(int i) { return 4 * (i * kWarpSize + int(threadIdx.x) % kWarpSize); }

  // Row of a head, counted from its first indexed token.
  __device__ __forceinline__ void load(const BuildParams& p, int head, int row) {
    const int64_t at = head * p.padded_rows() + row;
    const float scale = p.workspace.constants[at].scale;
    const auto* words = reinterpret_cast<const uint32_t*>(p.workspace.rows + at * kHeadDim);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t word = has(i) ? words[coordinate(i) / 4] : 0u;
#pragma unroll
      for (int k = 0; k < 4; ++k) x[i][k] = scale * float(int8_t(word >> (8 * k)));
    }
  }
  // Largest magnitude of the whole row; every lane gets it.
  __device__ __forceinline__ float largest_magnitude() const {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kWords; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) largest = fmaxf(largest, fabsf(x[i][k]));
    return warp_max(largest);
  }
  // Calls f(element of this row, element of the other) for all that the lane holds.
  template <class F>
  __device__ __forceinline__ void combine(const LaneRow& other, F&& f) {
#pragma unroll
    for (int i = 0; i < kWords; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) f(x[i][k], other.x[i][k]);
  }
};

// tokens: of a cluster, positions in the sequence; zeros without any.
template <int kHeadDim>
__device__ __forceinline__ LaneRow<kHeadDim> cluster_mean(const BuildParams& p, int head, const int32_t* tokens, int count) {
  LaneRow<kHeadDim> sum, row;
#pragma unroll 4
  for (int n = 0; n < count; ++n) {
    row.load(p, head, tokens[n] - p.tokens.first);
    sum.combine(row, [](float& a, float b) { a += b; });
  }
  const float weight = 1.0f / float(count > 0 ? count : 1);
  sum.combine(sum, [&](float& a, float) { a *= weight; });
  return sum;
}

// Mean squared distance of the cluster's rows from their mean; every lane gets it. count > 0.
template <int kHeadDim>
__device__ __forceinline__ float cluster_spread(const BuildParams& p, int head, const int32_t* tokens, int count,
                                                const LaneRow<kHeadDim>& mean) {
  float sum = 0.0f;
#pragma unroll 2
  for (int n = 0; n < count; ++n) {
    LaneRow<kHeadDim> row;
    row.load(p, head, tokens[n] - p.tokens.first);
    row.combine(mean, [&](float a, float b) { sum = fmaf(a - b, a - b, sum); });
  }
  return warp_sum(sum) / float(count);
}

}  // namespace quorum::cuda
