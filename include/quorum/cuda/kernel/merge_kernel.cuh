// Last stage: the partial results of a head become its output, with the rest that was not read, the certificate and the report
// (algorithm.md eq. 9 to 12).
#pragma once

#include "quorum/core/certificate.hpp"
#include "quorum/core/step_bytes.hpp"
#include "quorum/core/tail_estimate.hpp"
#include "quorum/cuda/block/work_list.cuh"

namespace quorum::cuda {

inline constexpr int kMergeThreads = 128;
inline constexpr int kMaxRounds = 3;  // attend, widen once, densely

// Partial results of one segment in one round: `count` of them from `first` on.
struct PartialRange {
  int64_t first = 0;
  int count = 0;
};
__device__ __forceinline__ PartialRange partials_of(const StepParams& p, int round, int segment) {
  const int num_segments = kSegmentKinds * p.num_rows();
  const int32_t* indptr = p.workspace.tile_indptr + int64_t(round) * (num_segments + 1);
  const int begin = indptr[segment], end = indptr[segment + 1], total = indptr[num_segments];
  if (begin == end) return {};
  const int first = block_of_tile(begin, p.attend_blocks, total), last = block_of_tile(end - 1, p.attend_blocks, total);
  return {partial_of(p, round, first, segment), last - first + 1};
}

// One head's sampled rest in units of exp(reference), by one warp; every lane gets it.
__device__ __forceinline__ SampledRest sum_draws(const StepParams& p, int row, int g, const RowPlan& plan) {
  const int lane = int(threadIdx.x) % kWarpSize, group = p.shape.group_size();
  const auto contribution = [&](int i) {
    const int64_t at = int64_t(row) * p.num_draws + i;
    return __expf(p.workspace.draw_weight[at * group + g] - plan.reference[g]) * p.workspace.draws[at].scale;
  };
  float sum = 0.0f, differences = 0.0f, last_before = 0.0f;
  for (int first = 0; first < plan.num_draws; first += kWarpSize) {
    const int i = first + lane;
    const float own = i < plan.num_draws ? contribution(i) : 0.0f;
    const float below = __shfl_up_sync(kFullMask, own, 1), before = lane == 0 ? last_before : below;
    sum += own;
    if (i > 0 && i < plan.num_draws) differences += (own - before) * (own - before);
    last_before = __shfl_sync(kFullMask, own, kWarpSize - 1);
  }
  return stratified_rest(warp_sum(sum), warp_sum(differences), plan.num_draws);
}

// What is known of a head's weight, in units of exp(reference).
struct HeadWeight {
  float read = 0.0f;
  float rest = 0.0f;        // by estimate
  float believed = 0.0f;    // by sample and estimate
  float upper_bound = 0.0f;
  bool sampled = false;
};

__device__ __forceinline__ void write_report(const StepParams& p, int row, int g, const RowPlan& plan, const HeadWeight& weight) {
  if (p.reports == nullptr) return;
  HeadReport report;
  report.path = plan.path;
  StoredHead stored{p.shape.head_dim, p.kv.type, IndexStorage::int8, p.options.variance, 0};
  report.bytes_dense = stored.dense_bytes(plan.num_tokens);
  report.tokens_read = report.tokens_scored = plan.num_listed;
  report.bytes_read = report.bytes_dense;
  if (!is_dense(plan.path)) {
    report.tokens_sampled = plan.num_sampled;
    report.clusters_used = plan.num_tail;
    report.rounds = plan.num_rounds;
    stored.num_cluster_slots = p.heads[row].clusters.num_clusters;
    report.bytes_read = stored.sparse_bytes(report, plan.num_listed - plan.num_always, 0);
    report.attained_ratio_estimate = attained_ratio(weight.read, plan.complete ? 0.0f : weight.believed);
    if (!plan.complete) {
      report.confidence = weight.sampled ? p.options.certificate.confidence : 0.0f;
      report.attained_ratio_lower_bound = weight.sampled ? attained_ratio(weight.read, weight.upper_bound) : 0.0f;
    }
  }
  p.reports[int64_t(p.sequence_of(row)) * p.shape.num_qo_heads + p.kv_head_of(row) * p.shape.group_size() + g] = report;
}

// Grid: (group_size, rows).
template <int kThreads>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ StepParams p) {
  const int g = int(blockIdx.x), row = int(blockIdx.y), group = p.shape.group_size(), d = p.shape.head_dim;
  let_next_kernel_start();
  wait_for_previous_kernel();
  RowPlan& plan = p.workspace.plan[row];
  if (p.round > 0 && !plan.widens) return;
  // Everything that was read, in all rounds that count.
  AttentionState state;
  PartialRange listed[kMaxRounds];
  for (int round = plan.first_round; round <= p.round; ++round) {
    listed[round] = partials_of(p, round, row * kSegmentKinds + int(SegmentKind::listed));
    for (int i = 0; i < listed[round].count; ++i) state = merge(state, p.workspace.partial_state[(listed[round].first + i) * group + g]);
  }
  const bool sparse = !is_dense(plan.path);
  HeadWeight weight;
  float unit = state.max, of_tail = 0.0f, amount = 0.0f;
  if (sparse) {
    weight.sampled = plan.num_draws > 0;
    weight.rest = plan.complete ? 0.0f : plan.rest[g];
    weight.read = state.sum * rescale_factor(state.max, plan.reference[g]);
    const SampledRest sampled = sum_draws(p, row, g, plan);
    weight.believed = weight.sampled ? believed_rest(sampled, weight.rest, sample_trust(p.options.variance)) : weight.rest;
    weight.upper_bound = rest_upper_bound(sampled, weight.rest, p.z);
    amount = p.options.tail == Tail::drop || plan.num_tail == 0 || !(plan.used_rest[g] > 0.0f) ? 0.0f
             : p.options.tail == Tail::calibrated                                              ? weight.believed
                                                                                               : weight.rest;
    unit = larger_max(state.max, plan.reference[g]);
    of_tail = tail_scale(amount, plan.used_rest[g]) * rescale_factor(plan.reference[g], unit);
    amount *= rescale_factor(plan.reference[g], unit);
  }
  const float of_read = rescale_factor(state.max, unit), total = state.sum * of_read + amount;
  const PartialRange tail = sparse ? partials_of(p, p.round, row * kSegmentKinds + int(SegmentKind::tail)) : PartialRange{};
  const int sequence = p.sequence_of(row), qo_head = p.kv_head_of(row) * group + g;
  for (int c = int(threadIdx.x); c < d; c += kThreads) {
    float value = 0.0f, rest = 0.0f;
    for (int round = plan.first_round; round <= p.round; ++round)
      for (int i = 0; i < listed[round].count; ++i) {
        const int64_t at = (listed[round].first + i) * group + g;
        value += p.workspace.partial_output[at * d + c] * rescale_factor(p.workspace.partial_state[at].max, unit);
      }
    for (int i = 0; i < tail.count; ++i) rest += p.workspace.partial_output[((tail.first + i) * group + g) * d + c];
    p.out.row(p.shape, sequence, qo_head)[c] = plan.num_tokens == 0 ? 0.0f : (value + (of_tail > 0.0f ? rest * of_tail : 0.0f)) / total;
  }
  __syncthreads();  // all have read the plan
  if (threadIdx.x != 0) return;
  p.out.set_lse(p.shape, sequence, qo_head, total == 0.0f ? -kInfinity : unit + logf(total));
  write_report(p, row, g, plan, weight);
  if (!sparse || p.round + 1 >= p.num_rounds) return;
  plan.read[g] = weight.read;
  plan.rest_factor[g] = weight.rest > 0.0f ? weight.upper_bound / weight.rest : 1.0f;
  plan.misses[g] = !plan.complete && !meets_target(weight.read, weight.upper_bound, p.options.target_ratio);
}

}  // namespace quorum::cuda
