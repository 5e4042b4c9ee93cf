// The query metric from sampled queries: their second moment, shrunk, and a factor of it (algorithm.md eq. 3).
#pragma once

#include "quorum/core/clustering.hpp"
#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cuda/block/cache_rows.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kMetricThreads = 256;
// Queries that a block takes together, and the side of the part of the moment that it sums.
inline constexpr int kMetricTile = 32;

// Passed by value. forward: the moment at first, then its factor.
struct MetricParams {
  QueryView queries;
  int num_kv_heads = 0, group = 0, head_dim = 0;
  float shrinkage = 0.0f;
  float* forward = nullptr;  // [num_kv_heads][head_dim][head_dim]
  float* inverse = nullptr;
};

// Sum of q q^T over the queries of a group, those with NaN or Inf left out. Grid: (head_dim / 32, head_dim / 32, num_kv_heads), blocks
// below the diagonal do nothing.
template <int kHeadDim>
__global__ void __launch_bounds__(kMetricThreads) query_moment_kernel(const __grid_constant__ MetricParams p) {
  constexpr int kWarps = kMetricThreads / kWarpSize;
  QUORUM_SHARED(float[kMetricTile][kHeadDim], rows);
  if (blockIdx.y < blockIdx.x) return;
  const int head = int(blockIdx.z), a = int(blockIdx.x) * kMetricTile, b = int(blockIdx.y) * kMetricTile;
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize, num_queries = p.queries.num_rows * p.group;
  const int x = int(threadIdx.x) / 16 * 2, y = int(threadIdx.x) % 16 * 2;  // two by two of the tile
  float sum[2][2] = {};
#pragma unroll 1
  for (int first = 0; first < num_queries; first += kMetricTile) {
    for (int n = warp; n < kMetricTile; n += kWarps) {
      float2 query[kPairsOfLane<kHeadDim>] = {};
      const int i = first + n;
      if (i < num_queries) load_finite_row<kHeadDim>(p.queries.row(i / p.group, head * p.group + i % p.group), p.queries.type, query);
#pragma unroll
      for (int k = 0; k < kPairsOfLane<kHeadDim>; ++k)
        if (2 * (k * kWarpSize + lane) < kHeadDim) reinterpret_cast<float2*>(rows[n])[k * kWarpSize + lane] = query[k];
    }
    __syncthreads();
#pragma unroll 8
    for (int n = 0; n < kMetricTile; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) sum[i][j] = fmaf(rows[n][a + x + i], rows[n][b + y + j], sum[i][j]);
    __syncthreads();
  }
  float* moment = p.forward + int64_t(head) * kHeadDim * kHeadDim;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) moment[(b + y + j) * kHeadDim + a + x + i] = sum[i][j];  // the lower half is what is read
}

// Cholesky's factor L of the shrunk moment, and its inverse; the identity for a moment that is zero or not finite. Any factor serves: the
// index turns its coordinates. Grid: (1, 1, num_kv_heads). Cost: head_dim^3 / 3 multiply-adds each, head_dim steps that wait for each
// other.
template <int kHeadDim>
__global__ void __launch_bounds__(kMetricThreads) factor_metric_kernel(const __grid_constant__ MetricParams p) {
  QUORUM_SHARED(float, trace);
  const int64_t at = int64_t(blockIdx.z) * kHeadDim * kHeadDim;
  float *factor = p.forward + at, *inverse = p.inverse + at;
  const int thread = int(threadIdx.x);
  if (thread == 0) {
    trace = 0.0f;
    for (int c = 0; c < kHeadDim; ++c) trace += factor[c * (kHeadDim + 1)];
  }
  __syncthreads();
  const bool usable = trace > 0.0f && trace < kInfinity;
  const float scale = usable ? (1.0f - p.shrinkage) * float(kHeadDim) / trace : 0.0f, diagonal = usable ? p.shrinkage : 1.0f;
  for (int i = thread; i < kHeadDim * kHeadDim; i += kMetricThreads) {
    const int row = i / kHeadDim, column = i % kHeadDim;
    const float shrunk = usable && column <= row ? scale * factor[i] : 0.0f;
    factor[i] = row == column ? shrunk + diagonal : shrunk;
  }
#pragma unroll 1
  for (int j = 0; j < kHeadDim; ++j) {
    __syncthreads();
    const float pivot = rsqrtf(factor[j * (kHeadDim + 1)]);
    __syncthreads();
    for (int i = j + thread; i < kHeadDim; i += kMetricThreads) factor[i * kHeadDim + j] *= pivot;
    __syncthreads();
    for (int i = thread; i < kHeadDim * kHeadDim; i += kMetricThreads) {
      const int row = i / kHeadDim, column = i % kHeadDim;
      if (column > j && column <= row) factor[i] = fmaf(-factor[row * kHeadDim + j], factor[column * kHeadDim + j], factor[i]);
    }
  }
  __syncthreads();
  for (int i = thread; i < kHeadDim; i += kMetricThreads)  // L x = e_i, a column a thread
    for (int c = 0; c < kHeadDim; ++c) {
      float rest = c == i ? 1.0f : 0.0f;
#pragma unroll 4
      for (int k = i; k < c; ++k) rest = fmaf(-factor[c * kHeadDim + k], inverse[k * kHeadDim + i], rest);
      inverse[c * kHeadDim + i] = c < i ? 0.0f : rest / factor[c * (kHeadDim + 1)];
    }
}

}  // namespace quorum::cuda
