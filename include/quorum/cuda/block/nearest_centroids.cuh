// Nearest centroids of some rows by one warp, with int8 tensor cores: distances as a product of matrices.
//
// A row x = scale * q and a centroid c = scale * (byte - 128) are nearest where x.c - |c|^2 / 2 is largest; divided by the row's scale,
// that is centroid_scale * (q.bytes - 128 sum(q)) - half_norm / row_scale. Integer products are exact, so the result depends on no order.
#pragma once

#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/block/score_block.cuh"

namespace quorum::cuda {

// Tiles of 8 rows that a warp keeps in registers while centroids pass: every load of centroids serves all of them.
template <int kHeadDim>
inline constexpr int kSearchTiles = kHeadDim == 64    ? 8
                                    : kHeadDim == 256 ? 2
                                                      : 4;
static_assert(kSearchTiles<64> * 8 <= kRowPadding, "a warp may read so many rows beyond the last");

// Rows 8 t + 2 (lane % 4) + j of the warp's are those of best[t][j].
template <int kHeadDim>
struct NearestCentroids {
  static constexpr int kTiles = kSearchTiles<kHeadDim>;
  QueryFragment<kHeadDim> rows[kTiles];
  float inverse_scale[kTiles][2];
  int32_t zero_dot[kTiles][2];
  float best[kTiles][2];
  int cluster[kTiles][2];

  // rows, constants: of the warp's first row.
  __device__ __forceinline__ void load(const int8_t* bytes, const RowConstants* constants) {
    const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      rows[t].load(bytes, t * 8);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const RowConstants& own = constants[t * 8 + lane % 4 * 2 + j];
        inverse_scale[t][j] = own.inverse_scale;
        zero_dot[t][j] = own.zero_dot;
        best[t][j] = -kInfinity;
        cluster[t][j] = 0;
      }
    }
  }

  // Against the 16 centroids of a block, ids from `first` on. The first `num_tiles` tiles only: the others lie beyond the segment.
  __device__ __forceinline__ void compare(const CentroidFragment<kHeadDim>& centroids, const float (&scale)[2], const float (&half_norm)[2],
                                          int first, int num_tiles) {
    const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (t >= num_tiles) continue;  // the same for all lanes
      int32_t dot[4];
      int8_dots<kHeadDim>(centroids, rows[t], dot);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float value = fmaf(scale[i], float(dot[2 * i + j] - zero_dot[t][j]), -half_norm[i] * inverse_scale[t][j]);
          const bool nearer = value > best[t][j];
          best[t][j] = nearer ? value : best[t][j];
          cluster[t][j] = nearer ? first + i * 8 + lane / 4 : cluster[t][j];
        }
    }
  }

  // Joins what the lanes have seen; the first of equals counts.
  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int bit = 4; bit < kWarpSize; bit *= 2) {
          const float value = __shfl_xor_sync(kFullMask, best[t][j], bit);
          const int other = __shfl_xor_sync(kFullMask, cluster[t][j], bit);
          const bool nearer = value > best[t][j] || (value == best[t][j] && other < cluster[t][j]);
          best[t][j] = nearer ? value : best[t][j];
          cluster[t][j] = nearer ? other : cluster[t][j];
        }
  }
};

}  // namespace quorum::cuda
