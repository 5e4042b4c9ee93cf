// One warp's share of a segment of tiles: attended tokens, value means of unread clusters, or scores of drawn tokens.
#pragma once

#include "quorum/core/cluster_estimate.hpp"
#include "quorum/cuda/block/gather_rows.cuh"
#include "quorum/cuda/block/query_coordinates.cuh"
#include "quorum/cuda/block/work_list.cuh"

namespace quorum::cuda {

// A warp's tiles: first, first + step, ... below last.
struct WarpTiles {
  int first = 0, last = 0, step = 1;

  __device__ __forceinline__ int count() const { return first < last ? (last - first + step - 1) / step : 0; }
  __device__ __forceinline__ int operator[](int i) const { return first + i * step; }
};

// The row's queries for score_tile(), by the whole block; a barrier must follow.
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void load_tile_queries(const StepParams& p, int row, T* queries) {
  for_each_query_piece<kHeadDim>(p, row, 8 * kHeadTiles, [&](int head, int c, const float (&q)[8]) {
    *reinterpret_cast<uint4*>(queries + head * kTileStride<kHeadDim> + c) = {pack<T>(q[0], q[1]), pack<T>(q[2], q[3]), pack<T>(q[4], q[5]),
                                                                             pack<T>(q[6], q[7])};
  });
}

// Attends to tiles of the row's list through kStages tiles of keys and values in flight.
//
// queries: of the block, being loaded: score after the barrier inside. tiles: the warp's own shared memory, [kStages][2][kTileElements].
template <class T, int kHeadDim, int kHeadTiles, int kStages>
__device__ __forceinline__ void attend_listed(const StepParams& p, int row, const WarpTiles& own, const T* queries, T* tiles,
                                              TileState<kHeadDim, kHeadTiles>& state) {
  const RowPlan& plan = p.workspace.plan[row];
  const int lane = int(threadIdx.x) % kWarpSize;
  const HeadRows cache(p.kv, p.sequence_of(row), p.kv_head_of(row));
  const int begin = plan.first_listed, num_tokens = plan.num_listed - begin, num_own = own.count();
  const bool all_tokens = is_dense(plan.path);
  const int32_t* list = p.workspace.tokens + int64_t(row) * p.max_tokens + begin;
  const float to_log2 = p.shape.sm_scale * kLog2e;
  const auto count_of = [&](int i) { return min(kTileTokens, num_tokens - own[i] * kTileTokens); };
  // The lane's token of a tile, read one tile before its rows are asked for.
  const auto token_of = [&](int i) {
    if (i >= num_own) return 0;
    const int place = own[i] * kTileTokens + min(lane % kTileTokens, count_of(i) - 1);
    return all_tokens ? place : list[place];
  };
  const auto fetch = [&](int i, int token) {
    if (i < num_own) {
      TileRows rows;
      rows.find(cache, token);
      T* tile = tiles + i % kStages * 2 * kTileElements<kHeadDim>;
      gather_rows<kHeadDim>(rows.key, count_of(i), tile);
      gather_rows<kHeadDim>(rows.value, count_of(i), tile + kTileElements<kHeadDim>);
    }
    cp_async_commit();
  };

  int tokens[kStages];
#pragma unroll
  for (int i = 0; i < kStages; ++i) tokens[i] = token_of(i);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i, tokens[i]);
  __syncthreads();  // the block's queries, stored before, are there; their loads have overlapped with those of the lists
  int next = tokens[kStages - 1];
#pragma unroll 1
  for (int i = 0; i < num_own; ++i) {
    fetch(i + kStages - 1, next);
    next = token_of(i + kStages);
    cp_async_wait<kStages - 1>();
    __syncwarp();
    const T* tile = tiles + i % kStages * 2 * kTileElements<kHeadDim>;
    float score[kHeadTiles][4];
    score_tile<T, kHeadDim, kHeadTiles>(tile, queries, score);
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
      for (int j = 0; j < 4; ++j) score[t][j] = lane / 4 + j / 2 * 8 < count_of(i) ? score[t][j] * to_log2 : -kInfinity;
    weigh_tile<kHeadDim, kHeadTiles>(score, state);
    uint32_t weight[kHeadTiles][2];
    pack_weights<T, kHeadTiles>(score, weight);
    accumulate_tile<T, kHeadDim, kHeadTiles>(tile + kTileElements<kHeadDim>, weight, state);
    __syncwarp();
  }
  cp_async_wait<0>();
}

