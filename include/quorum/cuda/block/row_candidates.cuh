// The clusters of one row whose tokens are looked at one by one, chosen from estimates, without a sort (algorithm.md eq. 14).
#pragma once

#include "quorum/core/coded_rest.hpp"
#include "quorum/cuda/block/adjust_scores.cuh"
#include "quorum/cuda/block/key_histogram.cuh"
#include "quorum/cuda/block/row_clusters.cuh"

namespace quorum::cuda {

// Candidates end at one key bucket, the others that enter the output at another, not before it.
struct CandidateCut {
  int candidates = -1;
  int outside = -1;
};

template <int kHeads>
struct RowCandidates : RowClusters<kHeads> {
  using Base = RowClusters<kHeads>;
  using Base::bucket, Base::first, Base::group, Base::head, Base::lane, Base::last, Base::p, Base::plan, Base::row, Base::s, Base::share,
      Base::size, Base::team, Base::warp;

  KeyHistogram<uint32_t> keys;  // columns: shares of each head, then tokens, then clusters

  static int64_t shared_bytes(int group, int max_slots, int blocks) {
    return round_up(int64_t(sizeof(SelectShared)), 16) + KeyHistogram<uint32_t>::bytes(group + 2) +
           int64_t(select_slots(max_slots, blocks)) * 4;
  }

  // Key buckets and sizes of the block's clusters, and the sums of all by bucket. A key is the largest share of weight per token over the
  // heads.
  __device__ __forceinline__ void fill_keys() const {
    for (int i = int(threadIdx.x); i < (group + 2) * kNumKeyBuckets; i += kSelectThreads) keys.sums[i] = 0;
    __syncthreads();
    const float cap = p.shape.logit_softcap;
    this->for_each_weight([&](int cluster, int count, const float(&weight)[kHeads]) {
      float capped[kHeads], largest = -kInfinity;
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        capped[g] = cap > 0.0f && g < group ? soft_cap(weight[g], cap) : weight[g];
        if (g < group) largest = larger_max(capped[g] - s.log_total[g], largest);
      }
      const int own = key_bucket(__expf(largest));
      size[cluster] = uint16_t(count);
      bucket[cluster] = count == 0 ? kNoBucket : uint16_t(own);
      if (count == 0 || own > kLastKeyBucket) return;
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        const uint32_t steps = g < group ? Base::to_steps(share(capped[g], count, g)) : 0u;
        if (steps > 0) atomicAdd(keys.column(g) + own, steps);
      }
      atomicAdd(keys.column(group) + own, uint32_t(count));
      atomicAdd(keys.column(group + 1) + own, 1u);
    });
    team.add_up(keys.sums, (group + 2) * kNumKeyBuckets);
  }

  // The highest threshold, not above `from`, at which clusters and what is always read hold `covered` of every head's weight.
  __device__ __forceinline__ int cover(float covered, int from) const {
    if (warp() < group) {
      const int g = warp();
      const float missing = covered - plan.read[g] * s.unit_share[g];
      const uint32_t wanted = missing > 0.0f ? uint32_t(fminf(ceilf(missing * kShareUnit), 0x1p31f)) : 0u;
      const int threshold = find_threshold(keys.column(g), wanted);
      if (lane() == 0) s.tail_bucket[g] = threshold;
    }
    __syncthreads();
    int at = from;
    for (int g = 0; g < group; ++g) at = max(at, s.tail_bucket[g]);
    __syncthreads();
    return at;
  }

  // A budget wants tokens, whatever they weigh: twice as many clusters, and one, until the candidates hold them. By every warp alike.
  __device__ __forceinline__ int cover_budget(int from, uint32_t budget) const {
    while (from < kLastKeyBucket && sum_through(keys.column(group), from) < budget)
      from = find_threshold(keys.column(group + 1), 2u * sum_through(keys.column(group + 1), from) + 1u);
    return from;
  }

  // Least share of a head's weight that clusters up to a threshold hold, together with what is always read.
  __device__ __forceinline__ float least_covered(int threshold) const {
    if (warp() < group) {
      const uint32_t steps = sum_through(keys.column(warp()), threshold);
      if (lane() == 0) s.inverse_rest[warp()] = plan.read[warp()] * s.unit_share[warp()] + float(steps) * (1.0f / kShareUnit);
    }
    __syncthreads();
    float least = 1.0f;
    for (int g = 0; g < group; ++g) least = fminf(least, s.inverse_rest[g]);
    __syncthreads();
    return least;
  }

  __device__ __forceinline__ CandidateCut choose() const {
    CandidateCut cut;
    float covered = p.candidate_coverage;
    cut.candidates = cover(covered, -1);
    if (p.options.fixed_budget > 0) {
      const int for_budget = cover_budget(cut.candidates, uint32_t(p.options.fixed_budget));
      if (for_budget > cut.candidates) covered = fmaxf(covered, least_covered(for_budget));
      cut.candidates = for_budget;
    }
    cut.outside = cover(float(coverage_with_outside(double(covered))), cut.candidates);
    return cut;
  }

  // What the plan says of candidates and of the others.
  __device__ __forceinline__ void describe(const CandidateCut& cut) const {
    if (team.rank != 0 || warp() >= group) return;
    const int g = warp();
    const uint32_t candidates = sum_through(keys.column(g), cut.candidates), all = sum_through(keys.column(g), cut.outside);
    if (lane() != 0) return;
    const float unit = 1.0f / kShareUnit / s.unit_share[g];
    plan.total[g] = 1.0f / s.unit_share[g];
    plan.log_total[g] = s.log_total[g];
    plan.outside[g] = fmaxf(0.0f, plan.rest[g] - float(candidates) * unit);
    plan.used_outside[g] = float(all - candidates) * unit;
  }

  // Squared shares of the clusters that are no candidates over their sizes, by head: what the error estimate asks of them.
  __device__ __forceinline__ void square_outside(const CandidateCut& cut) const {
    const float cap = p.shape.logit_softcap;
    float own[kHeads] = {};
    this->for_each_weight([&](int cluster, int count, const float(&weight)[kHeads]) {
      if (bucket[cluster] == kNoBucket || bucket[cluster] <= cut.candidates) return;
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        if (g >= group) continue;
        const float of_cluster = share(cap > 0.0f ? soft_cap(weight[g], cap) : weight[g], count, g);
        own[g] += of_cluster * of_cluster / float(count);
      }
    });
