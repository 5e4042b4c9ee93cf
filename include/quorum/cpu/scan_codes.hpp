// Third stage where the index has residual codes: what every token of the candidates is expected to weigh (algorithm.md eq. 13).
#pragma once

#include "quorum/cpu/attend_rows.hpp"
#include "quorum/cpu/choose_candidates.hpp"
#include "quorum/cpu/simd/scan_codes.hpp"

namespace quorum::cpu {

// Coded weights beyond this share of everything that was expected are taken for that: sums stay finite, and f16, as which shares are kept,
// ends at 65504.
inline constexpr float kLargestLogShare = 15.8f;  // base 2

// Code tables of all heads in the worker's scratch, from its q'. step[g]: value of one step of a sum, the gain included.
inline void fill_code_tables(const HeadTask& task, float* step) {
  const int d = task.head_dim();
  for (int g = 0; g < task.num_heads; ++g)
    step[g] = kCodeGain * simd::fill_code_tables(task.own().rotated.row(g), d, task.own().code_tables + int64_t(g) * code_table_bytes(d));
}

// What scanning needs to know of the queries.
struct ScanQueries {
  float step[kMaxGroupSize];                     // value of one step of a sum of the tables
  float half_variance[kMaxGroupSize] = {};       // of the second-order term that the clusters' log weights contain
  float half_lost_variance[kMaxGroupSize] = {};  // half the variance of a score, given the code, for a spread of 1
  float log_total[kMaxGroupSize] = {};           // of the weight that is expected in all
  float total[kMaxGroupSize] = {};               // the same in units of exp(reference)
  float inverse_total[kMaxGroupSize] = {};
  // What the histogram adds up for a share: squared coded weights, or expected ones. One of the two is 0.
  float counted_square[kMaxGroupSize] = {};    // this times its square
  float counted_expected[kMaxGroupSize] = {};  // this times what it is expected to be
  float softcap = 0.0f;                        // AttentionShape::logit_softcap
};

// What the scan knows of a block of 16 clusters, [heads][16]; base 2, where exponentials cost least.
struct CentroidScores {
  float log_share[kMaxGroupSize * kClusterBlock];  // of a token by its centroid, without the second-order term: codes stand for that
  float expected[kMaxGroupSize * kClusterBlock];   // factor from a coded to an expected weight
  int block = -1;
};
inline void score_centroids(const HeadTask& task, const ClusterHeadView& head, int block, const ScanQueries& queries,
                            CentroidScores& scores) {
  using namespace simd;
  const ClusterRef first = cluster_at(head, block * kClusterBlock);
  scores.block = block;
  for (int g = 0; g < task.num_heads; ++g) {
    const float* log_weight = task.shared->log_weight + (int64_t(block) * task.num_heads + g) * kClusterBlock;
    const Vector log_total(queries.log_total[g]), half_variance(queries.half_variance[g]), half_lost(queries.half_lost_variance[g]);
    for (int lane = 0; lane < kClusterBlock; lane += kVectorSize) {
      const Vector spread = load(first.segment->spread + first.local + lane);
      const Vector estimate = limited_token_log_weight(log_total, spread, half_variance);
      const int place = g * kClusterBlock + lane;
      store(scores.log_share + place, (load(log_weight + lane) - estimate) * Vector(kLog2e));
      store(scores.expected + place, exponential(limited_half_variance(spread * half_lost)));
    }
  }
}

// The worker's part of the candidates: about as many blocks of codes as any other's.
struct CandidateRange {
  int first = 0, last = 0;
};
inline CandidateRange candidate_range(const HeadTask& task, const CandidateCounts& candidates) {
  const int32_t *begin = task.shared->first_block, *end = begin + candidates.clusters;
  const auto at = [&](int block) { return int(std::lower_bound(begin, end, block) - begin); };
  return {at(task.team.first(candidates.blocks)), at(task.team.last(candidates.blocks))};
}

// Where a cluster's codes and their scales are.
struct ClusterCodes {
  const uint8_t* codes = nullptr;
  const f16* scale = nullptr;
  const int32_t* tokens = nullptr;  // whose codes they are, if the task does not see all of them
};
inline ClusterCodes codes_of(ClusterRef cluster, int64_t block_bytes) {
  const int64_t first = cluster.segment->code_indptr[cluster.local];
  return {cluster.segment->codes + first * block_bytes, cluster.segment->code_scale + first * kCodeBlock, nullptr};
}

inline void prefetch_value_mean(ClusterRef cluster, int head_dim) {
  const int64_t at = int64_t(cluster.local) * head_dim;
  if (cluster.segment->value_means != nullptr)
    prefetch_row(reinterpret_cast<const std::byte*>(cluster.segment->value_means + at), head_dim);
  else
    prefetch_row(reinterpret_cast<const std::byte*>(cluster.segment->value_means_f32 + at), 4 * head_dim);
}

// What scanning one block of codes writes.
struct ScannedBlock {
  float* counted = nullptr;     // [heads][16], what the histogram adds up; 0 beyond the last token
  f16* share = nullptr;         // [heads][16], as shares of the total
  uint16_t* buckets = nullptr;  // [16], of the largest of the shares
};

// Soft-caps the score that a share belongs to.
QUORUM_ALWAYS_INLINE simd::Vector cap_log_share(simd::Vector log_share, float log_total, float cap) {
  using simd::Vector;
  const Vector score = simd::multiply_add(log_share, Vector(1.0f / kLog2e), Vector(log_total));
  return (simd::soft_cap(score, cap) - Vector(log_total)) * Vector(kLog2e);
}

// Which lanes of a block hold a token that the task sees.
struct CodedLanes {
  int num_tokens = 0;           // lanes beyond hold none
  const float* seen = nullptr;  // [16], 1 where one does; null: the first num_tokens
};

// Coded weights of a block from its sums of look-ups, heads [first, first + G) (kPlain: see scan_blocks()); their shares are added to sums
// [heads] of vectors. keys [16]: the largest share of the heads before, then of these too.
template <int G, bool kPlain>
QUORUM_ALWAYS_INLINE void weigh_code_block(const ScanQueries& queries, const int32_t* dots, int num_lookups, const f16* scales,
                                           const CentroidScores& centroids, int cluster, CodedLanes lanes, int first,
                                           const ScannedBlock& out, float* sums, float* keys) {
  using namespace simd;
  static constexpr float kLaneIndex[kCodeBlock] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Vector zero_point(-float(kCodeTableZero * num_lookups));
  for (int lane = 0; lane < kCodeBlock; lane += kVectorSize) {
    const Vector scale = load_as_float(scales + lane) * Vector(kLog2e);
    const Vector left =
        kPlain || lanes.seen == nullptr ? Vector(float(lanes.num_tokens)) - load(kLaneIndex + lane) : load(lanes.seen + lane);
    Vector key = first > 0 ? load(keys + lane) : Vector(0.0f);
    for (int i = 0; i < G; ++i) {
      const int g = first + i, place = g * kCodeBlock + lane;
      const Vector sign_dot = (load_as_float(dots + i * kCodeBlock + lane) + zero_point) * Vector(queries.step[g]);
      const Vector centroid(centroids.log_share[g * kClusterBlock + cluster]);
      Vector coded = coded_score(centroid, scale, sign_dot);
      if (!kPlain && queries.softcap > 0.0f) coded = cap_log_share(coded, queries.log_total[g], queries.softcap);
      const Vector log_share = minimum(coded, Vector(kLargestLogShare));
      const Vector share = where_positive(left, power_of_two(log_share), Vector(0.0f));
      const Vector expected(queries.counted_expected[g] * centroids.expected[g * kClusterBlock + cluster]);
      store(out.counted + place, multiply_add(share, Vector(queries.counted_square[g]), expected) * share);
      store_as_f16(out.share + place, share);
      store(sums + g * kVectorSize, load(sums + g * kVectorSize) + share);
      key = maximum(share, key);
    }
    store(keys + lane, key);
  }
}

// Goes through the worker's blocks of codes some way ahead of the scan, and asks for what belongs to them: scales, lists of tokens, and the
// value means of candidates and of other clusters, for which scanning leaves time: it computes more than it reads. Lines of memory are
// asked for a few at a time: a burst would fill the queue of outstanding ones and stop the core.
class CodesAhead {
 public:
  CodesAhead(const HeadTask& task, const ClusterHeadView& head, CandidateRange range, int64_t block_bytes)
      : task_(task), head_(head), range_(range), candidate_(range.first), block_bytes_(block_bytes) {
    const int blocks = int(std::max<int64_t>(1, kAhead / block_bytes));
    for (int i = 0; i < blocks; ++i) prefetch_row(reinterpret_cast<const std::byte*>(next()), int(block_bytes));
  }

