// The choice of one row's clusters by one block: totals, order, cut, lists (algorithm.md eq. 6 to 8). By estimates alone.
#pragma once

#include "quorum/core/certificate.hpp"
#include "quorum/core/sample_points.hpp"
#include "quorum/core/tail_estimate.hpp"
#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/block/cluster_histogram.cuh"
#include "quorum/cuda/block/state_sum.cuh"
#include "quorum/cuda/block/step.cuh"

namespace quorum::cuda {

inline constexpr int kSelectThreads = 1024;
inline constexpr int kListedAtOnce = 2048;  // chosen clusters whose tokens are listed together

struct SelectShared {
  union Storage {
    BlockScan<uint32_t, kSelectThreads>::TempStorage narrow;
    BlockScan<unsigned long long, kSelectThreads>::TempStorage wide;
    BlockScan<float, kSelectThreads>::TempStorage real;
  } storage;
  float log_total[kMaxGroupSize];
  float unit_share[kMaxGroupSize];       // share of the total that a weight of 1 is
  uint32_t wanted[kMaxGroupSize + 1];    // sums that the chosen clusters must reach, by column of the histogram
  OrderPlace place[kMaxGroupSize + 2];   // where they do; the last one: where max_tokens would be exceeded
  int32_t rank[kMaxGroupSize + 2];       // the same within the cut's bucket
  uint32_t chosen[kMaxGroupSize + 1];    // sums of the chosen clusters
  OrderCut cut;
  int32_t tail_bucket;                   // unread clusters up to this bucket lend their value means
  int32_t num_members;
  int32_t finite;
  uint32_t listed_end[kListedAtOnce];    // tokens of the listed clusters up to and including this one
  int32_t listed_first[kListedAtOnce];   // where its tokens begin in cluster_tokens
};

// Device functions of one block; clusters are dealt to threads in runs, so that sums in thread order are sums by cluster id.
struct RowSelector {
  const StepParams& p;
  SelectShared& s;
  ClusterHistogram histogram;
  uint16_t* bucket;  // [max_slots], shared memory
  const FlatHeadView& head;
  RowPlan& plan;
  int row, group;
  int first, last;  // the thread's clusters

  __device__ __forceinline__ float log_weight(int cluster, int g) const {
    return p.workspace.log_weight[(int64_t(row) * p.max_slots + cluster) * group + g];
  }
  // Share of a head's total that a cluster is expected to hold.
  __device__ __forceinline__ float share(int cluster, int g) const {
    return cluster_weight(head.clusters.size[cluster], __expf(log_weight(cluster, g) - s.log_total[g]));
  }
  __device__ __forceinline__ uint32_t share_steps(int cluster, int g) const { return uint32_t(rintf(share(cluster, g) * kShareUnit)); }
  __device__ __forceinline__ uint32_t tokens_of(int cluster) const { return uint32_t(head.clusters.size[cluster]); }

  // Totals of all heads from the partial sums of scoring, one warp a head. Returns false if one of them is not finite.
  __device__ __forceinline__ bool sum_weights() const {
    const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
    if (threadIdx.x == 0) s.finite = 1;
    __syncthreads();
    if (warp < group) {
      const int64_t at = int64_t(row) * p.score_tiles * group + warp;
      const AttentionState always = warp_merge_range(p.workspace.always_weight + at, p.score_tiles, group);
      const AttentionState clusters = warp_merge_range(p.workspace.cluster_weight + at, p.score_tiles, group);
      const AttentionState total = merge(always, clusters);
      if (lane == 0) {
        s.log_total[warp] = total.lse();
        s.unit_share[warp] = 1.0f / total.sum;
        if (!isfinite(s.log_total[warp])) s.finite = 0;
        if (p.round == 0) {
          plan.reference[warp] = total.max;
          plan.read[warp] = always.sum * rescale_factor(always.max, total.max);
          plan.rest[warp] = clusters.sum * rescale_factor(clusters.max, total.max);
          plan.rest_factor[warp] = 1.0f;
        }
      }
    }
    __syncthreads();
    return s.finite != 0;
  }

  // Buckets and sums of all clusters.
  __device__ __forceinline__ void fill_histogram() const {
    for (int i = int(threadIdx.x); i < (group + 1) * kNumOrderBuckets; i += kSelectThreads) histogram.sums[i] = 0;
    __syncthreads();
    for (int cluster = first; cluster < last; ++cluster) {
      const uint32_t size = tokens_of(cluster);
      bucket[cluster] = kNoBucket;
      if (size == 0) continue;
      float largest = -kInfinity;
      for (int g = 0; g < group; ++g) largest = larger_max(log_weight(cluster, g) - s.log_total[g], largest);
      const int own = order_bucket(largest);
      bucket[cluster] = uint16_t(own);
      for (int g = 0; g < group; ++g) atomicAdd(histogram.column(g) + own, share_steps(cluster, g));
      atomicAdd(histogram.column(group) + own, size);
    }
    __syncthreads();
  }

