// The choice of one row's clusters, from estimates alone: the place in the reading order where every head has enough
// (algorithm.md eq. 6 and 7).
#pragma once

#include "quorum/core/tail_estimate.hpp"
#include "quorum/cuda/block/row_clusters.cuh"

namespace quorum::cuda {

template <int kHeads>
struct RowSelector : RowClusters<kHeads> {
  using Base = RowClusters<kHeads>;
  using Base::bucket, Base::first, Base::group, Base::head, Base::histogram, Base::lane, Base::last, Base::log_weights, Base::p, Base::plan,
      Base::row, Base::s, Base::share, Base::team, Base::warp;

  // What each column must reach: shares by target, tokens by budget. `read` and `rest` are exact and estimated weight; taking estimated
  // weight x from one to the other meets the target if read + x >= target (read + x + (rest - x) factor).
  __device__ __forceinline__ void set_wanted() const {
    const int g = int(threadIdx.x);
    const DecodeOptions& options = p.options;
    if (g < group) {
      const float target = options.target_ratio, read = plan.read[g], rest = plan.rest[g] * plan.rest_factor[g];
      const float missing = (target * (read + rest) - read) / (1.0f - target + target * plan.rest_factor[g]) * s.unit_share[g];
      const uint32_t listed = plan.listed_steps[g];
      s.wanted[g] = options.fixed_budget > 0 || !(missing > 0.0f) ? listed : listed + uint32_t(fminf(ceilf(missing * kShareUnit), 0x1p31f));
    }
    if (g == group) s.wanted[g] = uint32_t(options.fixed_budget > 0 ? options.fixed_budget : options.min_tokens);
    if (g == group + 1) s.wanted[g] = uint32_t(options.max_tokens) + 1u;
    __syncthreads();
  }

  // How many clusters of a bucket lie before the thread's own, and of the bucket in which the round before stopped.
  struct MembersBefore {
    int of_bucket, of_last_round;
  };
  __device__ __forceinline__ MembersBefore members_before(int of_bucket) const {
    const int of_last_round = p.round > 0 ? plan.cut.bucket : -1;
    unsigned long long own = 0, of_block = 0, total = 0;
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster)
      own += (bucket[cluster] == of_bucket ? 1ull : 0ull) + (bucket[cluster] == of_last_round ? 1ull << 32 : 0ull);
    unsigned long long before = block_exclusive_sum<kSelectThreads>(own, of_block, s.warp_sums);
    before += team.exclusive_sum(of_block, total, s.members_of_block);
    if (threadIdx.x == 0) s.num_members = int(uint32_t(total));
    return {int(uint32_t(before)), int(before >> 32)};
  }

  // Visits the members of the cut's bucket by id, one warp for a column: calls take(through, value, place) in steps of a warp until it
  // returns true. through: sum of the column up to and including the lane's member.
  template <class Take>
  __device__ __forceinline__ void scan_members(const int32_t* members, int column, Take&& take) const {
    uint32_t before = 0;
#pragma unroll 1
    for (int begin = 0; begin < s.num_members; begin += kWarpSize) {
      const int place = begin + lane();
      uint32_t value = 0;
      if (place < s.num_members) {
        const int cluster = members[place], count = int(head.clusters.size[cluster]);
        value = column < group ? this->to_steps(share(log_weights(cluster)[column], count, column)) : uint32_t(count);
      }
      const uint32_t through = before + warp_inclusive_sum(value);
      if (take(through, place)) return;
      before = __shfl_sync(kFullMask, through, kWarpSize - 1);
    }
  }

