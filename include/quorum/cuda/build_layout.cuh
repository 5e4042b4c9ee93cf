// The device memory of a build, laid out: sizes follow from shape, options and the number of tokens alone.
#pragma once

#include "quorum/core/arena.hpp"
#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/workspace.cuh"

namespace quorum::cuda {

// Sets p.index from p's sizes. Returns the bytes used; the views of the heads come first.
inline int64_t lay_out_index(std::byte* block, BuildParams& p) {
  Arena arena(block, kDeviceAlignment);
  IndexArrays& a = p.index;
  const int64_t heads = p.num_kv_heads, d = p.head_dim, slots = heads * p.num_slots, rows = heads * d;
  a.heads = arena.take<FlatHeadView>(heads);
  a.always = arena.take<int32_t>(p.tokens.num_listed());
  if (p.tokens.count == 0) return arena.used();
  a.inverse = arena.take<f16>(rows * d);
  a.signs = arena.take<float>(rows);
  a.eigenvalues = arena.take<float>(rows);
  a.mean_key = arena.take<float>(rows);
  a.centroids = arena.take<uint8_t>(slots * d);
  a.centroid_scale = arena.take<float>(slots);
  a.spread = arena.take<float>(slots);
  a.size = arena.take<float>(slots);
  a.cluster_indptr = arena.take<int32_t>(slots + heads);
  a.cluster_tokens = arena.take<int32_t>(heads * p.tokens.count);
  a.value_means = arena.take<int8_t>(slots * d);
  a.value_mean_scale = arena.take<float>(slots);
  if (!p.residual_codes()) return arena.used();
  const int64_t blocks = heads * p.max_code_blocks;
  a.codes = arena.take<uint8_t>(blocks * code_block_bytes(p.head_dim));
  a.code_scale = arena.take<f16>(blocks * kCodeBlock);
  a.code_indptr = arena.take<int32_t>(slots + heads);
  return arena.used();
}

// Sets p.workspace likewise.
inline int64_t lay_out_build(std::byte* block, BuildParams& p) {
  Arena arena(block, kDeviceAlignment);
  if (p.tokens.count == 0) return 0;
  BuildWorkspace& w = p.workspace;
  const int64_t heads = p.num_kv_heads, d = p.head_dim, slots = heads * p.num_slots, square = heads * d * d;
  w.key_sums = arena.take<float>(heads * p.key_tiles() * d);
  w.key_flags = arena.take<int32_t>(heads * p.key_tiles());
  w.forward = arena.take<float>(square);
  w.inverse = arena.take<float>(square);
  w.rows = arena.take<int8_t>(heads * p.padded_rows() * d);
  w.constants = arena.take<RowConstants>(heads * p.padded_rows());
  w.assignment = arena.take<int32_t>(heads * p.tokens.count);
  w.distance = arena.take<float>(heads * p.tokens.count);
  w.half_norm = arena.take<float>(slots);
  w.empty_rank = arena.take<int32_t>(slots);
  w.num_empty = arena.take<int32_t>(heads * p.num_segments);
  w.changed = arena.take<int32_t>(heads * (p.iterations + 1) * p.num_segments);
  w.means = arena.take<float>(slots * d);
  w.moment = arena.take<float>(square);
  w.turn = arena.take<float>(square);
  w.turned = arena.take<float>(square);
  w.to_index = arena.take<float>(square);
  w.value_flags = arena.take<int32_t>(slots);
  if (!p.residual_codes()) return arena.used();
  w.value_sums = arena.take<ValueSums>(slots);
  w.code_squares = arena.take<float>(heads * p.max_code_blocks);
  return arena.used();
}

}  // namespace quorum::cuda
