// Scratch memory: laid out once when planning, from one block of the caller's or the decoder's, never grown.
#pragma once

#include "quorum/core/arena.hpp"
#include "quorum/core/attention_state.hpp"
#include "quorum/core/cluster_index_view.hpp"
#include "quorum/core/cluster_order.hpp"
#include "quorum/cpu/row_kernels.hpp"
#include "quorum/cpu/simd/key_buckets.hpp"
#include "quorum/cpu/stage_clock.hpp"

namespace quorum::cpu {

using quorum::Arena;
inline HeadRows take_rows(Arena& arena, int num_heads, int64_t stride) { return {arena.take<float>(num_heads * stride), int(stride)}; }

// Rows up to this long are copied before their scores are computed (gather_rows in cpu/attend_rows.hpp says why).
inline constexpr int kMaxGatheredBytes = 256;

// Weights and numbers of entries by key bucket. Rows of weights are padded to whole registers.
struct KeyHistogram {
  float* weights = nullptr;   // [kNumKeyBuckets + 1][bucket_row(heads)]
  int32_t* counts = nullptr;  // [kNumKeyBuckets + 1]
};
// Bucket of a token that the task does not see: in no threshold, in no sum.
inline constexpr int kHiddenBucket = kNumKeyBuckets;
constexpr int bucket_row(int num_heads) { return int(round_up(num_heads, simd::kBucketHeads)); }

// How many clusters are candidates, how many tokens they have, how many blocks of codes.
struct CandidateCounts {
  int clusters = 0;
  int tokens = 0;
  int blocks = 0;
};

// What one worker keeps to itself, and the partial results that its team reads after a barrier.
struct WorkerScratch {
  HeadRows queries;                  // [heads][padded dim], scaled
  HeadRows rotated;                  // [heads][padded dim], q'
  int8_t* quantised = nullptr;       // [heads][padded dim], q' in int8
  uint8_t* code_tables = nullptr;    // [heads][code_table_bytes], for residual codes
  HeadRows accumulated;              // [heads][padded dim], weighted values
  HeadRows tile;                     // [heads][kTileRows], scores or weights of a tile
  std::byte* gathered = nullptr;     // [kTileRows][kMaxGatheredBytes], copies of scattered rows
  int32_t* histogram = nullptr;      // [kNumOrderBuckets]
  float* share_histogram = nullptr;  // [kNumShareBuckets]
  KeyHistogram cluster_keys;         // of the worker's clusters, for residual codes
  KeyHistogram token_keys;           // of the candidates' tokens in the worker's scan blocks

  StageClock clock;

  // Published to the team.
  AttentionState states[kMaxGroupSize];
  float max_score[kMaxGroupSize];
  double always[kMaxGroupSize];
  double estimate[kMaxGroupSize];
  double expected[kMaxGroupSize];
  double share_sum = 0.0;
  double size_sum = 0.0;
  double outside_share_sum = 0.0;
  double outside_size_sum = 0.0;
  CandidateCounts candidates;
  int num_outside = 0;
  bool non_finite = false;
};

// Buckets of clusters' shares of the rest: 16 an octave, 64 octaves below 1.
inline constexpr int kNumShareBuckets = 1024;

// What the team of one KV head shares. Arrays over positions follow the reading order: position 0 is read first.
struct HeadScratch {
  HeadRows transformed;            // [heads][padded dim], y
  float* log_weight = nullptr;     // [block][heads][16], log of the expected weight of a token, before soft-capping
  float* estimate = nullptr;       // [block][heads][16], expected weight of a cluster
  float* visible_size = nullptr;   // [slots], tokens of each cluster that the task sees; HeadTask::filters_clusters only
  int32_t* bucket = nullptr;       // [slots]
  int32_t* cluster = nullptr;      // [positions]
  int32_t* size = nullptr;         // [positions]
  HeadRows ordered;                // [heads][positions], expected weights
  HeadRows read_weight;            // [heads][positions], exact weights of clusters that were read
  int32_t* first_token = nullptr;  // [positions + 1], where a cluster's tokens start in `tokens`
  float* share = nullptr;          // [positions], share of the rest, largest over the heads
  int32_t* tokens = nullptr;       // [max_tokens], tokens read: sinks and window, then clusters in order
  HeadRows weights;                // [heads][max_tokens], scores of `tokens`, later their weights
  HeadRows contributions;          // [heads][num_samples]

