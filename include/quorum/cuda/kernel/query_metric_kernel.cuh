// The query metric from sampled queries: their second moment, and a factor of the metric that belongs to it (algorithm.md eq. 3).
#pragma once

#include "quorum/core/clustering.hpp"
#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cuda/block/cache_rows.cuh"
#include "quorum/cuda/block/jacobi.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kMomentThreads = 256;
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
__global__ void __launch_bounds__(kMomentThreads) query_moment_kernel(const __grid_constant__ MetricParams p) {
  constexpr int kWarps = kMomentThreads / kWarpSize;
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
      if (i < num_queries) load_finite_row<kHeadDim>(p.queries.row(i / p.group, head * p.group + i % p.group), p.queries.type, 1.0f, query);
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

// The factor B of the metric, by the moment's eigenvectors, and its inverse; the identity for a moment that is zero or not finite. In
// place: `forward` comes with the lower half of the moment. Grid: (1, 1, num_kv_heads). Cost: some sweeps of head_dim^2 / 2 rotations of
// two rows.
template <int kHeadDim>
__global__ void __launch_bounds__(kJacobiThreads, 1) factor_metric_kernel(const __grid_constant__ MetricParams p) {
  constexpr int kElements = kHeadDim * kHeadDim;
  QUORUM_SHARED(float[kHeadDim], roots);
  QUORUM_SHARED(float, total);  // the trace, later the sum of roots
  QUORUM_SHARED(int, rotated);
  float *forward = p.forward + int64_t(blockIdx.z) * kElements, *inverse = p.inverse + int64_t(blockIdx.z) * kElements;
  const int thread = int(threadIdx.x);
  if (thread == 0) {
    total = 0.0f;
    for (int c = 0; c < kHeadDim; ++c) total += forward[c * (kHeadDim + 1)];
  }
  __syncthreads();
  const bool usable = total > 0.0f && total < kInfinity;
  const float scale = usable ? float(kHeadDim) / total : 0.0f;
  for (int i = thread; i < kElements; i += kJacobiThreads) {
    const int row = i / kHeadDim, column = i % kHeadDim;
    inverse[i] = row == column ? 1.0f : 0.0f;
    if (column > row) continue;
    const float x = usable ? scale * forward[i] : inverse[i];
    forward[i] = x;
    forward[column * kHeadDim + row] = x;
  }
  constexpr float kRounding = 1e-12f;  // the square of what f32 resolves; the trace is head_dim, its squares at most as many times that
  jacobi<kHeadDim>(forward, inverse, kRounding * float(kElements), rotated);
  for (int c = thread; c < kHeadDim; c += kJacobiThreads) roots[c] = metric_root(jacobi_eigenvalue<kHeadDim>(forward, inverse, c));
  __syncthreads();
  if (thread == 0) {
    total = 0.0f;
    for (int c = 0; c < kHeadDim; ++c) total += roots[c];
  }
  __syncthreads();
  for (int c = thread; c < kHeadDim; c += kJacobiThreads)
    roots[c] = sqrtf(metric_eigenvalue(roots[c], total / float(kHeadDim), usable ? p.shrinkage : 1.0f));
  __syncthreads();
  for (int i = thread; i < kElements; i += kJacobiThreads) {
    const int row = i / kHeadDim, column = i % kHeadDim;
    forward[i] = inverse[column * kHeadDim + row] * roots[column];
  }
  __syncthreads();
  for (int i = thread; i < kElements; i += kJacobiThreads) inverse[i] /= roots[i / kHeadDim];
}

}  // namespace quorum::cuda
