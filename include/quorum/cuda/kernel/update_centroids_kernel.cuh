// One round of k-means, third part: centroids become the means of their rows, empty clusters start again. Also where the search begins,
// and what its end leaves of the clusters.
#pragma once

#include "quorum/cuda/block/cluster_mean.cuh"

namespace quorum::cuda {

// Slots of a block, a warp each.
inline constexpr int kUpdateSlots = kBuildThreads / kWarpSize;

// What a warp of these kernels works on. Grids: (most slots of a segment / kUpdateSlots, num_segments, num_kv_heads).
struct WarpSlot {
  int head, segment, cluster;  // cluster: within the segment
  BuildSegment bounds;
  int64_t slot;

  __device__ __forceinline__ explicit WarpSlot(const BuildParams& p)
      : head(int(blockIdx.z)),
        segment(int(blockIdx.y)),
        cluster(int(blockIdx.x) * kUpdateSlots + int(threadIdx.x) / kWarpSize),
        bounds(p.segment(segment)),
        slot(p.slots_of(head) + bounds.first_slot + cluster) {}

  __device__ __forceinline__ int count(const BuildParams& p) const { return int(p.index.size[slot]); }
  __device__ __forceinline__ const int32_t* tokens(const BuildParams& p) const {
    return p.index.cluster_tokens + p.tokens_of(head) + p.index.cluster_indptr[p.indptr_of(head) + bounds.first_slot + cluster];
  }
};

// A centroid of the search: its bytes, and half its squared length.
template <int kHeadDim>
__device__ __forceinline__ void store_centroid(const BuildParams& p, int64_t slot, const LaneRow<kHeadDim>& row, float scale) {
  int32_t square = 0;
  auto* block = reinterpret_cast<uint32_t*>(p.index.centroids + slot / kClusterBlock * (kClusterBlock * kHeadDim));
#pragma unroll
  for (int i = 0; i < LaneRow<kHeadDim>::kWords; ++i) {
    if (!row.has(i)) continue;
    uint32_t word = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int q = int(rintf(row.x[i][k] / scale));
      square += q * q;
      word |= uint32_t(q + kCentroidZero) << (8 * k);
    }
    block[centroid_byte(row.coordinate(i), int(slot % kClusterBlock)) / 4] = word;
  }
  square = warp_sum(square);
  if (int(threadIdx.x) % kWarpSize != 0) return;
  p.index.centroid_scale[slot] = scale;
  p.workspace.half_norm[slot] = 0.5f * scale * scale * float(square);
}

// The centroid becomes a row of its head.
template <int kHeadDim>
__device__ __forceinline__ void set_to_row(const BuildParams& p, const WarpSlot& own, int row) {
  LaneRow<kHeadDim> x;
  x.load(p, own.head, row);
  store_centroid<kHeadDim>(p, own.slot, x, p.workspace.constants[own.head * p.padded_rows() + row].scale);
}

// The row that is farthest from its centroid, out of every `step`-th from `first` on; the first of equals.
__device__ __forceinline__ int farthest_row(const float* distance, int num_rows, int first, int step) {
  const int lane = int(threadIdx.x) % kWarpSize;
  float most = -kInfinity;
  int farthest = first;
  for (int i = first + lane * step; i < num_rows; i += kWarpSize * step)
    if (distance[i] > most) {
      most = distance[i];
      farthest = i;
    }
#pragma unroll
  for (int bit = 1; bit < kWarpSize; bit *= 2) {
    const float other = __shfl_xor_sync(kFullMask, most, bit);
    const int row = __shfl_xor_sync(kFullMask, farthest, bit);
    if (other > most || (other == most && row < farthest)) {
      most = other;
      farthest = row;
    }
  }
  return farthest;
}

// Post: the first centroids, none in padding slots; nothing has changed in any round.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) seed_centroids_kernel(const __grid_constant__ BuildParams p) {
  const WarpSlot own(p);
  const BuildSegment& segment = own.bounds;
  if (blockIdx.x == 0)
    for (int round = int(threadIdx.x); round <= p.iterations; round += kBuildThreads) p.changed(round, own.segment, own.head) = 0;
  if (own.cluster >= segment.num_slots) return;
  if (own.cluster < segment.num_clusters)
    return set_to_row<kHeadDim>(p, own, segment.first_row + seed_row(own.cluster, segment.num_rows, segment.num_clusters));
  store_centroid<kHeadDim>(p, own.slot, {}, 1.0f);
  if (int(threadIdx.x) % kWarpSize == 0) p.workspace.half_norm[own.slot] = kInfinity;
}

// An empty cluster takes the row that is farthest from its own centroid, out of every E-th row where E clusters are empty, so that no two
// take the same.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) update_centroids_kernel(const __grid_constant__ BuildParams p) {
  const WarpSlot own(p);
  const BuildSegment& segment = own.bounds;
  if (own.cluster >= segment.num_clusters || p.changed(p.round, own.segment, own.head) == 0) return;
  const int count = own.count(p);
  if (count > 0) {
    const LaneRow<kHeadDim> mean = cluster_mean<kHeadDim>(p, own.head, own.tokens(p), count);
    return store_centroid<kHeadDim>(p, own.slot, mean, int8_scale(mean.largest_magnitude()));
  }
  const int rank = p.workspace.empty_rank[own.slot], step = p.workspace.num_empty[own.head * p.num_segments + own.segment];
  if (rank >= segment.num_rows) return;
  const float* distance = p.workspace.distance + p.tokens_of(own.head) + segment.first_row;
  set_to_row<kHeadDim>(p, own, segment.first_row + farthest_row(distance, segment.num_rows, rank, step));
}

// Post: means and spread of every slot, zeros where there are no tokens.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) describe_clusters_kernel(const __grid_constant__ BuildParams p) {
  const WarpSlot own(p);
  if (own.cluster >= own.bounds.num_slots) return;
  const int count = own.count(p);
  const LaneRow<kHeadDim> mean = cluster_mean<kHeadDim>(p, own.head, own.tokens(p), count);
  auto* out = reinterpret_cast<float4*>(p.workspace.means + own.slot * kHeadDim);
#pragma unroll
  for (int i = 0; i < LaneRow<kHeadDim>::kWords; ++i)
    if (mean.has(i)) out[mean.coordinate(i) / 4] = {mean.x[i][0], mean.x[i][1], mean.x[i][2], mean.x[i][3]};
  const float spread = count > 0 ? cluster_spread<kHeadDim>(p, own.head, own.tokens(p), count, mean) : 0.0f;
  if (int(threadIdx.x) % kWarpSize == 0) p.index.spread[own.slot] = spread;
}

}  // namespace quorum::cuda
