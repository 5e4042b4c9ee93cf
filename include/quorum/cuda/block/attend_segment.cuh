// One warp's share of a segment of tiles: attended tokens, value means of unread clusters, or scores of drawn tokens.
#pragma once

#include "quorum/core/cluster_estimate.hpp"
#include "quorum/cuda/block/adjust_scores.cuh"
#include "quorum/cuda/block/gather_rows.cuh"
#include "quorum/cuda/block/query_coordinates.cuh"
#include "quorum/cuda/block/work_list.cuh"

namespace quorum::cuda {

// A warp's tiles: first, first + step, ... below last.
struct WarpTiles {
  int first = 0, last = 0, step = 1;

  QUORUM_HOST_DEVICE int count() const { return first < last ? (last - first + step - 1) / step : 0; }
  QUORUM_HOST_DEVICE int operator[](int i) const { return first + i * step; }
};

// The row's queries for score_tile(), by the whole block; a barrier must follow.
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void load_tile_queries(const StepParams& p, int row, Operand<T>* queries) {
  for_each_query_piece<kHeadDim>(p, row, 8 * kHeadTiles, [&](int head, int c, const float(&q)[8]) {
    Operand<T>* to = queries + head * kTileStride<Operand<T>, kHeadDim>;
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pair[i] = pack<Operand<T>>(q[2 * i], q[2 * i + 1]);
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint4*>(to + c) = {pair[0], pair[1], pair[2], pair[3]};
    } else {
      *reinterpret_cast<uint2*>(to + query_place<T>(c)) = {pair[0], pair[2]};
      *reinterpret_cast<uint2*>(to + query_place<T>(c + 2)) = {pair[1], pair[3]};
    }
  });
}

// Scale of the row's keys, or values, beside what their elements hold.
template <class T>
__device__ __forceinline__ float key_scale(const StepParams& p, int row) {
  return std::is_same_v<T, fp8_e4m3> ? p.kv.key_scale(p.kv_head_of(row)) : 1.0f;
}
template <class T>
__device__ __forceinline__ float value_scale(const StepParams& p, int row) {
  return std::is_same_v<T, fp8_e4m3> ? p.kv.value_scale(p.kv_head_of(row)) : 1.0f;
}

