// Sixth stage where tokens are chosen by code, with a certificate: a sample of what is not listed, tokens of candidates by their codes,
// tokens of other clusters by estimate (algorithm.md eq. 16). One block a row.
#pragma once

#include "quorum/cuda/block/draw_strata.cuh"
#include "quorum/cuda/block/key_histogram.cuh"
#include "quorum/cuda/block/step.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kDrawThreads = 512;

struct DrawTokensShared {
  DrawShared<kDrawThreads> strata;
  float share[kDrawThreads / kWarpSize];
  int32_t tokens[kDrawThreads / kWarpSize];
};

// Sums of a thread's values over the block; every thread gets them.
__device__ __forceinline__ DrawRule sum_rule(float share, int tokens, DrawTokensShared& s) {
  share = warp_sum(share);
  tokens = warp_sum(tokens);
  if (threadIdx.x % kWarpSize == 0) {
    s.share[threadIdx.x / kWarpSize] = share;
    s.tokens[threadIdx.x / kWarpSize] = tokens;
  }
  __syncthreads();
  double all_shares = 0.0, all_tokens = 0.0;
#pragma unroll 1
  for (int w = 0; w < kDrawThreads / kWarpSize; ++w) {
    all_shares += double(s.share[w]);
    all_tokens += double(s.tokens[w]);
  }
  return draw_rule(all_shares, all_tokens);
}

// The unread token of a candidate at `into` of the cluster's distribution, and the token's share of it. buckets: of the cluster.
__device__ __forceinline__ int pick_token(const uint16_t* buckets, int size, int last_listed, const DrawSteps& steps, float into,
                                          float& share_of_cluster) {
  const auto steps_of = [&](int i) {
    const int bucket = buckets[i];
    return bucket > last_listed ? bucket_key(bucket) * steps.per_share + steps.per_token : 0.0f;
  };
  float total = 0.0f, through = 0.0f, own = 0.0f;
#pragma unroll 1
  for (int i = 0; i < size; ++i) total += steps_of(i);
  int token = 0;
#pragma unroll 1
  for (int i = 0; i < size; ++i) {  // the last one takes what rounding leaves over
    const float next = steps_of(i);
    if (next == 0.0f) continue;
    token = i;
    own = next;
    through += next;
    if (through > into * total) break;
  }
  share_of_cluster = own / total;
  return token;
}

// Grid: (num_kv_heads, sets). kThreads: kDrawThreads. Leaves: draws, and their number in the plan and in counts.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1) draw_tokens_kernel(const __grid_constant__ StepParams p) {
  static_assert(kThreads == kDrawThreads);
  QUORUM_SHARED(DrawTokensShared, s);
  const int row = int(blockIdx.y) * p.shape.num_kv_heads + int(blockIdx.x);
  let_next_kernel_start();
  wait_for_previous_kernel();
  RowPlan& plan = p.workspace.plan[row];
  if (plan.path != DecodePath::sparse_tokens || (p.round > 0 && !plan.widens)) return;
  const SegmentView& clusters = p.head(row).clusters;
  const int64_t first_cluster = int64_t(row) * p.max_slots;
  const uint16_t* keys = p.workspace.cluster_key + first_cluster;
  const float* share = p.workspace.unread_share + first_cluster;
  const int32_t* tokens = p.workspace.unread_tokens + first_cluster;
  const ClusterRuns runs = ClusterRuns::of<kThreads>({}, clusters.num_clusters);
  float own_share = 0.0f;
  int own_tokens = 0;
#pragma unroll 1
  for (int cluster = runs.first; cluster < runs.last; ++cluster) {
    own_share += share[cluster];
    own_tokens += tokens[cluster];
  }
  const DrawSteps steps(sum_rule(own_share, own_tokens, s));
  const SamplePoints points =
      SamplePoints::of(p.options.seed, p.kv_head_of(row) * p.heads_per_row, plan.num_tokens, plan.num_sampled, p.num_draws);
  const int num_draws = draw_strata<kThreads>(
      runs, points, s.strata, [&](int cluster) { return steps.of(share[cluster], float(tokens[cluster])); },
      [&](int stratum, int cluster, float probability, float into) {
        const int size = int(clusters.size[cluster]);
        int token = points.token_of(stratum, size);
        float of_cluster = 1.0f / float(size);
        if (keys[cluster] < kEntersOutside) {
          const int64_t block = int64_t(row) * p.max_code_blocks() + clusters.code_indptr[cluster];
          token = pick_token(p.workspace.token_bucket + block * kCodeBlock, size, plan.token_bucket, steps, into, of_cluster);
        }
        p.workspace.draws[int64_t(row) * p.num_draws + stratum] = {clusters.cluster_tokens[clusters.cluster_indptr[cluster] + token],
                                                                   1.0f / (probability * of_cluster * float(p.num_draws))};
      });
  if (threadIdx.x == 0) {
    plan.num_draws = num_draws;
    plan.num_sampled += num_draws;
    p.workspace.counts[kSegmentKinds * row + int(SegmentKind::draws)] = num_draws;
  }
}

}  // namespace quorum::cuda
