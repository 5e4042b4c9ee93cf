// Attention of a group's query heads over tiles of 16 tokens by one warp, on tensor cores, with an online softmax.
//
// Scores come transposed, tokens by heads: 8 heads fill the narrow side of the instruction, and a group of 4 wastes half of it where heads
// by tokens would waste three quarters. A lane holds the same two heads of every 8 in scores, weights and output, so that rescaling needs
// no exchange: head 8 t + 2 (lane % 4) + j.
#pragma once

#include "quorum/core/attention_state.hpp"
#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

inline constexpr int kTileTokens = 16;

// Rows of a tile in shared memory: 16 bytes more than they hold, so that the same place of 8 rows lies in different banks.
template <int kHeadDim>
inline constexpr int kTileStride = kHeadDim + 8;  // in elements of 2 bytes
template <int kHeadDim>
inline constexpr int kTileElements = kTileTokens* kTileStride<kHeadDim>;

// Scores of a tile: score[t][2 i + j] is that of token lane / 4 + 8 i and head 8 t + 2 (lane % 4) + j. queries: [8 kHeadTiles] rows of
// kTileStride, in shared memory like the keys.
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void score_tile(const T* keys, const T* queries, float (&score)[kHeadTiles][4]) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const T* row = keys + (lane % 16) * kTileStride<kHeadDim> + lane / 16 * 8;
  const T* query = queries + (lane % 8) * kTileStride<kHeadDim> + lane / 8 * 8;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) score[t][i] = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeadDim / 32; ++k) {
    uint32_t key[2][4];
    ldmatrix_x4(key[0], row + k * 32);
    ldmatrix_x4(key[1], row + k * 32 + 16);
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) {
      uint32_t q[4];
      ldmatrix_x4(q, query + t * 8 * kTileStride<kHeadDim> + k * 32);
      const uint32_t low[2] = {q[0], q[1]}, high[2] = {q[2], q[3]};
      mma_m16n8k16<T>(score[t], key[0], low);
      mma_m16n8k16<T>(score[t], key[1], high);
    }
  }
}

// Maximum, sum and weighted values of all tiles so far.
template <int kHeadDim, int kHeadTiles>
struct TileState {
  float max[kHeadTiles][2];                    // of scores in units of log2(e)
  float sum[kHeadTiles][2];                    // the lane's tokens only
  float output[kHeadDim / 16][kHeadTiles][4];  // coordinates lane / 4 + 8 i of every 16

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        max[t][j] = -kInfinity;
        sum[t][j] = 0.0f;
      }
#pragma unroll
      for (int m = 0; m < kHeadDim / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) output[m][t][i] = 0.0f;
    }
  }
};

// output += values^T weights, for weights as operands: weight[t][i] holds tokens 8 i + 2 (lane % 4), +1 of head 8 t + lane / 4.
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void accumulate_tile(const T* values, const uint32_t (&weight)[kHeadTiles][2],
                                                TileState<kHeadDim, kHeadTiles>& state) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const T* row = values + (lane % 8 + lane / 16 * 8) * kTileStride<kHeadDim> + lane / 8 % 2 * 8;
#pragma unroll
  for (int m = 0; m < kHeadDim / 16; ++m) {
    uint32_t value[4];
    ldmatrix_x4_trans(value, row + m * 16);
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) mma_m16n8k16<T>(state.output[m][t], value, weight[t]);
  }
}

// Weights of a tile's scores, in place, relative to the new maximum; sum and output are brought to it. Score and maximum are in units of
// log2(e). As long as all scores of a head were -inf, nothing enters.
template <int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void weigh_tile(float (&score)[kHeadTiles][4], TileState<kHeadDim, kHeadTiles>& state) {
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float max = fmaxf(state.max[t][j], warp_max<4>(fmaxf(score[t][j], score[t][2 + j])));
      const float unit = max == -kInfinity ? 0.0f : max;  // -inf less -inf would be NaN
      const float factor = exp2_approx(state.max[t][j] - unit);
      state.max[t][j] = max;
      score[t][j] = exp2_approx(score[t][j] - unit);
      score[t][2 + j] = exp2_approx(score[t][2 + j] - unit);
      state.sum[t][j] = state.sum[t][j] * factor + score[t][j] + score[t][2 + j];
      if (factor != 1.0f) {
#pragma unroll
        for (int m = 0; m < kHeadDim / 16; ++m) {
          state.output[m][t][j] *= factor;
          state.output[m][t][2 + j] *= factor;
        }
      }
    }
}

// Weights from the layout of scores to that of operands.
template <class T, int kHeadTiles>
__device__ __forceinline__ void pack_weights(const float (&score)[kHeadTiles][4], uint32_t (&weight)[kHeadTiles][2]) {
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int i = 0; i < 2; ++i) weight[t][i] = movmatrix_trans(pack<T>(score[t][2 * i], score[t][2 * i + 1]));
}

}  // namespace quorum::cuda
