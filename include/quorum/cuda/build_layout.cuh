// A build as it is planned: its options checked, its device memory laid out. All follows from shape, options and the number of tokens.
#pragma once

#include "quorum/core/arena.hpp"
#include "quorum/core/options.hpp"
#include "quorum/core/supports.hpp"
#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/support/device_buffer.cuh"

namespace quorum::cuda {

// Sizes and options of a build, checked. Errors: as build_index(), memory aside.
inline BuildParams plan_build(const AttentionShape& shape, const IndexOptions& options, int num_tokens) {
  const char* function = "cuda::build_index";
  validate(shape, function);
  validate(options, function);
  require(has_kernels(shape.head_dim), function, "shape.head_dim", "64, 96, 128 or 256", shape.head_dim);
  require(options.storage == IndexStorage::int8, function, "options.storage", "int8 on this device", "f32");
  require(options.variance != VarianceModel::diagonal, function, "options.variance", "none or shared on this device",
          int(options.variance));
  require(options.segment_tokens <= 65535, function, "options.segment_tokens", "at most 65535 on this device", options.segment_tokens);
  require(num_tokens >= 0 && num_tokens <= kMaxCount, function, "kv.num_tokens", "0 to 2^30", num_tokens);
  BuildParams p;
  p.tokens = IndexedTokens::of(num_tokens, options);
  p.num_kv_heads = shape.num_kv_heads;
  p.head_dim = shape.head_dim;
  p.cluster_size = options.cluster_size;
  p.segment_tokens = options.segment_tokens;
  p.iterations = options.iterations;
  p.seed = options.seed;
  if (p.tokens.count == 0) return p;
  p.num_segments = int(ceil_div(p.tokens.count, p.segment_tokens));
  p.slots_per_segment = p.segment(0).num_slots;
  require(p.slots_per_segment <= kMaxSegmentClusters, function, "options.cluster_size",
          "so large that a segment has at most 3072 clusters on this device", options.cluster_size);
  require(p.num_segments <= 65535, function, "options.segment_tokens", "so large that there are at most 65535 segments on this device",
          options.segment_tokens);
  const BuildSegment last = p.segment(p.num_segments - 1);
  p.num_slots = last.first_slot + last.num_slots;
  if (options.residual_codes) p.max_code_blocks = p.num_slots + p.tokens.count / kCodeBlock;
  return p;
}

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

// Device memory of a build in bytes: what the index is in the end, and what is free again once the build has run.
struct BuildBytes {
  int64_t index = 0;
  int64_t workspace = 0;
};

// Device memory that a build of num_tokens tokens needs. Errors: as build_index().
inline BuildBytes build_bytes(const AttentionShape& shape, const IndexOptions& options, int num_tokens) {
  BuildParams p = plan_build(shape, options, num_tokens);
  return {lay_out_index(nullptr, p), lay_out_build(nullptr, p)};
}

// Clusters of one KV head of a device-built index, padding included: what DecodeLimits::max_clusters must cover. Errors: as build_index().
inline int num_cluster_slots(const AttentionShape& shape, const IndexOptions& options, int num_tokens) {
  return plan_build(shape, options, num_tokens).num_slots;
}

}  // namespace quorum::cuda