// Attends to tiles of the row's list through kStages tiles of keys and values in flight.
//
// queries, ranges: of the block, being loaded: used after the barrier inside. tiles: the warp's own shared memory,
// [kStages][2][kTileElements].
template <class T, int kHeadDim, int kHeadTiles, int kStages>
__device__ __forceinline__ void attend_listed(const StepParams& p, int row, const WarpTiles& own, const Operand<T>* queries,
                                              const ColumnRange* ranges, T* tiles, TileState<kHeadDim, kHeadTiles>& state) {
  const RowPlan& plan = p.workspace.plan[row];
  const int lane = int(threadIdx.x) % kWarpSize;
  const HeadRows cache(p.kv, p.sequence_of(row), p.kv_head_of(row));
  const int begin = plan.first_listed, num_tokens = plan.num_listed - begin, num_own = own.count();
  const bool all_tokens = is_dense(plan.path);
  const int32_t* list = p.workspace.tokens + int64_t(row) * p.max_tokens + begin;
  const float to_log2 = p.shape.sm_scale * key_scale<T>(p, row) * kLog2e;
  const uint64_t* live = all_tokens && p.heads != nullptr ? p.head(row).live : nullptr;  // lists hold no erased token
  const bool masks = p.columns_differ() || live != nullptr;
  const auto count_of = [&](int i) { return min(kTileTokens, num_tokens - own[i] * kTileTokens); };
  // The lane's token of a tile, read one tile before its rows are asked for.
  const auto token_of = [&](int i) {
    if (i >= num_own) return 0;
    const int place = own[i] * kTileTokens + min(lane % kTileTokens, count_of(i) - 1);
    return all_tokens ? plan.first_token + place : list[place];
  };
  const auto fetch = [&](int i, int token) {
    if (i < num_own) {
      TileRows rows;
      rows.find(cache, token);
      T* tile = tiles + i % kStages * 2 * kTileElements<T, kHeadDim>;
      gather_rows<kHeadDim>(rows.key, count_of(i), tile);
      gather_rows<kHeadDim>(rows.value, count_of(i), tile + kTileElements<T, kHeadDim>);
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
    const T* tile = tiles + i % kStages * 2 * kTileElements<T, kHeadDim>;
    float score[kHeadTiles][4];
    score_tile<T, kHeadDim, kHeadTiles>(tile, queries, score);
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
      for (int j = 0; j < 4; ++j) score[t][j] = lane / 4 + j / 2 * 8 < count_of(i) ? score[t][j] * to_log2 : -kInfinity;
    if (p.shape.logit_softcap > 0.0f) soft_cap_tile<kHeadTiles>(score, p.shape.logit_softcap * kLog2e);
    if (masks) mask_tile<kHeadTiles>(ranges, live, live == nullptr ? 0 : p.head(row).always.num_known, token_of(i), score);
    weigh_tile<kHeadDim, kHeadTiles>(score, state);
    uint32_t weight[kHeadTiles][2];
    pack_weights<Operand<T>, kHeadTiles>(score, weight);
    accumulate_tile<T, kHeadDim, kHeadTiles>(tile + kTileElements<T, kHeadDim>, weight, state);
    __syncwarp();
  }
  cp_async_wait<0>();
}

// Log of the weights of drawn tokens, to draw_weight.
template <class T, int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void score_draws(const StepParams& p, int row, const WarpTiles& own, const Operand<T>* queries, T* tile) {
  const RowPlan& plan = p.workspace.plan[row];
  const int lane = int(threadIdx.x) % kWarpSize, group = p.group;
  const HeadRows cache(p.kv, p.sequence_of(row), p.kv_head_of(row));
  const float scale = p.shape.sm_scale * key_scale<T>(p, row);
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
        float weight = score[t][j] * scale;
        if (p.shape.logit_softcap > 0.0f) weight = soft_cap(weight, p.shape.logit_softcap);
        if (draw < count && head < group) p.workspace.draw_weight[(at + draw) * group + head] = weight;
      }
    __syncwarp();
  }
}

// 16 int8 as bf16, which they fit without loss.
__device__ __forceinline__ void store_piece(const uint4& piece, bf16* out) {
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const auto byte = [&](int b) { return float(int8_t(words[w] >> (8 * b))); };
    reinterpret_cast<uint32_t*>(out)[2 * w] = pack<bf16>(byte(0), byte(1));
    reinterpret_cast<uint32_t*>(out)[2 * w + 1] = pack<bf16>(byte(2), byte(3));
  }
}

// Value means of 16 unread clusters and what weighs them, on their way from memory.
template <int kHeadDim, int kHeadTiles>
struct TailTile {
  static constexpr int kPieces = kHeadDim / 16;  // of 16 bytes, in a row
  uint4 value[kPieces / 2];
  float log_weight[kHeadTiles][4];
  float size[4], scale[4];  // of clusters 8 i + 2 (lane % 4) + j