// Log of the weights of drawn tokens, to draw_weight.
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void score_draws(const StepParams& p, int row, const WarpTiles& own, const T* queries, T* tile) {
  const RowPlan& plan = p.workspace.plan[row];
  const int lane = int(threadIdx.x) % kWarpSize, group = p.group;
  const HeadRows cache(p.kv, p.sequence_of(row), p.kv_head_of(row));
  __syncthreads();  // the block's queries are there
#pragma unroll 1
  for (int i = 0; i < own.count(); ++i) {
    const int first = own[i] * kTileTokens, count = min(kTileTokens, plan.num_draws - first);
    const int64_t at = int64_t(row) * p.num_draws + first;
    TileRows rows;
    rows.find(cache, p.workspace.draws[at + min(lane % kTileTokens, count - 1)].token);
    gather_rows<kHeadDim>(rows.key, count, tile);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    float score[kHeadTiles][4];
    score_tile<T, kHeadDim, kHeadTiles>(tile, queries, score);
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int draw = lane / 4 + j / 2 * 8, head = t * 8 + lane % 4 * 2 + j % 2;
        if (draw < count && head < group) p.workspace.draw_weight[(at + draw) * group + head] = score[t][j] * p.shape.sm_scale;
      }
    __syncwarp();
  }
}

// Value means of 16 unread clusters as bf16 in shared memory; int8 fits without loss.
template <int kHeadDim>
__device__ __forceinline__ void load_value_means(const SegmentView& clusters, const int32_t* list, int count, bf16* tile) {
  constexpr int kPieces = kHeadDim / 16;
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < kTileTokens * kPieces / kWarpSize; ++i) {
    const int piece = i * kWarpSize + lane, place = piece / kPieces, at = piece % kPieces;
    uint4 raw = {};
    if (place < count) raw = load_once_16(clusters.value_means + int64_t(list[place]) * kHeadDim + at * 16);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    uint32_t* out = reinterpret_cast<uint32_t*>(tile + place * kTileStride<kHeadDim> + at * 16);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const auto value = [&](int b) { return float(int8_t(words[w] >> (8 * b))); };
      out[2 * w] = pack<bf16>(value(0), value(1));
      out[2 * w + 1] = pack<bf16>(value(2), value(3));
    }
  }
}

// Unread clusters by their value means and expected weights, in units of exp(reference).
template <int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void attend_tail(const StepParams& p, int row, const WarpTiles& own, bf16* tile,
                                            TileState<kHeadDim, kHeadTiles>& state) {
  const RowPlan& plan = p.workspace.plan[row];
  const SegmentView& clusters = p.heads[row].clusters;
  const int lane = int(threadIdx.x) % kWarpSize, group = p.group;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) state.max[t][j] = 0.0f;
#pragma unroll 1
  for (int i = 0; i < own.count(); ++i) {
    const int first = own[i] * kTileTokens, count = min(kTileTokens, plan.num_tail - first);
    const int32_t* list = p.workspace.tail_clusters + int64_t(row) * p.max_slots + first;
    load_value_means<kHeadDim>(clusters, list, count, tile);
    uint32_t weight[kHeadTiles][2];
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) {
      const int head = t * 8 + lane / 4;
      const auto weight_of = [&](int place) {
        if (place >= count || head >= group) return 0.0f;
        const int cluster = list[place];
        const float token = __expf(p.workspace.log_weight[(int64_t(row) * p.max_slots + cluster) * group + head] - plan.reference[head]);
        return cluster_weight(clusters.size[cluster], token) * clusters.value_mean_scale[cluster];
      };
#pragma unroll
      for (int j = 0; j < 2; ++j) weight[t][j] = pack<bf16>(weight_of(j * 8 + lane % 4 * 2), weight_of(j * 8 + lane % 4 * 2 + 1));
    }
    __syncwarp();
    accumulate_tile<bf16, kHeadDim, kHeadTiles>(tile, weight, state);
    __syncwarp();
  }
}

}  // namespace quorum::cuda
