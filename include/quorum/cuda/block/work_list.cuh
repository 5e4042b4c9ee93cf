// How the attention of all rows is dealt to blocks: tiles of 16 tokens, clusters or draws, in one line, cut into equal runs.
#pragma once

#include "quorum/cuda/block/attend_tile.cuh"
#include "quorum/cuda/block/step.cuh"

namespace quorum::cuda {

__device__ __forceinline__ int num_tiles(const StepParams& p, int segment) {
  return (p.workspace.counts[segment] + kTileTokens - 1) / kTileTokens;
}

// Tiles [first, last) of all.
struct TileRange {
  int first = 0, last = 0;
};
// The first total % num_blocks blocks have one tile more than the others.
QUORUM_HOST_DEVICE inline TileRange tiles_of_block(int block, int num_blocks, int total) {
  const int each = total / num_blocks, more = total % num_blocks, first = block * each + (block < more ? block : more);
  return {first, first + each + (block < more ? 1 : 0)};
}
// The block that has a tile.
QUORUM_HOST_DEVICE inline int block_of_tile(int tile, int num_blocks, int total) {
  const int each = total / num_blocks, more = total % num_blocks, in_longer = more * (each + 1);
  return tile < in_longer ? tile / (each + 1) : more + (tile - in_longer) / each;
}
// Where a block leaves its part of a segment. Going through tiles, block and segment only grow: no two pairs have the same sum.
QUORUM_HOST_DEVICE inline int64_t partial_of(const StepParams& p, int round, int block, int segment) {
  return int64_t(round) * p.num_partials() + block + segment;
}

// indptr[i]: tiles of the segments before i, by the whole block, in shared memory. Ends with a barrier.
__device__ __forceinline__ void sum_tiles(const StepParams& p, int32_t* indptr) {
  const int num_segments = kSegmentKinds * p.num_rows(), lane = int(threadIdx.x) % kWarpSize;
  for (int i = int(threadIdx.x); i < num_segments; i += int(blockDim.x)) indptr[i + 1] = num_tiles(p, i);
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    int before = 0;
    for (int first = 0; first < num_segments; first += kWarpSize) {
      const int i = first + lane, sum = before + warp_inclusive_sum(i < num_segments ? indptr[i + 1] : 0);
      if (i < num_segments) indptr[i + 1] = sum;
      before = __shfl_sync(kFullMask, sum, kWarpSize - 1);
    }
    if (lane == 0) indptr[0] = 0;
  }
  __syncthreads();
}

// The segment of a tile: the last one that begins at or before it and is not empty.
__device__ __forceinline__ int segment_of_tile(const int32_t* indptr, int num_segments, int tile) {
  int low = 0, high = num_segments - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (indptr[middle + 1] > tile)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

}  // namespace quorum::cuda