  // cluster: the lane's, of place lane % 16.
  __device__ __forceinline__ void load_values(const SegmentView& clusters, int cluster) {
#pragma unroll
    for (int i = 0; i < kPieces / 2; ++i) value[i] = load_piece(clusters, cluster, i);
  }
  static __device__ __forceinline__ uint4 load_piece(const SegmentView& clusters, int cluster, int i) {
    const int piece = i * kWarpSize + int(threadIdx.x) % kWarpSize;
    const int of_row = __shfl_sync(kFullMask, cluster, piece / kPieces);
    return load_once_16(clusters.value_means + int64_t(of_row) * kHeadDim + piece % kPieces * 16);
  }
  static __device__ __forceinline__ bf16* place_of(bf16* tile, int i) {
    const int piece = i * kWarpSize + int(threadIdx.x) % kWarpSize;
    return tile + piece / kPieces * kTileStride<bf16, kHeadDim> + piece % kPieces * 16;
  }
  // row_weights: [slots][group], logs. Places from `count` on weigh nothing.
  __device__ __forceinline__ void load_weights(const StepParams& p, const float* row_weights, const SegmentView& clusters, int cluster,
                                               int count) {
    const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int place = i / 2 * 8 + lane % 4 * 2 + i % 2, own = __shfl_sync(kFullMask, cluster, place);
      size[i] = place < count ? clusters.size[own] : 0.0f;
      scale[i] = clusters.value_mean_scale[own];
#pragma unroll
      for (int t = 0; t < kHeadTiles; ++t) {
        const int head = t * 8 + lane / 4;
        log_weight[t][i] = head < p.group ? row_weights[own * p.group + head] : -kInfinity;
      }
    }
  }

  __device__ __forceinline__ void store_values(bf16* tile) const {
#pragma unroll
    for (int i = 0; i < kPieces / 2; ++i) store_piece(value[i], place_of(tile, i));
  }
  // Both at once, without registers for a whole tile.
  static __device__ __forceinline__ void copy_values(const SegmentView& clusters, int cluster, bf16* tile) {
#pragma unroll 2
    for (int i = 0; i < kPieces / 2; ++i) store_piece(load_piece(clusters, cluster, i), place_of(tile, i));
  }
  // The clusters' weights times the scales of their values, as operands; in units of exp(reference).
  __device__ __forceinline__ void pack_weights(const RowPlan& plan, int group, uint32_t (&weight)[kHeadTiles][2]) const {
    const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) {
      const int head = t * 8 + lane / 4;
      const float reference = head < group ? plan.reference[head] : 0.0f;
      const auto weight_of = [&](int i) { return cluster_weight(size[i], __expf(log_weight[t][i] - reference)) * scale[i]; };
#pragma unroll
      for (int j = 0; j < 2; ++j) weight[t][j] = pack<bf16>(weight_of(2 * j), weight_of(2 * j + 1));
    }
  }
};

// Unread clusters by their value means and expected weights, in units of exp(reference); the next tile is on its way meanwhile.
template <int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void attend_tail(const StepParams& p, int row, const WarpTiles& own, bf16* tile,
                                            TileState<kHeadDim, kHeadTiles>& state) {
  const RowPlan& plan = p.workspace.plan[row];
  const SegmentView& clusters = p.head(row).clusters;
  const int32_t* list = p.workspace.tail_clusters + int64_t(row) * p.max_slots;
  const float* weights = plan.path == DecodePath::sparse_tokens ? p.workspace.tail_weight : p.workspace.log_weight;
  weights += int64_t(row) * p.max_slots * p.group;
  const int lane = int(threadIdx.x) % kWarpSize, num_own = own.count();
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) state.max[t][j] = 0.0f;
  const auto cluster_of = [&](int i) { return i < num_own ? list[min(own[i] * kTileTokens + lane % kTileTokens, plan.num_tail - 1)] : 0; };
  const auto count_of = [&](int i) { return plan.num_tail - own[i] * kTileTokens; };
  constexpr bool kAhead = kHeadDim <= 128;  // beyond, two tiles do not fit into the registers
  TailTile<kHeadDim, kHeadTiles> current;
  int next_cluster = cluster_of(0);
  if (kAhead && num_own > 0) {
    current.load_weights(p, weights, clusters, next_cluster, count_of(0));
    current.load_values(clusters, next_cluster);
    next_cluster = cluster_of(1);
  }
#pragma unroll 1
  for (int i = 0; i < num_own; ++i) {
    TailTile<kHeadDim, kHeadTiles> following;
    uint32_t weight[kHeadTiles][2];
    if constexpr (kAhead) {
      if (i + 1 < num_own) {
        following.load_weights(p, weights, clusters, next_cluster, count_of(i + 1));
        following.load_values(clusters, next_cluster);
      }
      next_cluster = cluster_of(i + 2);
      current.pack_weights(plan, p.group, weight);
      current.store_values(tile);
    } else {
      current.copy_values(clusters, next_cluster, tile);
      current.load_weights(p, weights, clusters, next_cluster, count_of(i));
      current.pack_weights(plan, p.group, weight);
      next_cluster = cluster_of(i + 1);
    }
    __syncwarp();
    accumulate_tile<bf16, kHeadDim, kHeadTiles>(tile, weight, state);
    __syncwarp();
    if constexpr (kAhead) current = following;
  }
}

}  // namespace quorum::cuda
