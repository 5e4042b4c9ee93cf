// The coordinates of the index: those in which the covariance of the residuals, pooled over all clusters of a head, is diagonal
// (algorithm.md eq. 4). Three kernels: the moment, its eigenvectors, and what follows for keys and queries.
#pragma once

#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/block/jacobi.cuh"
#include "quorum/cuda/block/rotate.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// Side of the part of the moment that a block sums.
inline constexpr int kMomentTile = 32;

// Residuals [32 of them][32 coordinates from c on], of every `step`-th row from `first` on; zeros beyond the last.
template <int kHeadDim>
__device__ __forceinline__ void load_residuals(const BuildParams& p, int head, int first, int step, int c,
                                               float (&out)[kMomentTile][kMomentTile]) {
  for (int i = int(threadIdx.x); i < kMomentTile * kMomentTile; i += kBuildThreads) {
    const int n = i / kMomentTile, at = c + i % kMomentTile;
    const int64_t row = first + int64_t(n) * step;
    float residual = 0.0f;
    if (row < p.tokens.count) {
      const int64_t place = head * p.padded_rows() + row;
      const int slot = int(row) / p.segment_tokens * p.slots_per_segment + p.workspace.assignment[p.tokens_of(head) + row];
      residual = p.workspace.constants[place].scale * float(p.workspace.rows[place * kHeadDim + at]) -
                 p.workspace.means[(p.slots_of(head) + slot) * kHeadDim + at];
    }
    out[n][i % kMomentTile] = residual;
  }
}

// Sum of r r^T over every few residuals: enough of them that the moment is well determined. Grid: (head_dim / 32, head_dim / 32,
// num_kv_heads), blocks below the diagonal do nothing.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) residual_moment_kernel(const __grid_constant__ BuildParams p) {
  QUORUM_SHARED(float[kMomentTile][kMomentTile], left);
  QUORUM_SHARED(float[kMomentTile][kMomentTile], right);
  if (blockIdx.y < blockIdx.x) return;
  const int head = int(blockIdx.z), a = int(blockIdx.x) * kMomentTile, b = int(blockIdx.y) * kMomentTile;
  const int step = p.tokens.count / (16 * kHeadDim) > 1 ? p.tokens.count / (16 * kHeadDim) : 1;
  const int x = int(threadIdx.x) / 16 * 2, y = int(threadIdx.x) % 16 * 2;  // two by two of the tile
  float sum[2][2] = {};
#pragma unroll 1
  for (int64_t first = 0; first < p.tokens.count; first += int64_t(kMomentTile) * step) {
    load_residuals<kHeadDim>(p, head, int(first), step, a, left);
    load_residuals<kHeadDim>(p, head, int(first), step, b, right);
    __syncthreads();
#pragma unroll 8
    for (int n = 0; n < kMomentTile; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) sum[i][j] = fmaf(left[n][x + i], right[n][y + j], sum[i][j]);
    __syncthreads();
  }
  float* moment = p.workspace.moment + p.square_of(head);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (blockIdx.x == blockIdx.y && x + i > y + j) continue;  // the other half is the mirror image, to the bit
      moment[(a + x + i) * kHeadDim + b + y + j] = sum[i][j];
      moment[(b + y + j) * kHeadDim + a + x + i] = sum[i][j];
    }
}

// The matrix that every pair reads lies in shared memory where that holds it (99 KB on the smallest devices); the turn in the workspace.
template <int kHeadDim>
inline constexpr int64_t kTurnSharedBytes = kHeadDim <= 128 ? int64_t(kHeadDim) * kHeadDim * 4 : 0;