  // The first place in the order at which every column has what it must, or the last one that keeps to max_tokens if that is earlier.
  // Post: s.chosen, and the marks of chosen clusters.
  __device__ __forceinline__ void choose(OrderCut& cut) const {
    const int columns = group + 2;
#pragma unroll 1
    for (int w = warp(); w < columns; w += kSelectWarps) {
      const OrderPlace place = s.wanted[w] == 0 ? OrderPlace{-1, 0} : find_place(histogram.column(min(w, group)), s.wanted[w]);
      if (lane() == 0) s.place[w] = place;
    }
    __syncthreads();
    int at = 0;
    for (int w = 0; w <= group; ++w) at = max(at, s.place[w].bucket);
    at = min(at, s.place[group + 1].bucket);
    const MembersBefore before = members_before(at);
    int32_t* members = p.workspace.tail_clusters + int64_t(row) * p.max_slots;  // for the time being
    for (int cluster = first, place = before.of_bucket; cluster < last; ++cluster)
      if (bucket[cluster] == at) members[place++] = cluster;
    team.barrier();
    rank_columns(members, at);
    __syncthreads();
    int rank = 0;
    for (int w = 0; w <= group; ++w) rank = max(rank, s.rank[w]);
    rank = min(rank, s.rank[group + 1]);
    sum_chosen(members, at, rank);
    mark_chosen(at, rank, before);
    cut = {at, rank};
    __syncthreads();
  }
  // Ranks within the cut's bucket at which the columns have what they must.
  __device__ __forceinline__ void rank_columns(const int32_t* members, int at) const {
#pragma unroll 1
    for (int w = warp(); w < group + 2; w += kSelectWarps) {
      const bool is_cap = w == group + 1, ends_here = s.place[w].bucket == at;
      int rank = is_cap || s.place[w].bucket > at ? s.num_members : 0;  // the cap may end in an earlier bucket than what is wanted
      if (ends_here) {
        const uint32_t missing = s.wanted[w] - s.place[w].before;
        rank = s.num_members;
        scan_members(members, min(w, group), [&](uint32_t through, int place) {
          const unsigned reached = __ballot_sync(kFullMask, place < s.num_members && through >= missing);
          if (reached != 0) rank = place - lane() + __ffs(int(reached));
          return reached != 0;
        });
        if (is_cap) --rank;  // the member that would exceed it stays out
      }
      if (lane() == 0) s.rank[w] = rank;
    }
  }
  __device__ __forceinline__ void sum_chosen(const int32_t* members, int at, int rank) const {
#pragma unroll 1
    for (int w = warp(); w <= group; w += kSelectWarps) {
      uint32_t of_members = 0;
      scan_members(members, w, [&](uint32_t through, int place) {
        const int last_chosen = rank - 1 - (place - lane());
        if (last_chosen >= 0) of_members = __shfl_sync(kFullMask, through, min(last_chosen, kWarpSize - 1));
        return last_chosen < kWarpSize;
      });
      const uint32_t sum = sum_before(w, at) + of_members;
      if (lane() == 0) s.chosen[w] = sum;
    }
  }
  __device__ __forceinline__ void mark_chosen(int at, int rank, const MembersBefore& members) const {
    const OrderCut before = plan.cut;
    int place = members.of_bucket, place_before = members.of_last_round;
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster) {
      const int own = bucket[cluster];
      if (own == kNoBucket) continue;
      const bool listed_before = p.round > 0 && (own < before.bucket || (own == before.bucket && place_before++ < before.rank));
      const bool listed = own < at || (own == at && place++ < rank);
      if (listed || listed_before) bucket[cluster] = listed_before ? kListedBefore : kListedNow;
    }
  }

  // Sum of a column over the buckets before one, by one warp.
  __device__ __forceinline__ uint32_t sum_before(int g, int end) const {
    uint32_t sum = 0;
    for (int i = lane(); i < end; i += kWarpSize) sum += histogram.column(g)[i];
    return warp_sum(sum);
  }

  // The bucket up to which unread clusters hold kTailCoverage of every head's rest, -1 if none are wanted. Post: plan's rest.
  __device__ __forceinline__ int find_tail() const {
    if (warp() < group) {
      const int g = warp();
      const uint32_t total = sum_before(g, kNumOrderBuckets), rest = total - s.chosen[g];
      const uint32_t wanted = s.chosen[g] + uint32_t(kTailCoverage * float(rest));
      const OrderPlace place = find_place(histogram.column(g), max(wanted, 1u));
      if (lane() == 0) {
        const float share_of_rest = float(rest) * (1.0f / kShareUnit);
        s.tail_bucket[g] = rest == 0 ? -1 : place.bucket;
        s.inverse_rest[g] = rest == 0 ? 0.0f : 1.0f / share_of_rest;
        if (team.rank == 0) {
          plan.rest[g] = share_of_rest / s.unit_share[g];
          plan.listed_steps[g] = s.chosen[g];
        }
      }
    }
    __syncthreads();
    int of_all = -1;
    for (int g = 0; g < group; ++g) of_all = max(of_all, s.tail_bucket[g]);
    if (p.options.tail == Tail::drop) of_all = -1;
    if (team.rank == 0 && warp() < group) {
      const uint32_t used = of_all < 0 ? 0u : sum_before(warp(), min(of_all + 1, kNumOrderBuckets)) - s.chosen[warp()];
      if (lane() == 0) plan.used_rest[warp()] = float(used) * (1.0f / kShareUnit) / s.unit_share[warp()];
    }
    return of_all;
  }
};

}  // namespace quorum::cuda
