// What becomes of scores before they are weighed: soft-capping, and -inf where a column does not see a token (algorithm.md section 9).
#pragma once

#include "quorum/cuda/block/attend_tile.cuh"
#include "quorum/cuda/block/step.cuh"

namespace quorum::cuda {

inline constexpr int32_t kNoToken = 0x7fffffff;  // beyond all that is seen

// cap * tanh(score / cap), to some 1e-6 of the cap. NaN stays NaN.
__device__ __forceinline__ float soft_cap(float score, float cap) {
  const float t = exp2_approx(__fdividef(-2.0f * kLog2e * fabsf(score), cap));  // of the magnitude, so that nothing overflows
  return copysignf(cap * __fdividef(1.0f - t, 1.0f + t), score);
}

// The same for the scores of a tile, in the layout of score_tile(); score and cap in the same unit.
template <int kHeadTiles>
__device__ __forceinline__ void soft_cap_tile(float (&score)[kHeadTiles][4], float cap) {
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 4; ++j) score[t][j] = soft_cap(score[t][j], cap);
}

// What the columns of a row see, in shared memory: no division is left for the loop over tiles.
struct ColumnRange {
  int32_t begin, end;
};
// By the whole block; a barrier must follow.
__device__ __forceinline__ void load_column_ranges(const StepParams& p, int row, int num_columns, ColumnRange* ranges) {
  if (int(threadIdx.x) >= num_columns) return;
  const TokenFilter seen = p.seen_by(row, min(int(threadIdx.x), p.group - 1));
  ranges[threadIdx.x] = {seen.begin, seen.end};
}

// Takes tokens of a tile from the columns that do not see them. token: of place lane % 16. live: bits of the first num_live tokens, or
// null.
template <int kHeadTiles>
__device__ __forceinline__ void mask_tile(const ColumnRange* ranges, const uint64_t* live, int num_live, int token,
                                          float (&score)[kHeadTiles][4]) {
  const int lane = int(threadIdx.x) % kWarpSize;
  if (live != nullptr && token < num_live && !bit_of(live, token)) token = kNoToken;
  const int low = __shfl_sync(kFullMask, token, lane / 4), high = __shfl_sync(kFullMask, token, lane / 4 + 8);
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const ColumnRange range = ranges[t * 8 + lane % 4 * 2 + j];
      if (low < range.begin || low >= range.end) score[t][j] = -kInfinity;
      if (high < range.begin || high >= range.end) score[t][2 + j] = -kInfinity;
    }
}

}  // namespace quorum::cuda
