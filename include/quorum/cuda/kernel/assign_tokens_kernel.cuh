// One round of k-means, first part: every row to the nearest centroid of its segment.
#pragma once

#include "quorum/cuda/block/nearest_centroids.cuh"

namespace quorum::cuda {

inline constexpr int kAssignThreads = 128;

// Rows of a block.
template <int kHeadDim>
inline constexpr int kAssignRows = kAssignThreads / kWarpSize * 8 * kSearchTiles<kHeadDim>;

// Grid: (most tiles of kAssignRows in a segment, num_segments, num_kv_heads). Post: assignment, distance, changed of this round.
template <int kHeadDim>
__global__ void __launch_bounds__(kAssignThreads) assign_tokens_kernel(const __grid_constant__ BuildParams p) {
  constexpr int kTiles = kSearchTiles<kHeadDim>;
  const int s = int(blockIdx.y), head = int(blockIdx.z), lane = int(threadIdx.x) % kWarpSize;
  const int first = (int(blockIdx.x) * (kAssignThreads / kWarpSize) + int(threadIdx.x) / kWarpSize) * 8 * kTiles;
  const BuildSegment segment = p.segment(s);
  if (first >= segment.num_rows || !p.searches(s, head)) return;

  NearestCentroids<kHeadDim> nearest;
  const int64_t row = head * p.padded_rows() + segment.first_row + first;
  nearest.load(p.workspace.rows + row * kHeadDim, p.workspace.constants + row);
  const int num_tiles = int(ceil_div(segment.num_rows - first, 8)), num_blocks = segment.num_slots / kClusterBlock;
  const int64_t slot = p.slots_of(head) + segment.first_slot;
  const uint8_t* centroids = p.index.centroids + slot * kHeadDim;
  CentroidFragment<kHeadDim> words, next;
  words.load_words(centroids, 0);
#pragma unroll 1
  for (int block = 0; block < num_blocks; ++block) {
    if (block + 1 < num_blocks) next.load_words(centroids, block + 1);
    float scale[2], half_norm[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t at = slot + block * kClusterBlock + i * 8 + lane / 4;
      scale[i] = p.index.centroid_scale[at];
      half_norm[i] = p.workspace.half_norm[at];
    }
    nearest.compare(words, scale, half_norm, block * kClusterBlock, num_tiles);
    words = next;
  }
  nearest.reduce();

  int changed = 0;
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int i = first + t * 8 + lane % 4 * 2 + j;
      if (lane >= 4 || i >= segment.num_rows) continue;  // every four lanes know the same
      const int64_t at = p.tokens_of(head) + segment.first_row + i;
      const RowConstants& own = p.workspace.constants[row + i - first];
      changed += p.round == 0 || p.workspace.assignment[at] != nearest.cluster[t][j] ? 1 : 0;
      p.workspace.assignment[at] = nearest.cluster[t][j];
      p.workspace.distance[at] = own.scale * own.scale * (float(own.square) - 2.0f * nearest.best[t][j] / own.scale);
    }
  changed = warp_sum(changed);
  if (lane == 0 && changed > 0) atomicAdd(&p.changed(p.round, s, head), changed);
}

}  // namespace quorum::cuda
