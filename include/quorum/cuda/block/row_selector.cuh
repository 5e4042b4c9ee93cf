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

inline constexpr int kSelectThreads = 512;
inline constexpr int kSelectWarps = kSelectThreads / kWarpSize;
inline constexpr int kListedAtOnce = 1024;  // pieces of chosen clusters that are listed together

// Marks in the array of buckets, above all buckets.
inline constexpr uint16_t kNoBucket = 0xffff;       // empty cluster
inline constexpr uint16_t kListedBefore = 0xfffe;   // chosen in an earlier round
inline constexpr uint16_t kListedNow = 0xfffd;

// Up to 32 tokens of a chosen cluster.
struct ListedPiece {
  int32_t cluster;
  int32_t first;   // within the cluster, then within cluster_tokens
  uint32_t place;  // within the row's list
  int32_t count;
};

struct SelectShared {
  unsigned long long warp_sums[kSelectWarps];
  float log_total[kMaxGroupSize];
  float unit_share[kMaxGroupSize];      // share of the total that a weight of 1 is
  float inverse_rest[kMaxGroupSize];    // 1 / share of the rest
  uint32_t wanted[kMaxGroupSize + 2];   // sums that the chosen clusters must reach, by column; the last one: must not
  OrderPlace place[kMaxGroupSize + 2];  // where they do
  int32_t rank[kMaxGroupSize + 2];      // the same within the cut's bucket
  uint32_t chosen[kMaxGroupSize + 1];   // sums of the chosen clusters
  int32_t tail_bucket[kMaxGroupSize];
  int32_t num_members;
  int32_t finite;
  float rest_sum[kSelectWarps];
  unsigned long long draw_start[kSelectThreads];
  ListedPiece listed[kListedAtOnce];
};

// Device functions of one block; clusters are dealt to threads in runs, so that sums in thread order are sums by cluster id.
// kHeads: query heads of the group, rounded up to 4, 8 or 16. Loops over clusters are not unrolled where a kernel is not the slower for it:
// its instructions are fetched once and used once.
template <int kHeads>
struct RowSelector {
  const StepParams& p;
  SelectShared& s;
  ClusterHistogram histogram;
  uint16_t* bucket;  // [max_slots], shared memory
  uint16_t* size;        // [max_slots], shared memory: tokens of a cluster
  uint16_t* rest_share;  // [max_slots], shared memory: upper halves of floats
  const FlatHeadView& head;
  RowPlan& plan;
  int row, group;
  int first, last;  // the thread's clusters

