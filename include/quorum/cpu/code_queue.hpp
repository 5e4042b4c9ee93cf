// What the scan of codes takes from the index: the blocks of the candidates' codes one after the other, and what their centroids say.
#pragma once

#include "quorum/cpu/attend_rows.hpp"
#include "quorum/cpu/choose_candidates.hpp"

namespace quorum::cpu {

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

// Blocks of codes that go through the stages of the scan together.
inline constexpr int kScanBlocks = 8;

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

// What a candidate's centroid says of its tokens, see CentroidScores.
struct CandidateScores {
  float log_share[kMaxGroupSize];
  float expected[kMaxGroupSize];
};

// A block of codes on its way through the scan.
struct CodeBlock {
  ClusterCodes at;
  const CandidateScores* scores = nullptr;
  int candidate = 0;
  int num_tokens = 0;  // lanes beyond hold none
};

// The worker's blocks of codes in a queue; there must be one at least. They are taken some way ahead of the scan, and what belongs to them
// is asked for: scales, lists of tokens, and the value means of candidates and of other clusters, for which scanning leaves time: it
// computes more than it reads. Lines of memory are asked for a few at a time: a burst would fill the queue of outstanding ones and stop the
// core.
//
// The scan itself then goes from block to block without a look at clusters: they end after one to four blocks, and a loop over that many
// is mispredicted as often as not.
class CodeQueue {
 public:
  CodeQueue(const HeadTask& task, const ClusterHeadView& head, const ScanQueries& queries, CandidateRange range)
      : task_(task),
        head_(head),
        queries_(queries),
        range_(range),
        candidate_(range.first),
        block_bytes_(code_block_bytes(task.head_dim())) {
    const int ahead = int(std::clamp<int64_t>(kBytesAhead / block_bytes_, 1, kMostAhead));
    for (int i = 0; i < ahead; ++i) prefetch_row(reinterpret_cast<const std::byte*>(take_next()), int(block_bytes_));
  }

  // Takes one more block and returns its codes; at the end, those of the last one again.
  const uint8_t* take_next() {
    if (left_ <= 0) {
      if (candidate_ == range_.last) return (*this)[taken_ - 1].at.codes;
      enter();
    }
    CodeBlock& taken = blocks_[uint32_t(taken_++) % kSize];
    // Field by field: a copy of what was just written in parts waits until that has reached the cache.
    taken.at.codes = cluster_.codes + in_cluster_ * block_bytes_;
    taken.at.scale = cluster_.scale + in_cluster_ * kCodeBlock;
    taken.at.tokens = cluster_.tokens == nullptr ? nullptr : cluster_.tokens + in_cluster_ * kCodeBlock;
    taken.scores = &scores_[uint32_t(candidate_ - 1) % kSize];
    taken.candidate = candidate_ - 1;
    taken.num_tokens = std::min(left_, kCodeBlock);
    simd::prefetch(taken.at.scale);
    ++in_cluster_;
    left_ -= kCodeBlock;
    return taken.at.codes;
  }
  // The i-th block of all that were taken, one of the last kSize.
  const CodeBlock& operator[](int i) const { return blocks_[uint32_t(i) % kSize]; }

 private:
  static constexpr int64_t kBytesAhead = 4096;
  static constexpr uint32_t kSize = 32;
  static constexpr int kMostAhead = int(kSize) - kScanBlocks;

  void enter() {
    const HeadScratch& shared = *task_.shared;
    const int id = shared.cluster[candidate_], heads = task_.num_heads;
    const ClusterRef cluster = cluster_at(head_, id);
    if (id / kClusterBlock != centroids_.block) score_centroids(task_, head_, id / kClusterBlock, queries_, centroids_);
    CandidateScores& scores = scores_[uint32_t(candidate_) % kSize];  // every one has a block, so that it stays as long as they do
    for (int g = 0; g < heads; ++g) {
      scores.log_share[g] = centroids_.log_share[g * kClusterBlock + id % kClusterBlock];
      scores.expected[g] = centroids_.expected[g * kClusterBlock + id % kClusterBlock];
      shared.coded_mass[int64_t(candidate_) * heads + g] = 0.0f;
    }
    cluster_ = codes_of(cluster, block_bytes_);
    in_cluster_ = 0;
    left_ = cluster.size();
    const int32_t* tokens = cluster.tokens();
    if (task_.filters_clusters) cluster_.tokens = tokens;
    prefetch_row(reinterpret_cast<const std::byte*>(tokens), left_ * int(sizeof(int32_t)));
    prefetch_value_mean(cluster, task_.head_dim());
    ++candidate_;
    const int32_t* outside = own_outside(task_, head_);
    for (due_ += task_.own().num_outside; due_ >= range_.last - range_.first; due_ -= range_.last - range_.first)
      prefetch_value_mean(cluster_at(head_, outside[outside_++]), task_.head_dim());
  }

  const HeadTask& task_;
  const ClusterHeadView& head_;
  const ScanQueries& queries_;
  const CandidateRange range_;
  int candidate_;    // next one to enter
  int left_ = 0;     // tokens of the candidate before it
  int outside_ = 0;  // other clusters that have been asked for
  int due_ = 0;      // how many more will be, in candidates
  int64_t block_bytes_;
  int taken_ = 0;
  CentroidScores centroids_;
  ClusterCodes cluster_;    // the one entered last
  int64_t in_cluster_ = 0;  // its blocks that were taken
  CodeBlock blocks_[kSize];
  CandidateScores scores_[kSize];
};

}  // namespace quorum::cpu