  // With residual codes; `cluster` then holds the candidates, `share` the clusters' keys, `bucket` lists of clusters.
  int32_t* first_block = nullptr;    // [candidates + 1], first scan block of each: their blocks of codes one after the other
  float* coded_mass = nullptr;       // [candidate][heads], coded weight of its unread tokens
  uint16_t* token_bucket = nullptr;  // [scan block][16], key buckets of the tokens; the last bucket beyond a candidate's last token
  f16* token_share = nullptr;        // [scan block][heads][16], coded weights as shares of the total
};

// Sizes that scratch memory depends on.
struct ScratchLimits {
  int num_heads = 1;  // query heads handled together
  int head_dim = 0;
  int max_tokens = 0;
  int max_cluster_slots = 0;
  int num_samples = 0;
  bool residual_codes = false;

  // Every cluster may leave one block of codes unfilled.
  int64_t max_scan_blocks() const { return residual_codes ? max_tokens / kCodeBlock + max_cluster_slots : 0; }
};

inline void lay_out(Arena& arena, const ScratchLimits& limits, WorkerScratch& scratch) {
  const int dim = padded_dim(limits.head_dim);
  scratch.queries = take_rows(arena, limits.num_heads, dim);
  scratch.rotated = take_rows(arena, limits.num_heads, dim);
  scratch.quantised = arena.take<int8_t>(int64_t(limits.num_heads) * dim);
  scratch.code_tables = arena.take<uint8_t>(limits.residual_codes ? int64_t(limits.num_heads) * code_table_bytes(limits.head_dim) : 0);
  for (KeyHistogram* histogram : {&scratch.cluster_keys, &scratch.token_keys}) {
    histogram->weights = arena.take<float>(limits.residual_codes ? int64_t(kNumKeyBuckets + 1) * bucket_row(limits.num_heads) : 0);
    histogram->counts = arena.take<int32_t>(limits.residual_codes ? kNumKeyBuckets + 1 : 0);
  }
  scratch.accumulated = take_rows(arena, limits.num_heads, dim);
  scratch.tile = take_rows(arena, limits.num_heads, kTileRows);
  scratch.gathered = arena.take<std::byte>(int64_t(kTileRows) * kMaxGatheredBytes);
  scratch.histogram = arena.take<int32_t>(kNumOrderBuckets);
  scratch.share_histogram = arena.take<float>(kNumShareBuckets);
}

inline void lay_out(Arena& arena, const ScratchLimits& limits, HeadScratch& scratch) {
  const int64_t heads = limits.num_heads, slots = round_up(limits.max_cluster_slots, kClusterBlock);
  scratch.transformed = take_rows(arena, limits.num_heads, padded_dim(limits.head_dim));
  scratch.log_weight = arena.take<float>(slots * heads);
  scratch.estimate = arena.take<float>(slots * heads);
  scratch.visible_size = arena.take<float>(slots);
  scratch.bucket = arena.take<int32_t>(slots);
  scratch.cluster = arena.take<int32_t>(slots);
  scratch.size = arena.take<int32_t>(slots);
  scratch.ordered = take_rows(arena, limits.num_heads, slots + kRowAlignment);
  scratch.read_weight = take_rows(arena, limits.num_heads, slots + kRowAlignment);
  scratch.first_token = arena.take<int32_t>(slots + 1);
  scratch.share = arena.take<float>(slots);
  scratch.tokens = arena.take<int32_t>(round_up(limits.max_tokens, kTileRows));
  scratch.weights = take_rows(arena, limits.num_heads, round_up(limits.max_tokens, kTileRows) + kTileRows);
  scratch.contributions = take_rows(arena, limits.num_heads, round_up(limits.num_samples, kTileRows));
  const int64_t scan_blocks = limits.max_scan_blocks();
  scratch.first_block = arena.take<int32_t>(limits.residual_codes ? slots + 1 : 0);
  scratch.coded_mass = arena.take<float>(limits.residual_codes ? slots * heads : 0);
  scratch.token_bucket = arena.take<uint16_t>(scan_blocks * kCodeBlock);
  scratch.token_share = arena.take<f16>(scan_blocks * heads * kCodeBlock);
}

}  // namespace quorum::cpu
