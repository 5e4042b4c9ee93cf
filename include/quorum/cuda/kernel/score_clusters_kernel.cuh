// First stage: expected weights of all clusters, exact weights of the always-read tokens (algorithm.md eq. 5).
#pragma once

#include "quorum/core/cluster_estimate.hpp"
#include "quorum/cuda/block/adjust_scores.cuh"
#include "quorum/cuda/block/cache_rows.cuh"
#include "quorum/cuda/block/score_block.cuh"
#include "quorum/cuda/block/state_sum.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kScoreThreads = 256;
inline constexpr int kScoreWarps = kScoreThreads / kWarpSize;

struct ScoreShared {
  AttentionState clusters[kScoreWarps][kMaxGroupSize];
  AttentionState always[kScoreWarps][kMaxGroupSize];
};

// Adds the weights of two clusters to a state. The maximum changes a few times only, so that most calls take no branch.
__device__ __forceinline__ void add_clusters(AttentionState& state, const float (&weight)[2], const float (&size)[2]) {
  const float largest = larger_max(weight[0], weight[1]);
  if (!(largest <= state.max)) {  // NaN too
    state.sum *= fast_rescale(state.max, largest);
    state.max = largest;
  }
  if (state.max == -kInfinity) return;
  state.sum += size[0] * __expf(weight[0] - state.max) + size[1] * __expf(weight[1] - state.max);
}

// Log of the expected weight of a token for one block of clusters, to log_weight; sums to `state`, two heads a tile and lane. by_tokens: of
// a row that chooses single tokens: the second-order term is limited, and what is stored is not soft-capped, because scanning codes
// takes the term out again.
template <int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void score_block(const StepParams& p, int row, bool by_tokens, int block,
                                            const CentroidFragment<kHeadDim>& centroids,
                                            const QueryFragment<kHeadDim> (&queries)[kHeadTiles],
                                            const QueryConstants (&constants)[kHeadTiles][2], AttentionState (&state)[kHeadTiles][2]) {
  const int lane = int(threadIdx.x) % kWarpSize;
  float* out = p.workspace.log_weight + (int64_t(row) * p.max_slots + block * kClusterBlock + lane / 4) * p.group;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t) {
    int32_t dot[4];
    int8_dots<kHeadDim>(centroids, queries[t], dot);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int head = t * 8 + lane % 4 * 2 + j;
      if (head >= p.group) continue;
      const QueryConstants& query = constants[t][j];
      float weight[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float score = fmaf(float(dot[2 * i + j] - query.zero_dot), query.step * centroids.scale[i], query.mean_score);
        weight[i] = by_tokens ? limited_token_log_weight(score, centroids.spread[i], query.half_variance)
                              : token_log_weight(score, centroids.spread[i], query.half_variance);
        const float uncapped = centroids.size[i] == 0.0f ? -kInfinity : weight[i];
        if (p.shape.logit_softcap > 0.0f) weight[i] = soft_cap(weight[i], p.shape.logit_softcap);
        if (centroids.size[i] == 0.0f) weight[i] = -kInfinity;
        out[i * 8 * p.group + head] = by_tokens ? uncapped : weight[i];
      }
      add_clusters(state[t][j], weight, centroids.size);
    }
  }
}