  // The codes of the next block; at the end, of the last one again.
  const uint8_t* next() {
    if (left_ == 0 && candidate_ < range_.last) enter();
    if (left_ == 0) return codes_.codes;
    const ClusterCodes at = codes_;
    simd::prefetch(at.scale);
    if (--left_ > 0) {
      codes_.codes += block_bytes_;
      codes_.scale += kCodeBlock;
    }
    return at.codes;
  }

 private:
  static constexpr int64_t kAhead = 4096;  // bytes of codes

  void enter() {
    const HeadScratch& shared = *task_.shared;
    const ClusterRef cluster = cluster_at(head_, shared.cluster[candidate_]);
    codes_ = codes_of(cluster, block_bytes_);
    left_ = shared.first_block[candidate_ + 1] - shared.first_block[candidate_];
    prefetch_row(reinterpret_cast<const std::byte*>(cluster.tokens()), cluster.size() * int(sizeof(int32_t)));
    prefetch_value_mean(cluster, task_.head_dim());
    ++candidate_;
    const int32_t* outside = own_outside(task_, head_);
    const int due = int(int64_t(task_.own().num_outside) * (candidate_ - range_.first) / (range_.last - range_.first));
    for (; outside_ < due; ++outside_) prefetch_value_mean(cluster_at(head_, outside[outside_]), task_.head_dim());
  }

