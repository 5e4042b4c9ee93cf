// Keys in the coordinates of the search: mean key, maps of the metric, then every key as a row of bytes (algorithm.md eq. 3).
//
// The search works in w = H(z): the rotation that the index uses at the end makes coordinates alike, as bytes want them, and keeps
// distances.
#pragma once

#include "quorum/cuda/block/apply_map.cuh"
#include "quorum/cuda/block/cache_rows.cuh"
#include "quorum/cuda/block/rotate.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// Sums of the finite keys of each tile, and whether all are. Grid: (key_tiles, 1, num_kv_heads); one warp.
template <int kHeadDim>
__global__ void __launch_bounds__(kWarpSize) sum_keys_kernel(const __grid_constant__ BuildParams p) {
  const int tile = int(blockIdx.x), head = int(blockIdx.z), lane = int(threadIdx.x);
  float2 sum[kPairsOfLane<kHeadDim>] = {};
  bool finite = true;
  for (int row = tile * kKeyTile; row < (tile + 1) * kKeyTile && row < p.tokens.count; ++row) {
    float2 key[kPairsOfLane<kHeadDim>];
    finite = load_finite_row<kHeadDim>(p.kv.key_row(p.tokens.first + row, head), p.kv.type, p.kv.key_scale(head), key) && finite;
#pragma unroll
    for (int i = 0; i < kPairsOfLane<kHeadDim>; ++i) sum[i].x += key[i].x, sum[i].y += key[i].y;
  }
  const int64_t at = int64_t(head) * p.key_tiles() + tile;
  auto* out = reinterpret_cast<float2*>(p.workspace.key_sums + at * kHeadDim);
#pragma unroll
  for (int i = 0; i < kPairsOfLane<kHeadDim>; ++i)
    if (2 * (i * kWarpSize + lane) < kHeadDim) out[i * kWarpSize + lane] = sum[i];
  if (lane == 0) p.workspace.key_flags[at] = finite ? 0 : 1;
}

// Mean key and signs; where each coordinate of a key, and of a query, goes. Grid: (head_dim / 16, 1, num_kv_heads): 16 coordinates a
// block, a warp for one at a time.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) prepare_coordinates_kernel(const __grid_constant__ BuildParams p) {
  constexpr int kWarps = kBuildThreads / kWarpSize;
  QUORUM_SHARED(float[kWarps][kHeadDim], columns);
  QUORUM_SHARED(float[kHeadDim], signs);
  const int head = int(blockIdx.z), warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  for (int c = int(threadIdx.x); c < kHeadDim; c += kBuildThreads) {
    signs[c] = rotation_sign(p.seed, head, c);
    if (blockIdx.x == 0) p.index.signs[int64_t(head) * kHeadDim + c] = signs[c];
  }
  if (int(threadIdx.x) < 16) {  // tile by tile, in f64, as many tiles as there are
    const int c = int(blockIdx.x) * 16 + int(threadIdx.x);
    double sum = 0.0;
    for (int tile = 0; tile < p.key_tiles(); ++tile)
      sum += double(p.workspace.key_sums[(int64_t(head) * p.key_tiles() + tile) * kHeadDim + c]);
    p.index.mean_key[int64_t(head) * kHeadDim + c] = float(sum / double(p.tokens.count));
  }
  __syncthreads();
  float* column = columns[warp];
  for (int i = warp; i < 32; i += kWarps) {  // 16 of the keys' map, 16 of the queries'
    const int in = int(blockIdx.x) * 16 + i % 16;
    const bool of_query = i >= 16;
    for (int c = lane; c < kHeadDim; c += kWarpSize) {
      column[c] = c == in ? 1.0f : 0.0f;
      if (p.metric.forward != nullptr)
        column[c] = of_query ? p.metric.inverse[p.square_of(head) + int64_t(c) * kHeadDim + in]
                             : p.metric.forward[p.square_of(head) + int64_t(in) * kHeadDim + c];
    }
    __syncwarp();
    rotate<kHeadDim>(column, signs);
    float* out = (of_query ? p.workspace.inverse : p.workspace.forward) + p.square_of(head) + int64_t(in) * kHeadDim;
    for (int c = lane; c < kHeadDim; c += kWarpSize) out[c] = column[c];
    __syncwarp();
  }
}

// A row as bytes, by one warp. NaN, of keys that overflow, becomes 0.
template <int kHeadDim>
__device__ __forceinline__ void store_byte_row(const float* x, int8_t* bytes, RowConstants* constants) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const float scale = int8_scale(fminf(largest_magnitude<kHeadDim>(x), 3e38f));
  int32_t sum = 0, square = 0;
  for (int c = lane; c < kHeadDim; c += kWarpSize) {
    const float steps = fminf(fmaxf(rintf(x[c] / scale), -127.0f), 127.0f);
    const int q = x[c] == x[c] ? int(steps) : 0;
    bytes[c] = int8_t(q);
    sum += q;
    square += q * q;
  }
  sum = warp_sum(sum);
  square = warp_sum(square);
  if (lane == 0) *constants = {scale, 1.0f / scale, kCentroidZero * sum, square};
}

// Grid: (row_tiles, 1, num_kv_heads). Cost: head_dim^2 multiply-adds a key; reads the map once a tile, from L2.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) key_coordinates_kernel(const __grid_constant__ BuildParams p) {
  QUORUM_SHARED(MappedRows<kHeadDim>, s);
  constexpr int kWarps = kBuildThreads / kWarpSize;
  const int head = int(blockIdx.z), first = int(blockIdx.x) * kBuildRows;
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const auto* mean = reinterpret_cast<const float2*>(p.index.mean_key + int64_t(head) * kHeadDim);
  for (int r = warp; r < kBuildRows; r += kWarps) {
    const int row = first + r < p.tokens.count ? first + r : p.tokens.count - 1;
    float2 key[kPairsOfLane<kHeadDim>];
    load_finite_row<kHeadDim>(p.kv.key_row(p.tokens.first + row, head), p.kv.type, p.kv.key_scale(head), key);
#pragma unroll
    for (int i = 0; i < kPairsOfLane<kHeadDim>; ++i) {
      const int pair = i * kWarpSize + lane;
      if (2 * pair >= kHeadDim) continue;
      s.from[r][2 * pair] = key[i].x - mean[pair].x;
      s.from[r][2 * pair + 1] = key[i].y - mean[pair].y;
    }
  }
  __syncthreads();
  apply_map<kHeadDim>(p.workspace.forward + p.square_of(head), s);
  for (int r = warp; r < kBuildRows; r += kWarps) {
    if (first + r >= p.tokens.count) continue;
    const int64_t at = head * p.padded_rows() + first + r;
    store_byte_row<kHeadDim>(s.to[r], p.workspace.rows + at * kHeadDim, p.workspace.constants + at);
  }
}

}  // namespace quorum::cuda