#pragma unroll 1
    for (int g = 0; g < group; ++g) {
      float mine = 0.0f;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) mine = h == g ? own[h] : mine;
      mine = warp_sum(mine);
      if (lane() == 0) s.rest_sum[warp()] = mine;
      __syncthreads();
      if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int w = 0; w < kSelectWarps; ++w) sum += s.rest_sum[w];
        shared_of(&s.squares_of_block[0][0], 0)[team.rank * kMaxGroupSize + g] = sum;
      }
      __syncthreads();
    }
    team.barrier();
    if (team.rank != 0 || int(threadIdx.x) >= group) return;
    float sum = 0.0f;
    for (int r = 0; r < team.size; ++r) sum += s.squares_of_block[r][threadIdx.x];
    plan.outside_squares[threadIdx.x] = sum;
  }

  // Marks every cluster, and lists those that enter the output by their value means. Post: plan's counts.
  __device__ __forceinline__ void list(const CandidateCut& cut) const {
    constexpr int kTokenBits = 22, kBlockBits = 21;
    constexpr unsigned long long kTokenMask = (1ull << kTokenBits) - 1, kBlockMask = (1ull << kBlockBits) - 1;
    const int of_tail = p.options.tail == Tail::drop && p.options.target_error == 0.0f ? -1 : cut.outside;
    unsigned long long own = 0, of_block = 0, total = 0;  // tokens and code blocks of candidates, clusters of the tail
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster) {
      const int key = bucket[cluster];
      if (key <= cut.candidates) own += (static_cast<unsigned long long>(num_code_blocks(size[cluster])) << kTokenBits) + size[cluster];
      if (key <= of_tail) own += 1ull << (kTokenBits + kBlockBits);
    }
    unsigned long long start = block_exclusive_sum<kSelectThreads>(own, of_block, s.warp_sums);
    start += team.exclusive_sum(of_block, total, s.lists_of_block);
    int32_t* tail = p.workspace.tail_clusters + int64_t(row) * p.max_slots + (start >> (kTokenBits + kBlockBits));
    uint16_t* marks = p.workspace.cluster_key + int64_t(row) * p.max_slots;
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster) {
      const int key = bucket[cluster];
      if (key <= of_tail) *tail++ = cluster;
      if (p.samples_coded()) {  // listing tokens says what the candidates have left
        const int64_t at = int64_t(row) * p.max_slots + cluster;
        p.workspace.unread_share[at] = key == kNoBucket ? 0.0f : bucket_key(key) * float(size[cluster]);
        p.workspace.unread_tokens[at] = key == kNoBucket ? 0 : size[cluster];
      }
      marks[cluster] = key <= cut.candidates ? uint16_t(0) : key <= of_tail ? kEntersOutside : kNoCandidate;
    }
    if (team.leads()) {
      plan.num_coded = int(total & kTokenMask);
      plan.num_code_blocks = int(total >> kTokenBits & kBlockMask);
      plan.num_tail = int(total >> (kTokenBits + kBlockBits));
    }
  }
};

}  // namespace quorum::cuda
