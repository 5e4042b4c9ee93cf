// The device memory of a plan, laid out: sizes follow from shape, options and limits alone.
#pragma once

#include "quorum/core/arena.hpp"
#include "quorum/cuda/sparse_attention.cuh"

namespace quorum::cuda {

// Sets p.workspace from p's shape, capacities and num_sequences, columns and rows, which must be the largest. Returns the bytes used.
inline int64_t lay_out(std::byte* block, const DeviceTuning& device, StepParams& p) {
  Arena arena(block, kDeviceAlignment);
  StepWorkspace& w = p.workspace;
  const int64_t rows = p.num_rows(), group = p.group, partials = int64_t(p.num_rounds) * p.num_partials();
  const int64_t score_blocks = device.max_score_blocks(int(rows));
  w.quantised = arena.take<int8_t>(rows * kMaxGroupSize * p.shape.head_dim);
  w.constants = arena.take<QueryConstants>(rows * kMaxGroupSize);
  w.scaled_queries = arena.take<float>(rows * kMaxGroupSize * p.shape.head_dim);
  w.log_weight = arena.take<float>(rows * p.max_slots * group);
  w.cluster_weight = arena.take<AttentionState>(score_blocks * group);
  w.always_weight = arena.take<AttentionState>(score_blocks * group);
  w.plan = arena.take<RowPlan>(rows);
  w.tokens = arena.take<int32_t>(rows * p.max_tokens);
  w.tail_clusters = arena.take<int32_t>(rows * p.max_slots);
  w.draws = arena.take<TokenDraw>(rows * p.num_draws);
  w.counts = arena.take<int32_t>(kSegmentKinds * rows);
  const int64_t coded_rows = p.by_tokens ? rows : 0, scan_blocks = p.by_tokens ? device.max_scan_blocks(int(rows)) : 0;
  w.cluster_key = arena.take<uint16_t>(coded_rows * p.max_slots);
  w.tail_weight = arena.take<float>(coded_rows * p.max_slots * group);
  w.token_bucket = arena.take<uint16_t>(coded_rows * p.max_code_blocks() * kCodeBlock);
  w.token_histogram = arena.take<unsigned long long>(coded_rows * (group + 1) * kNumKeyBuckets);
  w.tile_counts = arena.take<uint32_t>(scan_blocks * kNumKeyBuckets);
  w.tile_start = arena.take<int32_t>(scan_blocks);
  w.unread_weight = arena.take<float>(scan_blocks * group);
  w.unread_share = arena.take<float>(p.samples_coded() ? rows * p.max_slots : 0);
  w.unread_tokens = arena.take<int32_t>(p.samples_coded() ? rows * p.max_slots : 0);
  w.draw_weight = arena.take<float>(rows * p.num_draws * group);
  w.tile_indptr = arena.take<int32_t>(p.num_rounds * (kSegmentKinds * rows + 1));
  w.partial_state = arena.take<AttentionState>(partials * group);
  w.partial_output = arena.take<float>(partials * group * p.shape.head_dim);
  return arena.used();
}

}  // namespace quorum::cuda
