// Choosing by a threshold instead of a sort: the highest key above which the entries weigh enough for every head of a group.
#pragma once

#include "quorum/core/token_order.hpp"
#include "quorum/cpu/head_task.hpp"
#include "quorum/cpu/simd/key_buckets.hpp"

namespace quorum::cpu {

// Entries whose key reaches some threshold.
struct Chosen {
  double weight[kMaxGroupSize] = {};
  int64_t count = 0;
};

// All entries of buckets [0, bucket]; before anything has been chosen, bucket is -1 and no key reaches `key`.
struct Threshold {
  int bucket = -1;
  float key = kInfinity;
  Chosen chosen;
};

inline void clear(KeyHistogram histogram, int num_heads) {
  std::fill_n(histogram.weights, int64_t(kNumKeyBuckets + 1) * bucket_row(num_heads), 0.0f);
  std::fill_n(histogram.counts, kNumKeyBuckets + 1, 0);
}

// Adds a block of 16 entries, the first `count` of them: their buckets, their weights [num_heads][16]. The others must weigh nothing.
inline void add_block(KeyHistogram histogram, int num_heads, const uint16_t* buckets, const float* weights, int count) {
  simd::for_head_blocks(num_heads, [&](auto heads, int g) {
    simd::add_to_buckets<heads()>(buckets, weights + g * 16, count, histogram.weights + g, bucket_row(num_heads));
  });
  for (int i = 0; i < count; ++i) ++histogram.counts[buckets[i]];
}

// Buckets that are passed over together if nobody has put anything there: most of them lie outside the range of the keys.
inline constexpr int kEmptyRun = 8;
inline bool all_empty(const HeadTask& task, KeyHistogram WorkerScratch::*histogram, int first) {
  int32_t any = 0;
  for (int w = 0; w < task.team.num_workers; ++w) {
    const int32_t* counts = (task.workers[w].*histogram).counts + first;
    for (int i = 0; i < kEmptyRun; ++i) any |= counts[i];
  }
  return any == 0;
}

// Goes on from `from` to the first threshold at which the chosen entries of all workers are enough(chosen), or stops before the one that
// would choose more than max_count; the last bucket is never chosen. Caller: a barrier since the histograms were filled. Determinism: every
// worker of a team gets the same.
template <class Enough>
Threshold next_threshold(const HeadTask& task, KeyHistogram WorkerScratch::*histogram, Threshold from, int64_t max_count, Enough&& enough) {
  const int row = bucket_row(task.num_heads);
  while (from.bucket < kNumKeyBuckets - 2 && !enough(from.chosen)) {
    while (from.bucket + kEmptyRun < kNumKeyBuckets - 2 && all_empty(task, histogram, from.bucket + 1)) from.bucket += kEmptyRun;
    if (from.bucket == kNumKeyBuckets - 2) break;
    const int bucket = from.bucket + 1;
    int64_t count = 0;
    for (int w = 0; w < task.team.num_workers; ++w) count += (task.workers[w].*histogram).counts[bucket];
    if (from.chosen.count + count > max_count) break;
    from.bucket = bucket;
    from.chosen.count += count;
    for (int w = 0; w < task.team.num_workers; ++w) {
      const float* weights = (task.workers[w].*histogram).weights + bucket * row;
      for (int g = 0; g < row; g += simd::kBucketHeads)  // whole registers: sums beyond the heads are 0
        for (int i = 0; i < simd::kBucketHeads; ++i) from.chosen.weight[g + i] += double(weights[g + i]);
    }
  }
  if (from.bucket >= 0) from.key = bucket_key(from.bucket);
  return from;
}

// Sums of all workers' entries, those of the last bucket too, by head. Caller: as next_threshold().
inline void add_up(const HeadTask& task, KeyHistogram WorkerScratch::*histogram, double* sums) {
  const Threshold all = next_threshold(task, histogram, {}, kMaxCount, [](const Chosen&) { return false; });
  std::copy_n(all.chosen.weight, task.num_heads, sums);
  for (int w = 0; w < task.team.num_workers; ++w)
    for (int g = 0; g < task.num_heads; ++g)
      sums[g] += double((task.workers[w].*histogram).weights[(kNumKeyBuckets - 1) * bucket_row(task.num_heads) + g]);
}

}  // namespace quorum::cpu