// Turn and eigenvalues. A moment that is zero or not finite leaves the coordinates as they are. Grid: (1, 1, num_kv_heads).
template <int kHeadDim>
__global__ void __launch_bounds__(kJacobiThreads, 1) turn_coordinates_kernel(const __grid_constant__ BuildParams p) {
  constexpr int kElements = kHeadDim * kHeadDim;
  constexpr bool kInShared = kTurnSharedBytes<kHeadDim> != 0;
  QUORUM_SHARED(float[kJacobiThreads], sums);
  QUORUM_SHARED(float[2], totals);  // trace and sum of squares
  QUORUM_SHARED(int, rotated);
  const int head = int(blockIdx.z), thread = int(threadIdx.x);
  const float* moment = p.workspace.moment + p.square_of(head);
  float* turn = p.workspace.turn + p.square_of(head);
  float* turned = kInShared ? dynamic_shared<float>() : p.workspace.turned + p.square_of(head);

  if (thread == 0) {
    float trace = 0.0f;
    for (int c = 0; c < kHeadDim; ++c) trace += moment[c * (kHeadDim + 1)];
    totals[0] = trace;
  }
  __syncthreads();
  const bool isotropic = !(totals[0] > 0.0f) || !(totals[0] < kInfinity);
  const float inverse = isotropic ? 0.0f : 1.0f / totals[0];
  float squares = 0.0f;
  for (int i = thread; i < kElements; i += kJacobiThreads) {
    const float x = isotropic ? 0.0f : moment[i] * inverse;
    turned[i] = x;
    turn[i] = i / kHeadDim == i % kHeadDim ? 1.0f : 0.0f;
    squares += x * x;
  }
  sums[thread] = squares;
  __syncthreads();
  if (thread == 0) {
    float sum = 0.0f;
    for (int i = 0; i < kJacobiThreads; ++i) sum += sums[i];
    totals[1] = sum;
  }
  __syncthreads();
  constexpr float kRounding = 1e-12f;  // the square of what f32 resolves
  jacobi<kHeadDim>(turned, turn, kRounding * totals[1], rotated);
  for (int c = thread; c < kHeadDim; c += kJacobiThreads) {
    const float value = isotropic ? 1.0f / float(kHeadDim) : fmaxf(jacobi_eigenvalue<kHeadDim>(turned, turn, c), 0.0f);
    p.index.eigenvalues[int64_t(head) * kHeadDim + c] = value;
  }
}

// The metric's inverse, y = turn H B^-1 q, packed as scoring reads it; and where each coordinate of the search goes in the index. Grid:
// (head_dim / 16, 1, num_kv_heads): 16 coordinates of y, and 16 of the search, a block.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) finish_metric_kernel(const __grid_constant__ BuildParams p) {
  constexpr int kWarps = kBuildThreads / kWarpSize;
  QUORUM_SHARED(float[16][kHeadDim], rows);
  QUORUM_SHARED(float[kHeadDim], signs);
  const int head = int(blockIdx.z), first = int(blockIdx.x) * 16, warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const float* turn = p.workspace.turn + p.square_of(head);
  for (int c = int(threadIdx.x); c < kHeadDim; c += kBuildThreads) signs[c] = p.index.signs[int64_t(head) * kHeadDim + c];
  for (int i = int(threadIdx.x); i < 16 * kHeadDim; i += kBuildThreads) rows[i / kHeadDim][i % kHeadDim] = turn[first * kHeadDim + i];
  __syncthreads();
  f16* inverse = p.index.inverse + p.square_of(head) + int64_t(first) * kHeadDim;
  for (int i = int(threadIdx.x); i < 16 * kHeadDim; i += kBuildThreads) {
    const float* column = p.workspace.inverse + p.square_of(head) + int64_t(i / 16) * kHeadDim;
    float sum = 0.0f;
#pragma unroll 4
    for (int w = 0; w < kHeadDim; ++w) sum = fmaf(rows[i % 16][w], column[w], sum);
    inverse[i] = from_float<f16>(sum);
  }
  __syncthreads();
  for (int i = warp; i < 16; i += kWarps) {
    for (int c = lane; c < kHeadDim; c += kWarpSize) rows[i][c] = turn[c * kHeadDim + first + i];
    __syncwarp();
    rotate<kHeadDim>(rows[i], signs);
    for (int c = lane; c < kHeadDim; c += kWarpSize)
      p.workspace.to_index[p.square_of(head) + int64_t(first + i) * kHeadDim + c] = rows[i][c];
    __syncwarp();
  }
}

}  // namespace quorum::cuda