  // What each column must reach: shares by target, tokens by budget. `read` and `rest` are exact and estimated weight; taking estimated
  // weight x from one to the other meets the target if read + x >= target (read + x + (rest - x) factor).
  __device__ __forceinline__ void set_wanted() const {
    const int g = int(threadIdx.x);
    const DecodeOptions& options = p.options;
    if (g < group) {
      const float target = options.target_ratio, read = plan.read[g], rest = plan.rest[g] * plan.rest_factor[g];
      const float missing = (target * (read + rest) - read) / (1.0f - target + target * plan.rest_factor[g]) * s.unit_share[g];
      const uint32_t listed = p.round == 0 ? 0u : plan.listed_steps[g];
      s.wanted[g] = options.fixed_budget > 0 || !(missing > 0.0f) ? listed : listed + uint32_t(fminf(ceilf(missing * kShareUnit), 0x1p31f));
    }
    if (g == group) s.wanted[g] = uint32_t(options.fixed_budget > 0 ? options.fixed_budget : options.min_tokens);
    __syncthreads();
  }

  // How many clusters of a bucket lie before the thread's own; `total`: all of them.
  __device__ __forceinline__ uint32_t members_before(int32_t of_bucket, uint32_t& total) const {
    uint32_t own = 0;
    for (int cluster = first; cluster < last; ++cluster) own += bucket[cluster] == of_bucket ? 1u : 0u;
    return block_exclusive_sum<kSelectThreads>(own, total, s.storage.narrow);
  }
  // Ids of the clusters of one bucket, ascending; the row of tail_clusters holds them for the time being.
  __device__ __forceinline__ int32_t* list_members(int32_t of_bucket) const {
    uint32_t total = 0, at = members_before(of_bucket, total);
    int32_t* members = p.workspace.tail_clusters + int64_t(row) * p.max_slots;
    for (int cluster = first; cluster < last; ++cluster)
      if (bucket[cluster] == of_bucket) members[at++] = cluster;
    if (threadIdx.x == 0) s.num_members = int32_t(total);
    __syncthreads();
    return members;
  }

  // How many members it takes until a column's sum reaches `missing`, by one warp; sums up to there are added to `sum`.
  __device__ __forceinline__ int rank_within(const int32_t* members, int g, uint32_t missing) const {
    const int lane = int(threadIdx.x) % kWarpSize;
    uint32_t before = 0;
    for (int begin = 0; begin < s.num_members; begin += kWarpSize) {
      const int i = begin + lane;
      const uint32_t value = i >= s.num_members ? 0u : g < group ? share_steps(members[i], g) : tokens_of(members[i]);
      const uint32_t through = before + warp_inclusive_sum(value);
      const unsigned reached = __ballot_sync(kFullMask, i < s.num_members && through >= missing);
      if (reached != 0) return begin + __ffs(int(reached));
      before = __shfl_sync(kFullMask, through, kWarpSize - 1);
    }
    return s.num_members;
  }
  // Sum of a column over the first `rank` members, by one warp.
  __device__ __forceinline__ uint32_t sum_members(const int32_t* members, int g, int rank) const {
    uint32_t sum = 0;
    for (int i = int(threadIdx.x) % kWarpSize; i < rank; i += kWarpSize) sum += g < group ? share_steps(members[i], g) : tokens_of(members[i]);
    return warp_sum(sum);
  }

  // The first place in the order at which every column has what it must, or the last one that keeps to max_tokens if that is earlier.
  __device__ __forceinline__ void find_cut() const {
    const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
    if (warp < group + 2) {
      const int column = warp < group ? warp : group;
      const uint32_t wanted = warp <= group ? s.wanted[warp] : uint32_t(p.options.max_tokens) + 1u;
      const OrderPlace place = wanted == 0 ? OrderPlace{} : find_place(histogram.column(column), wanted);
      if (lane == 0) s.place[warp] = place;
    }
    __syncthreads();
    int cut = 0;
    for (int w = 0; w <= group; ++w) cut = s.wanted[w] > 0 && s.place[w].bucket > cut ? s.place[w].bucket : cut;
    const int cap = s.place[group + 1].bucket;
    cut = cut < cap ? cut : cap;
    const int32_t* members = list_members(cut < kNumOrderBuckets ? cut : kNoBucket - 1);
    if (warp < group + 2) {
      const bool is_cap = warp == group + 1, here = s.place[warp].bucket == cut && (is_cap || s.wanted[warp] > 0);
      const uint32_t wanted = is_cap ? uint32_t(p.options.max_tokens) + 1u : warp <= group ? s.wanted[warp] : 0u;
      int rank = is_cap ? s.num_members : 0;
      if (here && cut < kNumOrderBuckets) {
        rank = rank_within(members, is_cap ? group : warp, wanted - s.place[warp].before);
        if (is_cap) --rank;  // the member that would exceed it stays out
      }
      if (lane == 0) s.rank[warp] = rank;
    }
    __syncthreads();
    int rank = 0;
    for (int w = 0; w <= group; ++w) rank = s.rank[w] > rank ? s.rank[w] : rank;
    rank = rank < s.rank[group + 1] ? rank : s.rank[group + 1];
    if (warp <= group) {
      const uint32_t before = sum_before(warp, cut);
      const uint32_t sum = before + sum_members(members, warp, rank);
      if (lane == 0) s.chosen[warp] = sum;
    }
    if (threadIdx.x == 0) s.cut = {cut, rank};
    __syncthreads();
  }

