// One row's clusters as the blocks that choose among them see them: what they weigh, in which bucket of the reading order they lie
// (algorithm.md eq. 6).
#pragma once

#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/block/block_team.cuh"
#include "quorum/cuda/block/cluster_histogram.cuh"
#include "quorum/cuda/block/draw_strata.cuh"
#include "quorum/cuda/block/state_sum.cuh"
#include "quorum/cuda/block/step.cuh"

namespace quorum::cuda {

inline constexpr int kSelectThreads = 512;
inline constexpr int kSelectWarps = kSelectThreads / kWarpSize;
inline constexpr int kListedAtOnce = 1024;  // pieces of chosen clusters that are listed together

// Marks in the array of buckets, above all buckets.
inline constexpr uint16_t kNoBucket = 0xffff;      // empty cluster
inline constexpr uint16_t kListedBefore = 0xfffe;  // chosen in an earlier round
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
  // What the blocks of a team tell one another; each is used once in a launch.
  unsigned long long members_of_block[kMaxTeamBlocks], lists_of_block[kMaxTeamBlocks];
  float rest_of_block[kMaxTeamBlocks];
  float squares_of_block[kMaxTeamBlocks][kMaxGroupSize];  // the leader's
  DrawShared<kSelectThreads> draws;
  ListedPiece listed[kListedAtOnce];
};

// Most clusters of a block that chooses for a row together with others.
QUORUM_HOST_DEVICE inline int select_slots(int max_slots, int blocks) {
  const int slots = int(ceil_div(max_slots, blocks * kSelectThreads)) * kSelectThreads;
  return slots < max_slots ? slots : max_slots;
}

// Two bytes for each of the block's clusters, in shared memory; by the cluster's number in the row.
struct OfCluster {
  uint16_t* values = nullptr;
  int begin = 0;
  __device__ __forceinline__ uint16_t& operator[](int cluster) const { return values[cluster - begin]; }
};

// Device functions of one block, or of a team of blocks that each know their own clusters, and all the row's sums by bucket. What is
// written down once for a row is the leader's to write. kHeads: query heads of the group, rounded up to 4, 8 or 16. Loops over clusters are
// not unrolled where a kernel is not the slower for it: its instructions are fetched once and used once.
template <int kHeads>
struct RowClusters : ClusterRuns {
  const StepParams& p;
  SelectShared& s;
  ClusterHistogram histogram;
  OfCluster bucket;
  OfCluster size;        // tokens
  OfCluster rest_share;  // upper halves of floats
  const FlatHeadView& head;
  RowPlan& plan;
  int row, group;

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
        if (!isfinite(s.log_total[g])) atomicExch(&s.finite, 0);
        if (p.round == 0 && team.rank == 0) {
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

  // What is always read leads the row's list.
  __device__ __forceinline__ void list_always() const {
    for (int i = team.rank * kSelectThreads + int(threadIdx.x); i < plan.num_always; i += team.size * kSelectThreads)
      p.workspace.tokens[int64_t(row) * p.max_tokens + i] = head.always_token(i);
  }

  // Calls visit(cluster, its size, log weights of the heads) for the block's clusters thread, thread + kSelectThreads, ..., in no order
  // that sums could depend on; neighbouring threads have neighbouring clusters, and several clusters' weights are on their way together.
  template <class Visit>
  __device__ __forceinline__ void for_each_weight(Visit&& visit) const {
    constexpr int kBatch = 16 / kHeads;
#pragma unroll 1
    for (int of_batch = block_begin + int(threadIdx.x); of_batch < block_end; of_batch += kBatch * kSelectThreads) {
      float weight[kBatch][kHeads], tokens[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int cluster = min(of_batch + i * kSelectThreads, block_end - 1);
        const float* row_weights = log_weights(cluster);
        tokens[i] = head.clusters.size[cluster];
#pragma unroll
        for (int g = 0; g < kHeads; ++g) weight[i][g] = g < group ? row_weights[g] : -kInfinity;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        if (of_batch + i * kSelectThreads < block_end) visit(of_batch + i * kSelectThreads, int(tokens[i]), weight[i]);
    }
  }

  // Sizes and buckets of the block's clusters, sums of all.
  __device__ __forceinline__ void fill_histogram() const {
    for (int i = int(threadIdx.x); i < (group + 1) * kNumOrderBuckets; i += kSelectThreads) histogram.sums[i] = 0;
    __syncthreads();
    uint32_t in_last = 0;  // tokens of the last bucket: often most of them, and a sum that all threads add to holds them up
    for_each_weight([&](int cluster, int count, const float(&weight)[kHeads]) {
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
    team.add_up(histogram.sums, (group + 1) * kNumOrderBuckets);
  }
};

}  // namespace quorum::cuda
