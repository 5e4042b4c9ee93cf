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

// Elements in 16 bytes, what a lane copies and names to ldmatrix.
template <class T>
inline constexpr int kPieceElements = 16 / int(sizeof(T));

// Rows of a tile in shared memory: 16 bytes more than they hold, so that the same place of 8 rows lies in different banks.
template <class T, int kHeadDim>
inline constexpr int kTileStride = kHeadDim + kPieceElements<T>;
template <class T, int kHeadDim>
inline constexpr int kTileElements = kTileTokens* kTileStride<T, kHeadDim>;

// What a type of keys and values becomes for the tensor cores. fp8_e4m3 fits into f16 without loss, so that queries and weights need not be
// rounded to 3 bits; its bytes come in pairs where 2-byte elements come alone, which permutes coordinates (see each function).
template <class T>
struct TileOperand {
  using Type = T;
};
template <>
struct TileOperand<fp8_e4m3> {
  using Type = f16;
};
template <class T>
using Operand = typename TileOperand<T>::Type;

// Where coordinate c of a query, and the next, lie in its row of shared memory.
template <class T>
QUORUM_HOST_DEVICE constexpr int query_place(int c) {
  if (sizeof(T) == 2) return c;
  return c / 16 * 16 + c / 2 % 2 * 8 + c % 16 / 4 * 2;  // pairs 0, 1, 2, 3 .. of 16 go to 0, 4, 1, 5 ..
}

// 16 keys as operands: coordinates [0, 16) and [16, 32) from the lane's row and piece on.
template <class T>
__device__ __forceinline__ void load_keys(const T* piece, uint32_t (&key)[2][4]) {
  if constexpr (sizeof(T) == 2) {
    ldmatrix_x4(key[0], piece);
    ldmatrix_x4(key[1], piece + 16);
  } else {  // a word has coordinates 4 l, .. of 16 for lane l of 4: the first two stand at 2 l, 2 l + 1, the others 8 further
    uint32_t bytes[4];
    ldmatrix_x4(bytes, piece);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      key[i / 2][i % 2] = widen_fp8(bytes[i]);
      key[i / 2][i % 2 + 2] = widen_fp8(bytes[i] >> 16);
    }
  }
}

// Scores of a tile: score[t][2 i + j] is that of token lane / 4 + 8 i and head 8 t + 2 (lane % 4) + j. queries: [8 kHeadTiles] rows of
// kTileStride, in shared memory, coordinates by query_place().
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void score_tile(const T* keys, const Operand<T>* queries, float (&score)[kHeadTiles][4]) {
  constexpr int kQueryStride = kTileStride<Operand<T>, kHeadDim>;
  const int lane = int(threadIdx.x) % kWarpSize;
  const T* row = keys + (lane % 16) * kTileStride<T, kHeadDim> + lane / 16 * kPieceElements<T>;
  const Operand<T>* query = queries + (lane % 8) * kQueryStride + lane / 8 * 8;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) score[t][i] = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeadDim / 32; ++k) {
    uint32_t key[2][4];
    load_keys(row + k * 32, key);
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) {
      uint32_t q[4];
      ldmatrix_x4(q, query + t * 8 * kQueryStride + k * 32);
      const uint32_t low[2] = {q[0], q[1]}, high[2] = {q[2], q[3]};
      mma_m16n8k16<Operand<T>>(score[t], key[0], low);
      mma_m16n8k16<Operand<T>>(score[t], key[1], high);
    }
  }
}

// Maximum, sum and weighted values of all tiles so far.
template <int kHeadDim, int kHeadTiles>
struct TileState {
  float max[kHeadTiles][2];                    // of scores in units of log2(e)
  float sum[kHeadTiles][2];                    // the lane's tokens only
  float output[kHeadDim / 16][kHeadTiles][4];  // [m][t][2 i + j]: coordinate by OutputPlaces, head 8 t + 2 (lane % 4) + j

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

// TileState::output[m][..][2 i + j] of a lane is coordinate 16 m + first + step i.
struct OutputPlaces {
  int first, step;

  // For values of type T.
  template <class T>
  static __device__ __forceinline__ OutputPlaces of() {
    const int row = int(threadIdx.x) % kWarpSize / 4;
    return sizeof(T) == 2 ? OutputPlaces{row, 8} : OutputPlaces{2 * row, 1};
  }
};

// output += values^T weights, for weights as operands: weight[t][i] holds tokens 8 i + 2 (lane % 4), +1 of head 8 t + lane / 4.
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void accumulate_tile(const T* values, const uint32_t (&weight)[kHeadTiles][2],
                                                TileState<kHeadDim, kHeadTiles>& state) {
  constexpr int kSteps = sizeof(T) == 2 ? 1 : 2;  // of 16 coordinates for each four matrices
  const int lane = int(threadIdx.x) % kWarpSize;
  const T* row = values + (lane % 8 + lane / 16 * 8) * kTileStride<T, kHeadDim> + lane / 8 % 2 * kPieceElements<T>;
#pragma unroll
  for (int m = 0; m < kHeadDim / 16; m += kSteps) {
    uint32_t matrix[4];
    ldmatrix_x4_trans(matrix, row + m * 16);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t value[4];
      if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] = matrix[i];
      } else {  // coordinates 2 l and 2 l + 1 of two tokens in a word
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] = widen_fp8(__byte_perm(matrix[step + i / 2 * 2], 0, i % 2 == 0 ? 0x4420 : 0x4431));
      }
#pragma unroll
      for (int t = 0; t < kHeadTiles; ++t) mma_m16n8k16<Operand<T>>(state.output[m + step][t], value, weight[t]);
    }
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
