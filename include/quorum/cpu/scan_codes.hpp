// Third stage where the index has residual codes: what every token of the candidates is expected to weigh (algorithm.md eq. 13).
#pragma once

#include "quorum/cpu/attend_rows.hpp"
#include "quorum/cpu/choose_candidates.hpp"
#include "quorum/cpu/simd/scan_codes.hpp"

namespace quorum::cpu {

// Coded scores beyond exp(40) times everything that was expected are taken for that: sums stay finite.
inline constexpr float kLargestCodedScore = 40.0f;
// Shares are kept as f16, which ends at 65504.
inline constexpr float kLargestShare = 60000.0f;

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
  float reference[kMaxGroupSize] = {};
  float inverse_total[kMaxGroupSize];  // of the weight that is expected in all
  bool by_square = false;              // the histogram adds up squared coded weights, else expected weights
};

// What the scan knows of a candidate, by head.
struct CandidateScores {
  float centroid[kMaxGroupSize];  // score of the centroid relative to the reference, without the second-order term: codes stand for that
  float expected[kMaxGroupSize];  // factor from a coded to an expected weight
};
inline void score_candidate(const HeadTask& task, int cluster, ClusterRef ref, const ScanQueries& queries, CandidateScores& scores) {
  using simd::Vector;
  const float* log_weight =
      task.shared->log_weight + int64_t(cluster / kClusterBlock) * task.num_heads * kClusterBlock + cluster % kClusterBlock;
  for (int g = 0; g < task.num_heads; ++g) scores.centroid[g] = log_weight[g * kClusterBlock];
  const Vector spread(ref.segment->spread[ref.local]);
  for (int g = 0; g < task.num_heads; g += simd::kVectorSize) {
    const Vector estimate = limited_token_log_weight(simd::load(queries.reference + g), spread, simd::load(queries.half_variance + g));
    simd::store(scores.centroid + g, simd::load(scores.centroid + g) - estimate);
    simd::store(scores.expected + g, simd::exponential(limited_half_variance(spread * simd::load(queries.half_lost_variance + g))));
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
};
inline ClusterCodes codes_of(ClusterRef cluster, int64_t block_bytes) {
  const int64_t first = cluster.segment->code_indptr[cluster.local];
  return {cluster.segment->codes + first * block_bytes, cluster.segment->code_scale + first * kCodeBlock};
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
  float* counted = nullptr;  // [heads][16], what the histogram adds up; 0 beyond the last token
  f16* share = nullptr;      // [heads][16], as shares of the total
  float* keys = nullptr;     // [16], the largest of the shares
};

// Coded weights of a block for heads [first, first + G); adds them to sums [heads] of vectors. keys must hold those of the heads before.
template <int G>
QUORUM_ALWAYS_INLINE void weigh_code_block(const HeadTask& task, const ScanQueries& queries, ClusterCodes at, const CandidateScores& scores,
                                           int num_tokens, int first, const uint8_t* later, const ScannedBlock& out, float* sums) {
  using namespace simd;
  static constexpr float kLaneIndex[kCodeBlock] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int d = task.head_dim(), table_bytes = code_table_bytes(d);
  const Vector zero_point(float(kCodeTableZero * code_lines(d) * (kCodeLineDim / 4)));
  int32_t dots[G * kCodeBlock];
  scan_code_block<G>(at.codes, code_lines(d), task.own().code_tables + int64_t(first) * table_bytes, table_bytes, dots, later);
  for (int lane = 0; lane < kCodeBlock; lane += kVectorSize) {
    const Vector scale = load_as_float(at.scale + lane), left = Vector(float(num_tokens)) - load(kLaneIndex + lane);
    Vector key = first > 0 ? load(out.keys + lane) : Vector(0.0f);
    for (int g = 0; g < G; ++g) {
      const Vector sign_dot = (load_as_float(dots + g * kCodeBlock + lane) - zero_point) * Vector(queries.step[first + g]);
      const Vector score = minimum(coded_score(Vector(scores.centroid[first + g]), scale, sign_dot), Vector(kLargestCodedScore));
      const Vector weight = where_positive(left, exponential(score), Vector(0.0f));
      const Vector share = weight * Vector(queries.inverse_total[first + g]);
      const int place = (first + g) * kCodeBlock + lane;
      store(out.counted + place, weight * (queries.by_square ? weight : Vector(scores.expected[first + g])));
      store_as_f16(out.share + place, minimum(share, Vector(kLargestShare)));
      float* sum = sums + (first + g) * kVectorSize;
      store(sum, load(sum) + weight);
      key = maximum(share, key);
    }
    store(out.keys + lane, key);
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

// Coded weights of the tokens of candidates: their shares and key buckets, the worker's histogram of them, and the sums by candidate. The
// sums of all the worker's go to own().estimate, what they are expected to weigh, with the variance that the codes lost, to own().expected.
//
// Cost: code_bytes_per_token() a slot, read once for the group; two look-ups a head and eight coordinates.
inline void scan_candidates(const HeadTask& task, const ClusterHeadView& head, const ScanQueries& queries, CandidateRange range) {
  const int64_t block_bytes = code_block_bytes(task.head_dim());
  const int heads = task.num_heads;
  const HeadScratch& shared = *task.shared;
  const KeyHistogram histogram = task.own().token_keys;
  clear(histogram, heads);
  std::fill_n(task.own().estimate, heads, 0.0);
  std::fill_n(task.own().expected, heads, 0.0);
  CodesAhead later(task, head, range, block_bytes);
  // A block's weights enter the histogram after the next one has been computed: they would not be out of the store buffer before.
  float weights[2][kMaxGroupSize * kCodeBlock];
  int parity = 0, waiting = 0;
  const auto count_block = [&](int scan_block) {
    add_block(histogram, heads, shared.token_bucket + int64_t(scan_block) * kCodeBlock, weights[parity ^ 1], waiting);
  };
  for (int candidate = range.first; candidate < range.last; ++candidate) {
    const int first = shared.first_block[candidate], last = shared.first_block[candidate + 1];
    const ClusterRef cluster = cluster_at(head, shared.cluster[candidate]);
    ClusterCodes at = codes_of(cluster, block_bytes);
    CandidateScores scores;
    score_candidate(task, shared.cluster[candidate], cluster, queries, scores);
    alignas(64) float sums[kMaxGroupSize * simd::kVectorSize];
    std::fill_n(sums, heads * simd::kVectorSize, 0.0f);
    int left = cluster.size();
    for (int block = first; block < last; ++block, left -= kCodeBlock) {
      const int num_tokens = std::min(left, kCodeBlock);
      const uint8_t* ahead = later.next();
      float keys[kCodeBlock];
      const ScannedBlock out{weights[parity], shared.token_share + int64_t(block) * heads * kCodeBlock, keys};
      simd::for_head_blocks(
          heads, [&](auto count, int g) { weigh_code_block<count()>(task, queries, at, scores, num_tokens, g, ahead, out, sums); });
      if (waiting > 0) count_block(block - 1);
      simd::key_buckets(keys, shared.token_bucket + int64_t(block) * kCodeBlock);
      waiting = num_tokens;
      parity ^= 1;
      at.codes += block_bytes;
      at.scale += kCodeBlock;
    }
    for (int g = 0; g < heads; ++g) {
      const float mass = simd::reduce_add(simd::load(sums + g * simd::kVectorSize));
      shared.coded_mass[int64_t(candidate) * heads + g] = mass;
      task.own().estimate[g] += double(mass);
      task.own().expected[g] += double(mass * scores.expected[g]);
    }
  }
  if (waiting > 0) count_block(shared.first_block[range.last] - 1);
}

}  // namespace quorum::cpu