  // Sum of a column over the buckets before one, by one warp.
  __device__ __forceinline__ uint32_t sum_before(int g, int end) const {
    uint32_t sum = 0;
    for (int i = int(threadIdx.x) % kWarpSize; i < end; i += kWarpSize) sum += histogram.column(g)[i];
    return warp_sum(sum);
  }

  // The bucket up to which unread clusters hold kTailCoverage of every head's rest.
  __device__ __forceinline__ void find_tail() const {
    const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
    if (warp < group) {
      const uint32_t total = sum_before(warp, kNumOrderBuckets), rest = total - s.chosen[warp];
      const uint32_t wanted = s.chosen[warp] + uint32_t(kTailCoverage * float(rest));
      const OrderPlace place = find_place(histogram.column(warp), wanted < 1u ? 1u : wanted);
      if (lane == 0) {
        s.rank[warp] = rest == 0 ? -1 : place.bucket;
        plan.rest[warp] = float(rest) * (1.0f / kShareUnit) / s.unit_share[warp];
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bucket_of_all = -1;
      for (int g = 0; g < group; ++g) bucket_of_all = s.rank[g] > bucket_of_all ? s.rank[g] : bucket_of_all;
      s.tail_bucket = p.options.tail == Tail::drop ? -1 : bucket_of_all;
    }
    __syncthreads();
  }

  // Calls visit(cluster, listed now, listed in this or an earlier round) for the thread's clusters that are not empty, by id.
  template <class Visit>
  __device__ __forceinline__ void for_each_cluster(OrderCut before, Visit&& visit) const {
    uint32_t total = 0;
    uint32_t rank = members_before(s.cut.bucket, total), rank_before = p.round == 0 ? 0u : members_before(before.bucket, total);
    for (int cluster = first; cluster < last; ++cluster) {
      const int own = bucket[cluster];
      if (own == kNoBucket) continue;
      const bool chosen = own < s.cut.bucket || (own == s.cut.bucket && int(rank++) < s.cut.rank);
      const bool chosen_before = p.round > 0 && (own < before.bucket || (own == before.bucket && int(rank_before++) < before.rank));
      visit(cluster, chosen && !chosen_before, chosen || chosen_before);
    }
  }

  // Tokens of the clusters listed in this round, by cluster id, behind those of the list.
  __device__ __forceinline__ void list_tokens(OrderCut before) const {
    unsigned long long own = 0, total = 0;  // clusters above, tokens below
    for_each_cluster(before, [&](int cluster, bool now, bool) { own += now ? (1ull << 32) + tokens_of(cluster) : 0ull; });
    const unsigned long long start = block_exclusive_sum<kSelectThreads>(own, total, s.storage.wide);
    const int num_clusters = int(total >> 32), begin = plan.num_listed;
    int32_t* list = p.workspace.tokens + int64_t(row) * p.max_tokens + begin;
    uint32_t done = 0;
    for (int part = 0; part < num_clusters; part += kListedAtOnce) {
      int at = int(start >> 32) - part;
      uint32_t end = uint32_t(start);
      for_each_cluster(before, [&](int cluster, bool now, bool) {
        if (!now) return;
        if (at >= 0 && at < kListedAtOnce) {
          s.listed_first[at] = head.clusters.cluster_indptr[cluster] - int32_t(end);
          s.listed_end[at] = end + tokens_of(cluster);
        }
        end += tokens_of(cluster);
        ++at;
      });
      __syncthreads();
      const int count = num_clusters - part < kListedAtOnce ? num_clusters - part : kListedAtOnce;
      expand(list, count, done);
      done = s.listed_end[count - 1];
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      plan.first_listed = p.round == 0 ? 0 : begin;
      if (num_clusters > 0) plan.num_listed = begin + int(uint32_t(total));
    }
  }

  // Copies the tokens of `count` listed clusters, from place `begin` on: a thread per token, so that long clusters do not hold up others.
  __device__ __forceinline__ void expand(int32_t* list, int count, uint32_t begin) const {
    for (uint32_t i = begin + threadIdx.x; i < s.listed_end[count - 1]; i += kSelectThreads) {
      int low = 0, high = count - 1;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (s.listed_end[middle] > i)
          high = middle;
        else
          low = middle + 1;
      }
      list[i] = head.clusters.cluster_tokens[s.listed_first[low] + int32_t(i)];
    }
  }