  const HeadTask& task_;
  const ClusterHeadView& head_;
  const CandidateRange range_;
  int candidate_;    // next one to enter
  int left_ = 0;     // blocks of the candidate before it
  int outside_ = 0;  // other clusters that have been asked for
  ClusterCodes codes_;
  int64_t block_bytes_;
};

// Blocks of codes that go through the stages of the scan together. Every stage is a loop of its own: a block's look-ups, exponentials and
// histogram fill the window of a core each, so that one after the other they would wait for their own latencies.
inline constexpr int kScanBlocks = 8;

// seen[i]: whether the task sees the i-th of a block's tokens; 0 beyond the last.
inline void find_seen(const HeadTask& task, const int32_t* tokens, int num_tokens, float* seen) {
  for (int i = 0; i < kCodeBlock; ++i) seen[i] = i < num_tokens && task.filter.passes(tokens[i]) ? 1.0f : 0.0f;
}

// The scan of up to kScanBlocks blocks of one candidate from scan block `first` on; sums [heads] of vectors gain their shares. kPlain: no
// soft-capping, and every token is seen; an instance of its own, because these loops have no room for questions.
template <bool kPlain>
void scan_blocks(const HeadTask& task, const ScanQueries& queries, ClusterCodes at, const CentroidScores& centroids, int cluster, int first,
                 int num_tokens, CodesAhead& later, float* sums) {
  const int heads = task.num_heads, lines = code_lines(task.head_dim()), table_bytes = code_table_bytes(task.head_dim());
  const int num_blocks = num_code_blocks(num_tokens), block = heads * kCodeBlock;
  const bool filters = !kPlain && at.tokens != nullptr;
  int32_t dots[kScanBlocks * kMaxGroupSize * kCodeBlock];
  float counted[kScanBlocks * kMaxGroupSize * kCodeBlock];
  for (int i = 0; i < num_blocks; ++i) {
    const uint8_t* ahead = later.next();
    simd::for_head_blocks(heads, [&](auto count, int g) {
      simd::scan_code_block<count()>(at.codes + int64_t(i) * lines * kCodeLineBytes, lines,
                                     task.own().code_tables + int64_t(g) * table_bytes, table_bytes, dots + i * block + g * kCodeBlock,
                                     ahead);
    });
  }
  const HeadScratch& shared = *task.shared;
  for (int i = 0; i < num_blocks; ++i) {
    const int64_t place = first + i;
    const ScannedBlock out{counted + i * block, shared.token_share + place * block, shared.token_bucket + place * kCodeBlock};
    float keys[kCodeBlock], seen[kCodeBlock];
    const CodedLanes lanes{num_tokens - i * kCodeBlock, filters ? seen : nullptr};
    if (filters) find_seen(task, at.tokens + i * kCodeBlock, lanes.num_tokens, seen);
    simd::for_head_blocks(heads, [&](auto count, int g) {
      weigh_code_block<count(), kPlain>(queries, dots + i * block + g * kCodeBlock, lines * (kCodeLineDim / 4), at.scale + i * kCodeBlock,
                                        centroids, cluster, lanes, g, out, sums, keys);
    });
    simd::key_buckets(keys, out.buckets);
    for (int lane = 0; filters && lane < std::min(lanes.num_tokens, kCodeBlock); ++lane)
      if (seen[lane] == 0.0f) out.buckets[lane] = uint16_t(kHiddenBucket);
  }
  for (int i = 0; i < num_blocks; ++i)
    add_block(task.own().token_keys, heads, shared.token_bucket + int64_t(first + i) * kCodeBlock, counted + i * block,
              std::min(num_tokens - i * kCodeBlock, kCodeBlock));
}

// Coded weights of the tokens of candidates: their shares and key buckets, the worker's histogram of them, and the sums by candidate. The
// sums of all the worker's go to own().estimate, what they are expected to weigh, with the variance that the codes lost, to own().expected.
//
// Cost: code_bytes_per_token() a slot, read once for the group; two look-ups a head and eight coordinates.
inline void scan_candidates(const HeadTask& task, const ClusterHeadView& head, const ScanQueries& queries, CandidateRange range) {
  const int64_t block_bytes = code_block_bytes(task.head_dim());
  const int heads = task.num_heads;
  const HeadScratch& shared = *task.shared;
  clear(task.own().token_keys, heads);
  double estimate[kMaxGroupSize] = {}, expected[kMaxGroupSize] = {};
  CodesAhead later(task, head, range, block_bytes);
  CentroidScores centroids;
  const bool plain = queries.softcap == 0.0f && !task.filters_clusters;
  for (int candidate = range.first; candidate < range.last; ++candidate) {
    const ClusterRef cluster = cluster_at(head, shared.cluster[candidate]);
    ClusterCodes at = codes_of(cluster, block_bytes);
    if (task.filters_clusters) at.tokens = cluster.tokens();
    const int block = shared.cluster[candidate] / kClusterBlock, lane = shared.cluster[candidate] % kClusterBlock;
    if (block != centroids.block) score_centroids(task, head, block, queries, centroids);
    alignas(64) float sums[kMaxGroupSize * simd::kVectorSize];
    std::fill_n(sums, heads * simd::kVectorSize, 0.0f);
    for (int left = cluster.size(), first = shared.first_block[candidate]; left > 0; left -= kScanBlocks * kCodeBlock) {
      (plain ? scan_blocks<true> : scan_blocks<false>)(task, queries, at, centroids, lane, first, std::min(left, kScanBlocks * kCodeBlock),
                                                       later, sums);
      first += kScanBlocks;
      at.codes += kScanBlocks * block_bytes;
      at.scale += kScanBlocks * kCodeBlock;
      if (at.tokens != nullptr) at.tokens += kScanBlocks * kCodeBlock;
    }
    float* mass = shared.coded_mass + int64_t(candidate) * heads;
    simd::for_head_blocks(heads, [&](auto count, int g) { simd::reduce_rows<count()>(sums + g * simd::kVectorSize, mass + g); });
    for (int g = 0; g < heads; ++g) {
      mass[g] *= queries.total[g];
      estimate[g] += double(mass[g]);
      expected[g] += double(mass[g] * centroids.expected[g * kClusterBlock + lane]);
    }
  }
  std::copy_n(estimate, heads, task.own().estimate);
  std::copy_n(expected, heads, task.own().expected);
}

}  // namespace quorum::cpu
