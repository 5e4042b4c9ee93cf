// Third stage where the index has residual codes: what every token of the candidates is expected to weigh (algorithm.md eq. 13).
#pragma once

#include "quorum/cpu/code_queue.hpp"
#include "quorum/cpu/simd/scan_codes.hpp"

namespace quorum::cpu {

// Code tables of all heads in the worker's scratch, from its q'. step[g]: value of one step of a sum, the gain included.
inline void fill_code_tables(const HeadTask& task, float* step) {
  const int d = task.head_dim();
  for (int g = 0; g < task.num_heads; ++g)
    step[g] = kCodeGain * simd::fill_code_tables(task.own().rotated.row(g), d, task.own().code_tables + int64_t(g) * code_table_bytes(d));
}

// What scanning one block of codes writes.
struct ScannedBlock {
  float* counted = nullptr;  // [heads][16], what the histogram adds up; 0 beyond the last token
  f16* share = nullptr;      // [heads][16], as shares of the total
  float* sums = nullptr;     // [heads] of vectors, whose lanes add up to the block's share
};

// Soft-caps the score that a share belongs to.
QUORUM_ALWAYS_INLINE simd::Vector cap_log_share(simd::Vector log_share, float log_total, float cap) {
  using simd::Vector;
  const Vector score = simd::multiply_add(log_share, Vector(1.0f / kLog2e), Vector(log_total));
  return (simd::soft_cap(score, cap) - Vector(log_total)) * Vector(kLog2e);
}

// Coded weights of a block from its sums of look-ups, heads [first, first + G) (kPlain: see weigh_batch()). seen [16]: 1 where a lane holds
// a token that the task sees, unless kPlain. keys [16]: the largest share of the heads before, then of these too.
template <int G, bool kPlain>
QUORUM_ALWAYS_INLINE void weigh_code_block(const ScanQueries& queries, const int32_t* dots, int num_lookups, const CodeBlock& block,
                                           const float* seen, int first, const ScannedBlock& out, float* keys) {
  using namespace simd;
  static constexpr float kLaneIndex[kCodeBlock] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Vector zero_point(-float(kCodeTableZero * num_lookups));
  Vector sums[G];
  for (int i = 0; i < G; ++i) sums[i] = Vector(0.0f);
  for (int lane = 0; lane < kCodeBlock; lane += kVectorSize) {
    const Vector scale = load_as_float(block.at.scale + lane) * Vector(kLog2e);
    const Vector left = kPlain ? Vector(float(block.num_tokens)) - load(kLaneIndex + lane) : load(seen + lane);
    Vector key = first > 0 ? load(keys + lane) : Vector(0.0f);
    for (int i = 0; i < G; ++i) {
      const int g = first + i, place = g * kCodeBlock + lane;
      const Vector sign_dot = (load_as_float(dots + i * kCodeBlock + lane) + zero_point) * Vector(queries.step[g]);
      Vector coded = coded_score(Vector(block.scores->log_share[g]), scale, sign_dot);
      if (!kPlain && queries.softcap > 0.0f) coded = cap_log_share(coded, queries.log_total[g], queries.softcap);
      const Vector log_share = minimum(coded, Vector(kLargestLogShare));
      const Vector share = where_positive(left, power_of_two(log_share), Vector(0.0f));
      const Vector expected(queries.counted_expected[g] * block.scores->expected[g]);
      store(out.counted + place, multiply_add(share, Vector(queries.counted_square[g]), expected) * share);
      store_as_f16(out.share + place, share);
      sums[i] = sums[i] + share;
      key = maximum(share, key);
    }
    store(keys + lane, key);
  }
  for (int i = 0; i < G; ++i) store(out.sums + (first + i) * kVectorSize, sums[i]);
}

// seen[i]: whether the task sees the i-th of a block's tokens; 0 beyond the last.
inline void find_seen(const HeadTask& task, const CodeBlock& block, float* seen) {
  for (int i = 0; i < kCodeBlock; ++i)
    seen[i] = i < block.num_tokens && (block.at.tokens == nullptr || task.filter.passes(block.at.tokens[i])) ? 1.0f : 0.0f;
}

// What the worker's candidates weigh.
struct ScanSums {
  double estimate[kMaxGroupSize] = {};  // by code
  double expected[kMaxGroupSize] = {};  // with the variance that the codes lost
};

// The blocks that go through the stages of the scan together, and what a stage leaves for the next, [blocks][heads][16] each.
struct ScanBatch {
  int first = 0;       // the worker's blocks [first, first + num_blocks), counted from 0
  int num_blocks = 0;  // kScanBlocks at most
  int64_t place = 0;   // scan block of the first
  int32_t dots[kScanBlocks * kMaxGroupSize * kCodeBlock];
  float counted[kScanBlocks * kMaxGroupSize * kCodeBlock];
  float vectors[kScanBlocks * kMaxGroupSize * simd::kVectorSize];  // whose lanes add up to a block's share
  float keys[kScanBlocks * kCodeBlock];                            // [blocks][16], largest share over the heads
};

// Sums of look-ups of all heads.
inline void look_up_batch(const HeadTask& task, CodeQueue& queue, ScanBatch& batch) {
  const int heads = task.num_heads, lines = code_lines(task.head_dim()), table_bytes = code_table_bytes(task.head_dim());
  const uint8_t* ahead[kScanBlocks];
  simd::for_code_lines(lines, [&](auto known) {
    simd::for_head_blocks(heads, [&](auto count, int g) {
      const uint8_t* tables = task.own().code_tables + int64_t(g) * table_bytes;
      for (int i = 0; i < batch.num_blocks; ++i) {
        if (g == 0) ahead[i] = queue.take_next();
        simd::scan_code_block<count(), known()>(queue[batch.first + i].at.codes, lines, tables, table_bytes,
                                                batch.dots + (i * heads + g) * kCodeBlock, ahead[i]);
      }
    });
  });
}

// Shares and keys of all heads. kPlain: no soft-capping, and every token is seen; an instance of its own, because these loops have no room
// for questions.
template <bool kPlain>
void weigh_batch(const HeadTask& task, const ScanQueries& queries, const CodeQueue& queue, ScanBatch& batch) {
  const int heads = task.num_heads, num_lookups = code_lines(task.head_dim()) * (kCodeLineDim / 4);
  float seen[kScanBlocks * kCodeBlock];
  for (int i = 0; !kPlain && i < batch.num_blocks; ++i) find_seen(task, queue[batch.first + i], seen + i * kCodeBlock);
  simd::for_head_blocks(heads, [&](auto count, int g) {
    for (int i = 0; i < batch.num_blocks; ++i) {
      const ScannedBlock out{batch.counted + i * heads * kCodeBlock, task.shared->token_share + (batch.place + i) * heads * kCodeBlock,
                             batch.vectors + i * heads * simd::kVectorSize};
      weigh_code_block<count(), kPlain>(queries, batch.dots + (i * heads + g) * kCodeBlock, num_lookups, queue[batch.first + i],
                                        seen + i * kCodeBlock, g, out, batch.keys + i * kCodeBlock);
    }
  });
  for (int i = 0; i < batch.num_blocks; ++i) {
    uint16_t* buckets = task.shared->token_bucket + (batch.place + i) * kCodeBlock;
    simd::key_buckets(batch.keys + i * kCodeBlock, buckets);
    for (int lane = 0; !kPlain && lane < queue[batch.first + i].num_tokens; ++lane)
      if (seen[i * kCodeBlock + lane] == 0.0f) buckets[lane] = uint16_t(kHiddenBucket);
  }
}

// Adds the blocks' shares to their candidates and to the sums.
inline void add_masses(const HeadTask& task, const ScanQueries& queries, const CodeQueue& queue, const ScanBatch& batch, ScanSums& sums) {
  const int heads = task.num_heads;
  simd::for_head_blocks(heads, [&](auto count, int first) {
    constexpr int G = count();
    float total[G], estimate[G] = {}, expected[G] = {};
    std::copy_n(queries.total + first, G, total);
    for (int i = 0; i < batch.num_blocks; ++i) {
      const CodeBlock& block = queue[batch.first + i];
      float* mass = task.shared->coded_mass + int64_t(block.candidate) * heads + first;
      float weight[G], factor[G];
      simd::reduce_rows<G>(batch.vectors + (i * heads + first) * simd::kVectorSize, weight);
      std::copy_n(block.scores->expected + first, G, factor);
      for (int j = 0; j < G; ++j) weight[j] *= total[j];
      for (int j = 0; j < G; ++j) estimate[j] += weight[j];
      for (int j = 0; j < G; ++j) expected[j] += weight[j] * factor[j];
      for (int j = 0; j < G; ++j) mass[j] += weight[j];
    }
    for (int j = 0; j < G; ++j) {
      sums.estimate[first + j] += double(estimate[j]);
      sums.expected[first + j] += double(expected[j]);
    }
  });
}

// The scan of the worker's blocks, num_blocks of them; place: scan block of the first. Every stage is a loop of its own: a block's
// look-ups, exponentials and histogram fill the window of a core each, so that one after the other they would wait for their own
// latencies.
inline void scan_queue(const HeadTask& task, const ScanQueries& queries, CodeQueue queue, int place, int num_blocks, ScanSums& sums) {
  const bool plain = queries.softcap == 0.0f && !task.filters_clusters;
  ScanBatch batch;
  for (batch.first = 0; batch.first < num_blocks; batch.first += kScanBlocks) {
    batch.num_blocks = std::min(kScanBlocks, num_blocks - batch.first);
    batch.place = place + batch.first;
    look_up_batch(task, queue, batch);
    (plain ? weigh_batch<true> : weigh_batch<false>)(task, queries, queue, batch);
    for (int i = 0; i < batch.num_blocks; ++i)
      add_block(task.own().token_keys, task.num_heads, task.shared->token_bucket + (batch.place + i) * kCodeBlock,
                batch.counted + i * task.num_heads * kCodeBlock, queue[batch.first + i].num_tokens);
    add_masses(task, queries, queue, batch, sums);
  }
}

// Coded weights of the tokens of candidates: their shares and key buckets, the worker's histogram of them, and the sums by candidate. The
// sums of all the worker's go to own().estimate, what they are expected to weigh, with the variance that the codes lost, to own().expected.
//
// Cost: code_bytes_per_token() a slot, read once for the group; two look-ups a head and eight coordinates.
inline void scan_candidates(const HeadTask& task, const ClusterHeadView& head, const ScanQueries& queries, CandidateRange range) {
  const int heads = task.num_heads;
  const int32_t* first_block = task.shared->first_block;
  const int place = first_block[range.first], num_blocks = first_block[range.last] - place;
  clear(task.own().token_keys, heads);
  ScanSums sums;
  if (num_blocks > 0) scan_queue(task, queries, CodeQueue(task, head, queries, range), place, num_blocks, sums);
  std::copy_n(sums.estimate, heads, task.own().estimate);
  std::copy_n(sums.expected, heads, task.own().expected);
}

}  // namespace quorum::cpu