// Exact scores of this block's share of the always-read tokens, one warp a token and four heads; each lane has pairs of coordinates.
template <int kHeadDim>
__device__ __forceinline__ void score_always_tokens(const StepParams& p, int row, const FlatHeadView& head, ScoreShared& s) {
  constexpr int kPairs = (kHeadDim / 2 + kWarpSize - 1) / kWarpSize, kTogether = 4;
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const int sequence = p.sequence_of(row), kv_head = p.kv_head_of(row);
  const int num_always = head.num_always(p.seen_by_all(row).end), step = p.score_tiles * kScoreWarps;
  const bool differ = p.columns_differ();
  const float key_scale = p.kv.key_scale(kv_head);
  const auto* queries = reinterpret_cast<const float2*>(p.workspace.scaled_queries + int64_t(row) * kMaxGroupSize * kHeadDim);
#pragma unroll 1
  for (int first = 0; first < p.group; first += kTogether) {
    float2 q[kTogether][kPairs];
#pragma unroll
    for (int g = 0; g < kTogether; ++g)
#pragma unroll
      for (int c = 0; c < kPairs; ++c) {
        const int pair = c * kWarpSize + lane;
        q[g][c] = first + g < p.group && 2 * pair < kHeadDim ? queries[(first + g) * (kHeadDim / 2) + pair] : float2{};
      }
    AttentionState state;  // of head first + lane, in the first lanes
#pragma unroll 1
    for (int i = int(blockIdx.x) * kScoreWarps + warp; i < num_always; i += step) {
      const int token = head.always_token(i);
      const std::byte* key = p.kv.key_row(p.kv.place(sequence, token), kv_head);
      float score[kTogether] = {};
#pragma unroll
      for (int c = 0; c < kPairs; ++c) {
        const int pair = c * kWarpSize + lane;
        const float2 k = 2 * pair < kHeadDim ? load_pair(key, p.kv.type, pair) : float2{};
#pragma unroll
        for (int g = 0; g < kTogether; ++g) score[g] += k.x * q[g][c].x + k.y * q[g][c].y;
      }
      float own = 0.0f;
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        const float sum = warp_sum(score[g]);
        if (lane == g) own = sum * key_scale;
      }
      if (p.shape.logit_softcap > 0.0f) own = soft_cap(own, p.shape.logit_softcap);
      if (differ && !p.seen_by(row, first + lane % kTogether).passes(token)) own = -kInfinity;
      add_weight(state, own, 1.0f);
    }
    if (lane < kTogether && first + lane < p.group) s.always[warp][first + lane] = state;
  }
}

// Grid: (score_tiles, num_kv_heads, sets).
template <int kHeadDim, int kHeadTiles>
__global__ void __launch_bounds__(kScoreThreads, kHeadDim <= 128 ? 2 : 1) score_clusters_kernel(const __grid_constant__ StepParams p) {
  QUORUM_SHARED(ScoreShared, s);
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize, tile = int(blockIdx.x);
  const int row = int(blockIdx.z) * p.shape.num_kv_heads + int(blockIdx.y), step = p.score_tiles * kScoreWarps;
  let_next_kernel_start();
  const FlatHeadView& head = p.head(row);
  const SegmentView clusters = head.clusters;
  const DecodePath path = p.first_path(row);
  const bool is_sparse = !is_dense(path);
  int block = tile * kScoreWarps + warp;
  const int num_blocks = is_sparse ? head.num_blocks() : 0;
  CentroidFragment<kHeadDim> centroids;
  if (block < num_blocks) centroids.load(clusters, block);  // no kernel of this step writes the index
  wait_for_previous_kernel();
  if (!is_sparse) return;

  QueryFragment<kHeadDim> queries[kHeadTiles];
  QueryConstants constants[kHeadTiles][2];
  AttentionState state[kHeadTiles][2];
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t) {
    queries[t].load(p.workspace.quantised + int64_t(row) * kMaxGroupSize * kHeadDim, t * 8);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      constants[t][j] = p.workspace.constants[row * kMaxGroupSize + t * 8 + lane % 4 * 2 + j];
      if (p.options.variance == VarianceModel::none) constants[t][j].half_variance = 0.0f;
    }
  }
  score_always_tokens<kHeadDim>(p, row, head, s);
#pragma unroll 1
  for (; block < num_blocks; block += step) {
    CentroidFragment<kHeadDim> next;
    if (block + step < num_blocks) next.load(clusters, block + step);
    score_block<kHeadDim, kHeadTiles>(p, row, path == DecodePath::sparse_tokens, block, centroids, queries, constants, state);
    centroids = next;
  }
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const AttentionState merged = warp_merge<4>(state[t][j]);
      if (lane < 4) s.clusters[warp][t * 8 + lane * 2 + j] = merged;
    }
  __syncthreads();
  if (int(threadIdx.x) < p.group) {
    AttentionState of_clusters, of_always;
#pragma unroll 1
    for (int w = 0; w < kScoreWarps; ++w) {
      of_clusters = fast_merge(of_clusters, s.clusters[w][threadIdx.x]);
      of_always = fast_merge(of_always, s.always[w][threadIdx.x]);
    }
    const int64_t at = (int64_t(row) * p.score_tiles + tile) * p.group + threadIdx.x;
    p.workspace.cluster_weight[at] = of_clusters;
    p.workspace.always_weight[at] = of_always;
  }
}

}  // namespace quorum::cuda
