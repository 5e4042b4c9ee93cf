// First stage: expected weights of all clusters, exact weights of the always-read tokens (algorithm.md eq. 5).
#pragma once

#include "quorum/core/cluster_estimate.hpp"
#include "quorum/cuda/block/score_block.cuh"
#include "quorum/cuda/block/state_sum.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kScoreThreads = 256;
inline constexpr int kScoreWarps = kScoreThreads / kWarpSize;

template <int kHeadDim>
struct ScoreShared {
  QueryCoordinates<kHeadDim> queries;
  AttentionState clusters[kScoreWarps][kMaxGroupSize];
  AttentionState always[kScoreWarps][kMaxGroupSize];
};

// Log of the expected weight of a token for one block of clusters, to log_weight; sums to `state`, two heads a tile and lane.
template <int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void score_block(const StepParams& p, int row, int block, const SegmentView& clusters,
                                            const CentroidFragment<kHeadDim>& centroids,
                                            const QueryFragment<kHeadDim> (&queries)[kHeadTiles],
                                            const QueryCoordinates<kHeadDim>& s, AttentionState (&state)[kHeadTiles][2]) {
  const int lane = int(threadIdx.x) % kWarpSize, group = p.shape.group_size();
  const bool shared_variance = p.options.variance != VarianceModel::none;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t) {
    int32_t dot[4];
    int8_dots<kHeadDim>(centroids, queries[t], dot);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int cluster = block * kClusterBlock + lane / 4 + i / 2 * 8, head = t * 8 + lane % 4 * 2 + i % 2;
      if (head >= group) continue;
      const QueryConstants& query = s.constants[head];
      const float size = clusters.size[cluster];
      const float score = float(dot[i] - query.zero_dot) * (query.step * clusters.centroid_scale[cluster]) + query.mean_score;
      const float weight = token_log_weight(score, clusters.spread[cluster], shared_variance ? query.half_variance : 0.0f);
      p.workspace.log_weight[(int64_t(row) * p.max_slots + cluster) * group + head] = size > 0.0f ? weight : -kInfinity;
      if (size > 0.0f) add_weight(state[t][i % 2], weight, size);
    }
  }
}

// Exact scores of this block's share of the always-read tokens, one warp a token.
template <int kHeadDim>
__device__ __forceinline__ void score_always_tokens(const StepParams& p, int row, const FlatHeadView& head, ScoreShared<kHeadDim>& s) {
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const int group = p.shape.group_size(), sequence = p.sequence_of(row), kv_head = p.kv_head_of(row);
  const int num_always = head.num_always(p.kv.num_tokens[sequence]), step = p.score_tiles * kScoreWarps;
  for (int i = int(blockIdx.x) * kScoreWarps + warp; i < num_always; i += step) {
    const std::byte* key = p.kv.key_row(p.kv.place(sequence, head.always_token(i)), kv_head);
    float k[kHeadDim / kWarpSize];
#pragma unroll
    for (int c = 0; c < kHeadDim / kWarpSize; ++c) k[c] = load_element(key, p.kv.type, c * kWarpSize + lane);
    for (int g = 0; g < group; ++g) {
      float score = 0.0f;
#pragma unroll
      for (int c = 0; c < kHeadDim / kWarpSize; ++c) score += k[c] * s.queries.query[g][c * kWarpSize + lane];
      score = warp_sum(score);
      if (lane == 0) add_weight(s.always[warp][g], score, 1.0f);
    }
  }
}

// Grid: (score_tiles, num_kv_heads, num_sequences). Shared: ScoreShared.
template <int kHeadDim, int kHeadTiles>
__global__ void __launch_bounds__(kScoreThreads) score_clusters_kernel(const __grid_constant__ StepParams p) {
  auto& s = *dynamic_shared<ScoreShared<kHeadDim>>();
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize, group = p.shape.group_size();
  const int row = int(blockIdx.z) * p.shape.num_kv_heads + int(blockIdx.y), tile = int(blockIdx.x);
  let_next_kernel_start();
  wait_for_previous_kernel();
  if (p.first_path(row) != DecodePath::sparse) return;
  const FlatHeadView& head = p.heads[row];
  const SegmentView& clusters = head.clusters;
  const int num_blocks = head.num_blocks(), step = p.score_tiles * kScoreWarps;
  int block = tile * kScoreWarps + warp;
  CentroidFragment<kHeadDim> centroids;
  if (block < num_blocks) centroids.load(clusters.centroids, block);  // on its way while the queries are prepared
  if (lane < kMaxGroupSize) s.always[warp][lane] = {};
  prepare_queries<kHeadDim>(p, row, head.metric, s.queries);

  QueryFragment<kHeadDim> queries[kHeadTiles];
  AttentionState state[kHeadTiles][2];
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t) queries[t].load(s.queries, t * 8);
  for (; block < num_blocks; block += step) {
    CentroidFragment<kHeadDim> next;
    if (block + step < num_blocks) next.load(clusters.centroids, block + step);
    score_block<kHeadDim, kHeadTiles>(p, row, block, clusters, centroids, queries, s.queries, state);
    centroids = next;
  }
  score_always_tokens<kHeadDim>(p, row, head, s);
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const AttentionState merged = warp_merge<4>(state[t][j]);
      if (lane < 4) s.clusters[warp][t * 8 + lane * 2 + j] = merged;
    }
  __syncthreads();
  if (int(threadIdx.x) < group) {
    AttentionState of_clusters, of_always;
    for (int w = 0; w < kScoreWarps; ++w) {
      of_clusters = merge(of_clusters, s.clusters[w][threadIdx.x]);
      of_always = merge(of_always, s.always[w][threadIdx.x]);
    }
    const int64_t at = (int64_t(row) * p.score_tiles + tile) * group + threadIdx.x;
    p.workspace.cluster_weight[at] = of_clusters;
    p.workspace.always_weight[at] = of_always;
  }
}

}  // namespace quorum::cuda