  __device__ __forceinline__ int warp() const { return int(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ int lane() const { return int(threadIdx.x) % kWarpSize; }
  __device__ __forceinline__ const float* log_weights(int cluster) const {
    return p.workspace.log_weight + (int64_t(row) * p.max_slots + cluster) * group;
  }
  // Share of a head's total that a cluster is expected to hold.
  __device__ __forceinline__ float share(float log_weight, int cluster_size, int g) const {
    return cluster_weight(float(cluster_size), __expf(log_weight - s.log_total[g]));
  }
  static __device__ __forceinline__ uint32_t to_steps(float share) { return uint32_t(rintf(share * kShareUnit)); }

  // Totals of all heads from the partial sums of scoring, one warp a head. Returns false if one of them is not finite.
  __device__ __forceinline__ bool sum_weights() const {
    if (threadIdx.x == 0) s.finite = 1;
    __syncthreads();
    if (warp() < group) {
      const int g = warp();
      const int64_t at = int64_t(row) * p.score_tiles * group + g;
      const AttentionState always = warp_merge_range(p.workspace.always_weight + at, p.score_tiles, group);
      const AttentionState clusters = warp_merge_range(p.workspace.cluster_weight + at, p.score_tiles, group);
      const AttentionState total = fast_merge(always, clusters);
      if (lane() == 0) {
        s.log_total[g] = total.lse();
        s.unit_share[g] = 1.0f / total.sum;
        if (!isfinite(s.log_total[g])) atomicAnd(&s.finite, 0);  // several warps may
        if (p.round == 0) {
          plan.reference[g] = total.max;
          plan.read[g] = always.sum * fast_rescale(always.max, total.max);
          plan.rest[g] = clusters.sum * fast_rescale(clusters.max, total.max);
          plan.rest_factor[g] = 1.0f;
          plan.listed_steps[g] = 0;
        }
      }
    }
    __syncthreads();
    return s.finite != 0;
  }

  // Calls visit(cluster, its size, log weights of the heads) for the clusters thread, thread + kSelectThreads, ..., in no order that sums could depend
  // on; neighbouring threads have neighbouring clusters, and several clusters' weights are on their way together.
  template <class Visit>
  __device__ __forceinline__ void for_each_weight(Visit&& visit) const {
    constexpr int kBatch = 16 / kHeads;
    const int slots = head.clusters.num_clusters;
#pragma unroll 1
    for (int begin = int(threadIdx.x); begin < slots; begin += kBatch * kSelectThreads) {
      float weight[kBatch][kHeads], tokens[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int cluster = min(begin + i * kSelectThreads, slots - 1);
        const float* row_weights = log_weights(cluster);
        tokens[i] = head.clusters.size[cluster];
#pragma unroll
        for (int g = 0; g < kHeads; ++g) weight[i][g] = g < group ? row_weights[g] : -kInfinity;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        if (begin + i * kSelectThreads < slots) visit(begin + i * kSelectThreads, int(tokens[i]), weight[i]);
    }
  }

  // Sizes, buckets and sums of all clusters.
  __device__ __forceinline__ void fill_histogram() const {
    for (int i = int(threadIdx.x); i < (group + 1) * kNumOrderBuckets; i += kSelectThreads) histogram.sums[i] = 0;
    __syncthreads();
    uint32_t in_last = 0;  // tokens of the last bucket: often most of them, and a sum that all threads add to holds them up
    for_each_weight([&](int cluster, int count, const float (&weight)[kHeads]) {
      size[cluster] = uint16_t(count);
      float largest = -kInfinity;
#pragma unroll
      for (int g = 0; g < kHeads; ++g)
        if (g < group) largest = larger_max(weight[g] - s.log_total[g], largest);
      const int own = order_bucket(largest);
      bucket[cluster] = count == 0 ? kNoBucket : uint16_t(own);
      if (own == kNumOrderBuckets - 1) {
        in_last += uint32_t(count);  // their shares are below half a step
        return;
      }
#pragma unroll
      for (int g = 0; g < kHeads; ++g) {
        const uint32_t steps = g < group ? to_steps(share(weight[g], count, g)) : 0u;
        if (steps > 0) atomicAdd(histogram.column(g) + own, steps);
      }
      if (count > 0) atomicAdd(histogram.column(group) + own, uint32_t(count));
    });
    in_last = warp_sum(in_last);
    if (lane() == 0 && in_last > 0) atomicAdd(histogram.column(group) + kNumOrderBuckets - 1, in_last);
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
      const uint32_t listed = plan.listed_steps[g];
      s.wanted[g] = options.fixed_budget > 0 || !(missing > 0.0f) ? listed : listed + uint32_t(fminf(ceilf(missing * kShareUnit), 0x1p31f));
    }
    if (g == group) s.wanted[g] = uint32_t(options.fixed_budget > 0 ? options.fixed_budget : options.min_tokens);
    if (g == group + 1) s.wanted[g] = uint32_t(options.max_tokens) + 1u;
    __syncthreads();
  }

  // How many clusters of a bucket lie before the thread's own.
  __device__ __forceinline__ int members_before(int of_bucket) const {
    unsigned long long own = 0, total = 0;
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster) own += bucket[cluster] == of_bucket ? 1u : 0u;
    const int before = int(block_exclusive_sum<kSelectThreads>(own, total, s.warp_sums));
    if (threadIdx.x == 0) s.num_members = int(total);
    return before;
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
        const int cluster = members[place], count = size[cluster];
        value = column < group ? to_steps(share(log_weights(cluster)[column], count, column)) : uint32_t(count);
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
    const int rank_of_first = members_before(at);
    int32_t* members = p.workspace.tail_clusters + int64_t(row) * p.max_slots;  // for the time being
    for (int cluster = first, place = rank_of_first; cluster < last; ++cluster)
      if (bucket[cluster] == at) members[place++] = cluster;
    __syncthreads();
    rank_columns(members, at);
    __syncthreads();
    int rank = 0;
    for (int w = 0; w <= group; ++w) rank = max(rank, s.rank[w]);
    rank = min(rank, s.rank[group + 1]);
    sum_chosen(members, at, rank);
    mark_chosen(at, rank, rank_of_first);
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
  __device__ __forceinline__ void mark_chosen(int at, int rank, int rank_of_first) const {
    const OrderCut before = plan.cut;
    const int rank_before_of_first = p.round > 0 ? members_before(before.bucket) : 0;
    int place = rank_of_first, place_before = rank_before_of_first;
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
        plan.rest[g] = share_of_rest / s.unit_share[g];
        plan.listed_steps[g] = s.chosen[g];
      }
    }
    __syncthreads();
    int of_all = -1;
    for (int g = 0; g < group; ++g) of_all = max(of_all, s.tail_bucket[g]);
    if (p.options.tail == Tail::drop) of_all = -1;
    if (warp() < group) {
      const uint32_t used = of_all < 0 ? 0u : sum_before(warp(), min(of_all + 1, kNumOrderBuckets)) - s.chosen[warp()];
      if (lane() == 0) plan.used_rest[warp()] = float(used) * (1.0f / kShareUnit) / s.unit_share[warp()];
    }
    return of_all;
  }

