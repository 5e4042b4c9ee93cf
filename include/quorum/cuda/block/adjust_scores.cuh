// What becomes of scores before they are weighed: soft-capping, and -inf where a column does not see a token (algorithm.md section 9).
#pragma once

#include "quorum/cuda/block/attend_tile.cuh"
#include "quorum/cuda/block/step.cuh"

namespace quorum::cuda {

// cap * tanh(score / cap), to some 1e-7 of the cap. NaN stays NaN.
__device__ __forceinline__ float soft_cap(float score, float cap) {
  const float t = exp2_approx(-2.0f * kLog2e * fabsf(score) / cap);  // of the magnitude, so that nothing overflows
  return copysignf(cap * (1.0f - t) / (1.0f + t), score);
}

// The same for the scores of a tile, in the layout of score_tile(); score and cap in the same unit.
template <int kHeadTiles>
__device__ __forceinline__ void soft_cap_tile(float (&score)[kHeadTiles][4], float cap) {
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 4; ++j) score[t][j] = soft_cap(score[t][j], cap);
}

// Takes tokens of a tile from the columns that do not see them. token: of place lane % 16. Costs a division a score: only where columns
// of a row differ or tokens have been erased.
template <int kHeadTiles>
__device__ __forceinline__ void mask_tile(const StepParams& p, int row, int token, float (&score)[kHeadTiles][4]) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const int low = __shfl_sync(kFullMask, token, lane / 4), high = __shfl_sync(kFullMask, token, lane / 4 + 8);
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const TokenFilter seen = p.seen_by(row, min(t * 8 + lane % 4 * 2 + j, p.group - 1));
      if (!seen.passes(low)) score[t][j] = -kInfinity;
      if (!seen.passes(high)) score[t][2 + j] = -kInfinity;
    }
}

}  // namespace quorum::cuda
