// What decoding reads of the clusters: centroids and value means as bytes (docs/layouts.md).
#pragma once

#include "quorum/cuda/block/apply_map.cuh"
#include "quorum/cuda/block/cache_rows.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// The segment that a slot lies in, and its number there.
struct SlotPlace {
  int segment, cluster;
  __device__ __forceinline__ SlotPlace(const BuildParams& p, int slot)
      : segment(slot / p.slots_per_segment), cluster(slot % p.slots_per_segment) {}
  __device__ __forceinline__ bool is_padding(const BuildParams& p) const { return cluster >= p.segment(segment).num_clusters; }
};

// Centroids in the coordinates of the index. Grid: (num_slots / 16, 1, num_kv_heads), a block of clusters each.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) encode_centroids_kernel(const __grid_constant__ BuildParams p) {
  QUORUM_SHARED(MappedRows<kHeadDim>, s);
  QUORUM_SHARED(float[kClusterBlock], scales);
  static_assert(kBuildRows == kClusterBlock);
  const int head = int(blockIdx.z), first = int(blockIdx.x) * kClusterBlock;
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const float* means = p.workspace.means + (p.slots_of(head) + first) * kHeadDim;
  for (int i = int(threadIdx.x); i < kClusterBlock * kHeadDim; i += kBuildThreads) s.from[i / kHeadDim][i % kHeadDim] = means[i];
  __syncthreads();
  apply_map<kHeadDim>(p.workspace.to_index + p.square_of(head), s);
  for (int j = warp; j < kClusterBlock; j += kBuildThreads / kWarpSize) {
    const float scale = int8_scale(largest_magnitude<kHeadDim>(s.to[j]));
    if (lane != 0) continue;
    scales[j] = scale;
    p.index.centroid_scale[p.slots_of(head) + first + j] = SlotPlace(p, first + j).is_padding(p) ? 0.0f : scale;
  }
  __syncthreads();
  uint8_t* block = p.index.centroids + (p.slots_of(head) + first) * kHeadDim;
  for (int i = int(threadIdx.x); i < kClusterBlock * kHeadDim; i += kBuildThreads) {
    const int c = i / (4 * kClusterBlock) * 4 + i % 4, j = i / 4 % kClusterBlock;
    block[centroid_byte(c, j)] = uint8_t(int8_steps(s.to[j][c], scales[j]) + kCentroidZero);
  }
}

// Means of the values, and with residual codes what the error estimate knows of them. Grid: (num_slots / 8, 1, num_kv_heads), a warp a
// slot.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) mean_values_kernel(const __grid_constant__ BuildParams p) {
  constexpr int kPairs = kPairsOfLane<kHeadDim>;
  const int head = int(blockIdx.z), own = int(blockIdx.x) * (kBuildThreads / kWarpSize) + int(threadIdx.x) / kWarpSize;
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t slot = p.slots_of(head) + own;
  const int count = int(p.index.size[slot]);
  const int32_t* tokens = p.index.cluster_tokens + p.tokens_of(head) + p.index.cluster_indptr[p.indptr_of(head) + own];
  const float scale_of_values = p.kv.value_scale(head);
  float2 mean[kPairs] = {};
  bool finite = true;
#pragma unroll 2
  for (int n = 0; n < count; ++n) {
    float2 value[kPairs];
    finite = load_finite_row<kHeadDim>(p.kv.value_row(tokens[n], head), p.kv.type, scale_of_values, value) && finite;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      mean[i].x += value[i].x;
      mean[i].y += value[i].y;
    }
  }
  const float weight = 1.0f / float(count > 0 ? count : 1);
  float largest = 0.0f, square = 0.0f;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    mean[i].x *= weight;
    mean[i].y *= weight;
    largest = fmaxf(largest, fmaxf(fabsf(mean[i].x), fabsf(mean[i].y)));
    square += mean[i].x * mean[i].x + mean[i].y * mean[i].y;
  }
  const float scale = int8_scale(warp_max(largest));
  auto* out = reinterpret_cast<uint16_t*>(p.index.value_means + slot * kHeadDim);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int pair = i * kWarpSize + lane;
    if (2 * pair < kHeadDim) out[pair] = uint16_t(uint8_t(int8_steps(mean[i].x, scale)) | uint8_t(int8_steps(mean[i].y, scale)) << 8);
  }
  if (lane == 0) {
    p.index.value_mean_scale[slot] = SlotPlace(p, own).is_padding(p) ? 0.0f : scale;
    p.workspace.value_flags[slot] = finite ? 0 : 1;
  }
  if (!p.residual_codes()) return;

  float spread = 0.0f;
#pragma unroll 2
  for (int n = 0; n < count; ++n) {
    float2 value[kPairs];
    load_finite_row<kHeadDim>(p.kv.value_row(tokens[n], head), p.kv.type, scale_of_values, value);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float x = value[i].x - mean[i].x, y = value[i].y - mean[i].y;
      spread += x * x + y * y;
    }
  }
  spread = warp_sum(spread) * weight;
  square = warp_sum(square) * float(count);
  if (lane == 0) p.workspace.value_sums[slot] = {spread, square};
}

}  // namespace quorum::cuda