  // Tokens of the clusters chosen in this round, by cluster id, behind those of the list; and the tail's clusters.
  __device__ __forceinline__ void write_lists(int tail_bucket) const {
    constexpr int kTokenBits = 22, kPieceBits = 21;
    constexpr unsigned long long kTokenMask = (1ull << kTokenBits) - 1, kPieceMask = (1ull << kPieceBits) - 1;
    unsigned long long own = 0, total = 0;  // tokens, pieces, clusters of the tail
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster) {
      if (bucket[cluster] == kListedNow) own += (static_cast<unsigned long long>(pieces_of(cluster)) << kTokenBits) + size[cluster];
      if (int(bucket[cluster]) <= tail_bucket) own += 1ull << (kTokenBits + kPieceBits);
    }
    const unsigned long long start = block_exclusive_sum<kSelectThreads>(own, total, s.warp_sums);
    const int num_pieces = int(total >> kTokenBits & kPieceMask), begin = plan.num_listed;
    int32_t* list = p.workspace.tokens + int64_t(row) * p.max_tokens + begin;
    int32_t* tail = p.workspace.tail_clusters + int64_t(row) * p.max_slots;
#pragma unroll 1
    for (int part = 0; part == 0 || part < num_pieces; part += kListedAtOnce) {
      int at = int(start >> kTokenBits & kPieceMask) - part, at_tail = int(start >> (kTokenBits + kPieceBits));
      uint32_t place = uint32_t(start & kTokenMask);
#pragma unroll 1
      for (int cluster = first; cluster < last; ++cluster) {
        if (part == 0 && int(bucket[cluster]) <= tail_bucket) tail[at_tail++] = cluster;
        if (bucket[cluster] != kListedNow) continue;
        const int count = size[cluster];
#pragma unroll 1
        for (int offset = 0; offset < count; offset += kWarpSize, ++at)
          if (at >= 0 && at < kListedAtOnce) s.listed[at] = {cluster, offset, place + uint32_t(offset), min(kWarpSize, count - offset)};
        place += uint32_t(count);
      }
      __syncthreads();
      expand(list, min(kListedAtOnce, num_pieces - part));
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      plan.first_listed = p.round == 0 ? 0 : begin;
      plan.num_listed = begin + int(total & kTokenMask);
      plan.num_tail = int(total >> (kTokenBits + kPieceBits));
    }
  }
  __device__ __forceinline__ int pieces_of(int cluster) const { return (size[cluster] + kWarpSize - 1) / kWarpSize; }

  // Copies the tokens of `count` pieces: a warp a piece, several on their way together. Clusters differ in size, pieces hardly.
  __device__ __forceinline__ void expand(int32_t* list, int count) const {
    constexpr int kTogether = 8;
    for (int i = int(threadIdx.x); i < count; i += kSelectThreads) s.listed[i].first += head.clusters.cluster_indptr[s.listed[i].cluster];
    __syncthreads();
#pragma unroll 1
    for (int i = warp(); i < count; i += kTogether * kSelectWarps) {
      int32_t token[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const ListedPiece piece = s.listed[min(i + j * kSelectWarps, count - 1)];
        token[j] = head.clusters.cluster_tokens[piece.first + min(lane(), piece.count - 1)];
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (i + j * kSelectWarps >= count) break;
        const ListedPiece piece = s.listed[i + j * kSelectWarps];
        if (lane() < piece.count) list[piece.place + lane()] = token[j];
      }
    }
  }

  __device__ __forceinline__ bool is_unread(int cluster) const { return bucket[cluster] < kListedNow; }
  // Shares of the rest of all unread clusters, the largest over the heads, to `rest_share`; returns the sum over the whole block. As bf16:
  // they only shape the sample, which is unbiased whatever they are.
  __device__ __forceinline__ float share_rest() const {
    float own = 0.0f;
    for_each_weight([&](int cluster, int count, const float (&weight)[kHeads]) {
      if (!is_unread(cluster)) return;
      float largest = 0.0f;
#pragma unroll
      for (int g = 0; g < kHeads; ++g)
        if (g < group) largest = fmaxf(largest, share(weight[g], count, g) * s.inverse_rest[g]);
      const uint32_t bits = __float_as_uint(largest) & 0xffff0000u;
      rest_share[cluster] = uint16_t(bits >> 16);
      own += __uint_as_float(bits);
    });
    own = warp_sum(own);
    if (lane() == 0) s.rest_sum[warp()] = own;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < kSelectWarps; ++w) sum += s.rest_sum[w];
    return sum;
  }

  // Draws one token for each stratum of the rest's distribution, a mixture of estimated weight and size; a thread a stratum. Probabilities
  // are integers, so that the strata meet without gaps.
  __device__ __forceinline__ void draw_tokens(int run) const {
    constexpr float kUnit = 0x1p40f;
    const float unread = float(head.end_token - head.begin_token) - float(s.chosen[group]);
    const DrawRule rule = draw_rule(double(share_rest()), double(unread));
    const float per_share = float(rule.per_share) * kUnit, per_token = float(rule.per_token) * kUnit;
    const auto probability = [&](int cluster) {
      const float share = __uint_as_float(uint32_t(rest_share[cluster]) << 16);
      return is_unread(cluster) ? static_cast<unsigned long long>(share * per_share + float(size[cluster]) * per_token) : 0ull;
    };
    unsigned long long own = 0, total = 0;
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster) own += probability(cluster);
    s.draw_start[threadIdx.x] = block_exclusive_sum<kSelectThreads>(own, total, s.warp_sums);
    __syncthreads();
    const int num_draws = total == 0 ? 0 : p.num_draws, stratum = int(threadIdx.x);
    if (stratum < num_draws) {
      const SamplePoints points = SamplePoints::of(p.options.seed, p.kv_head_of(row) * group, plan.num_tokens, plan.num_sampled, num_draws);
      const auto point = static_cast<unsigned long long>(points.point(stratum) * double(total));
      int low = 0;  // the last thread whose clusters begin at or before the point
#pragma unroll 1
      for (int high = kSelectThreads - 1; low < high;) {
        const int middle = (low + high + 1) / 2;
        if (s.draw_start[middle] <= point)
          low = middle;
        else
          high = middle - 1;
      }
      int cluster = low * run;
      unsigned long long end = s.draw_start[low] + probability(cluster);
#pragma unroll 1
      while (end <= point) end += probability(++cluster);
      const int count = size[cluster], token = head.clusters.cluster_indptr[cluster] + points.token_of(stratum, count);
      const float scale = float(count) * float(total) / (float(probability(cluster)) * float(num_draws));
      p.workspace.draws[int64_t(row) * p.num_draws + stratum] = {head.clusters.cluster_tokens[token], scale};
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      plan.num_draws = num_draws;
      plan.num_sampled += num_draws;
    }
  }
};

}  // namespace quorum::cuda
