// Scores of 16 clusters for all heads of a group by one warp, with int8 tensor cores.
#pragma once

#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/step.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// One block of centroids as the tensor cores want them: lane l holds coordinates 4 (l % 4) to 4 (l % 4) + 3 of clusters l / 4 and
// l / 4 + 8, of every 16 coordinates.
template <int kHeadDim>
struct CentroidFragment {
  static constexpr int kSteps = kHeadDim / 32;
  uint32_t word[kSteps][4];
  float scale[2], spread[2], size[2];  // of clusters l / 4 and l / 4 + 8

  // The coordinates alone.
  __device__ __forceinline__ void load_words(const uint8_t* centroids, int block) {
    const int lane = int(threadIdx.x) % kWarpSize;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(centroids + int64_t(block) * kClusterBlock * kHeadDim);
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) word[k][i] = words[k * 128 + i / 2 * 64 + lane % 4 * 16 + i % 2 * 8 + lane / 4];
  }
  __device__ __forceinline__ void load(const SegmentView& clusters, int block) {
    const int lane = int(threadIdx.x) % kWarpSize;
    load_words(clusters.centroids, block);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int cluster = block * kClusterBlock + i * 8 + lane / 4;
      scale[i] = clusters.centroid_scale[cluster];
      spread[i] = clusters.spread[cluster];
      size[i] = clusters.size[cluster];
    }
  }
};

// The int8 queries of 8 heads from `first` on.
template <int kHeadDim>
struct QueryFragment {
  uint32_t word[kHeadDim / 32][2];

  // quantised: [..][kHeadDim], aligned to 4 bytes.
  __device__ __forceinline__ void load(const int8_t* quantised, int first) {
    const int lane = int(threadIdx.x) % kWarpSize;
    const uint32_t* row = reinterpret_cast<const uint32_t*>(quantised + (first + lane / 4) * kHeadDim);
#pragma unroll
    for (int k = 0; k < kHeadDim / 32; ++k)
#pragma unroll
      for (int i = 0; i < 2; ++i) word[k][i] = row[k * 8 + i * 4 + lane % 4];
  }
};

// Integer dot products of 16 clusters and 8 heads: dot[2 i + j] is that of cluster l / 4 + 8 i and head 2 (l % 4) + j of the eight.
template <int kHeadDim>
__device__ __forceinline__ void int8_dots(const CentroidFragment<kHeadDim>& centroids, const QueryFragment<kHeadDim>& queries,
                                          int32_t (&dot)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) dot[i] = 0;
#pragma unroll
  for (int k = 0; k < kHeadDim / 32; ++k) mma_m16n8k32_u8s8(dot, centroids.word[k], queries.word[k]);
}

}  // namespace quorum::cuda