  // Unread clusters whose value means are read, and what they hold of each head's rest.
  __device__ __forceinline__ void list_tail(OrderCut before) const {
    const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
    uint32_t own = 0, total = 0;
    for_each_cluster(before, [&](int cluster, bool, bool listed) { own += !listed && bucket[cluster] <= s.tail_bucket ? 1u : 0u; });
    uint32_t at = block_exclusive_sum<kSelectThreads>(own, total, s.storage.narrow);
    int32_t* tail = p.workspace.tail_clusters + int64_t(row) * p.max_slots;
    for_each_cluster(before, [&](int cluster, bool, bool listed) {
      if (!listed && bucket[cluster] <= s.tail_bucket) tail[at++] = cluster;
    });
    if (warp < group) {
      const uint32_t used = s.tail_bucket < 0 ? 0u : sum_before(warp, s.tail_bucket + 1) - s.chosen[warp];
      if (lane == 0) plan.used_rest[warp] = float(used) * (1.0f / kShareUnit) / s.unit_share[warp];
    }
    if (threadIdx.x == 0) plan.num_tail = int32_t(total);
  }

  // A cluster's share of the rest, the largest over the heads.
  __device__ __forceinline__ float share_of_rest(int cluster) const {
    float largest = 0.0f;
    for (int g = 0; g < group; ++g)
      if (plan.rest[g] > 0.0f) largest = fmaxf(largest, share(cluster, g) / (plan.rest[g] * s.unit_share[g]));
    return largest;
  }

  // Draws one token for each stratum of the rest's distribution, a mixture of estimated weight and size. Probabilities are integers, so
  // that the strata meet without gaps.
  __device__ __forceinline__ void draw_tokens(OrderCut before) const {
    constexpr double kUnit = 0x1p44;
    float own_share = 0.0f, own_size = 0.0f, total_share = 0.0f, total_size = 0.0f;
    for_each_cluster(before, [&](int cluster, bool, bool listed) {
      if (listed) return;
      own_share += share_of_rest(cluster);
      own_size += float(tokens_of(cluster));
    });
    block_exclusive_sum<kSelectThreads>(own_share, total_share, s.storage.real);
    block_exclusive_sum<kSelectThreads>(own_size, total_size, s.storage.real);
    const DrawRule rule = draw_rule(double(total_share), double(total_size));
    const auto probability = [&](int cluster) { return rule.probability(double(share_of_rest(cluster)), double(tokens_of(cluster))); };
    unsigned long long own = 0, total = 0;
    for_each_cluster(before, [&](int cluster, bool, bool listed) {
      own += listed ? 0ull : static_cast<unsigned long long>(probability(cluster) * kUnit);
    });
    unsigned long long at = block_exclusive_sum<kSelectThreads>(own, total, s.storage.wide);
    const int kv_head = p.kv_head_of(row), num_draws = total == 0 ? 0 : p.num_draws;
    const SamplePoints points = SamplePoints::of(p.options.seed, kv_head * group, plan.num_tokens, plan.num_sampled, num_draws);
    for_each_cluster(before, [&](int cluster, bool, bool listed) {
      if (listed) return;
      const double own_probability = probability(cluster);
      const unsigned long long end = at + static_cast<unsigned long long>(own_probability * kUnit);
      const double per_total = double(num_draws) / double(total);
      for (int stratum = int(double(at) * per_total); stratum < num_draws && stratum <= int(double(end) * per_total); ++stratum) {
        const auto point = static_cast<unsigned long long>(points.point(stratum) * double(total));
        if (point < at || point >= end) continue;
        const int size = int(tokens_of(cluster)), token = head.clusters.cluster_indptr[cluster] + points.token_of(stratum, size);
        p.workspace.draws[int64_t(row) * p.num_draws + stratum] = {head.clusters.cluster_tokens[token],
                                                                   float(double(size) / (own_probability * double(num_draws)))};
      }
      at = end;
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      plan.num_draws = num_draws;
      plan.num_sampled += num_draws;
    }
  }
};

}  // namespace quorum::cuda
