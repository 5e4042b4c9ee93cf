// Last stage: the partial results of a head become its output, with the rest that was not read, the certificate and the report
// (algorithm.md eq. 9 to 12).
#pragma once

#include "quorum/core/certificate.hpp"
#include "quorum/core/coded_rest.hpp"
#include "quorum/core/step_bytes.hpp"
#include "quorum/core/tail_estimate.hpp"
#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/state_sum.cuh"
#include "quorum/cuda/block/work_list.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kMergeThreads = 256;
inline constexpr int kMergedAtOnce = 128;  // partial results whose factors are in shared memory together
inline constexpr int kMaxRounds = 3;       // attend, widen once, densely

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
  const int lane = int(threadIdx.x) % kWarpSize, group = p.group;
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
  float rest = 0.0f;      // by estimate
  float believed = 0.0f;  // by sample and estimate
  float upper_bound = 0.0f;
  float surprise = 1.0f;  // of tokens that were chosen by their codes
  float amount = 0.0f;    // that the tail stands for
  float entered = 0.0f;   // of it, what its clusters hold
  bool sampled = false;
};

// num_visible: of the tokens of the row, those that one of its columns sees.
__device__ __forceinline__ void write_report(const StepParams& p, int row, int g, const RowPlan& plan, int num_visible,
                                             const HeadWeight& weight) {
  if (p.reports == nullptr) return;
  HeadReport report;
  report.path = plan.path;
  StoredHead stored{p.shape.head_dim, p.kv.type, IndexStorage::int8, p.options.variance, 0};
  report.shared_rows = min(p.rows_per_set, p.num_query_rows - p.query_of(row, 0));
  report.bytes_dense = stored.dense_bytes(num_visible);
  report.tokens_read = report.tokens_scored = is_dense(plan.path) ? num_visible : plan.num_listed;
  report.bytes_read = report.bytes_dense;
  if (!is_dense(plan.path)) {
    report.tokens_sampled = plan.num_sampled;
    report.clusters_used = plan.num_tail;
    report.rounds = plan.num_rounds;
    stored.num_cluster_slots = p.head(row).clusters.num_clusters;
    const bool by_tokens = plan.path == DecodePath::sparse_tokens;
    if (by_tokens) report.tokens_coded = plan.num_coded;
    report.bytes_read =
        stored.sparse_bytes(report, plan.num_listed - plan.num_always, by_tokens ? int64_t(plan.num_code_blocks) * kCodeBlock : 0);
    if (by_tokens && p.options.target_error > 0.0f) report.error_estimate = plan.error_estimate[g];
    report.attained_ratio_estimate = attained_ratio(weight.read, plan.complete ? 0.0f : weight.believed);
    if (!plan.complete) {
      report.confidence = weight.sampled ? p.options.certificate.confidence : 0.0f;
      report.attained_ratio_lower_bound = weight.sampled ? attained_ratio(weight.read, weight.upper_bound) : 0.0f;
    }
  }
  p.reports[int64_t(p.query_row(row, g)) * p.shape.num_qo_heads + p.qo_head(row, g)] = report;
}

template <int kThreads>
struct MergeShared {
  AttentionState of_warp[kThreads / kWarpSize];
  float factor[kMergedAtOnce];
  alignas(16) float sum[kThreads * 4];
};

// Maximum and sum of a segment's partial states in all rounds that count, by the whole block.
template <int kThreads>
__device__ __forceinline__ AttentionState merge_states(const StepParams& p, int g, int first_round, int segment, MergeShared<kThreads>& s) {
  const int group = p.group;
  AttentionState state;
#pragma unroll 1
  for (int round = first_round; round <= p.round; ++round) {
    const PartialRange range = partials_of(p, round, segment);
#pragma unroll 1
    for (int i = int(threadIdx.x); i < range.count; i += kThreads)
      state = fast_merge(state, p.workspace.partial_state[(range.first + i) * group + g]);
  }
  state = warp_merge(state);
  if (threadIdx.x % kWarpSize == 0) s.of_warp[threadIdx.x / kWarpSize] = state;
  __syncthreads();
  state = s.of_warp[0];
#pragma unroll 1
  for (int w = 1; w < kThreads / kWarpSize; ++w) state = fast_merge(state, s.of_warp[w]);
  return state;
}

// Adds a range of partial outputs, each by factor(its state), to four coordinates from 4 (thread % (head_dim / 4)) on. The threads that
// have the same coordinates share the range.
template <int kThreads, class Factor>
__device__ __forceinline__ void add_outputs(const StepParams& p, int g, PartialRange range, MergeShared<kThreads>& s, float4& sum,
                                            Factor&& factor) {
  const int group = p.group, quads = p.shape.head_dim / 4, quad = int(threadIdx.x) % quads;
  const int part = int(threadIdx.x) / quads, parts = kThreads / quads;
#pragma unroll 1
  for (int first = 0; first < range.count; first += kMergedAtOnce) {
    const int count = min(kMergedAtOnce, range.count - first);
    const int64_t begin = (range.first + first) * group + g;
    __syncthreads();
    if (int(threadIdx.x) < count) s.factor[threadIdx.x] = factor(p.workspace.partial_state[begin + int(threadIdx.x) * group]);
    __syncthreads();
    if (part >= parts) continue;
    const float4* rows = reinterpret_cast<const float4*>(p.workspace.partial_output + begin * p.shape.head_dim) + quad;
    const int stride = group * quads;
#pragma unroll 4
    for (int i = part; i < count; i += parts) {
      const float4 value = rows[i * stride];
      const float by = s.factor[i];
      sum.x += value.x * by;
      sum.y += value.y * by;
      sum.z += value.z * by;
      sum.w += value.w * by;
    }
  }
}

// The sum over the threads that have the same coordinates, for threads below head_dim / 4.
template <int kThreads>
__device__ __forceinline__ void join_outputs(const StepParams& p, MergeShared<kThreads>& s, float4& sum) {
  const int quads = p.shape.head_dim / 4;
  auto* sums = reinterpret_cast<float4*>(s.sum);
  __syncthreads();
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (int(threadIdx.x) < quads)
#pragma unroll 1
    for (int i = int(threadIdx.x) + quads; i + quads <= kThreads / quads * quads + int(threadIdx.x); i += quads) {
      const float4 value = sums[i];
      sum.x += value.x;
      sum.y += value.y;
      sum.z += value.z;
      sum.w += value.w;
    }
}

// How many tokens of a row one of its columns sees, by the whole block.
template <int kThreads>
__device__ __forceinline__ int count_visible(const StepParams& p, int row, const RowPlan& plan, MergeShared<kThreads>& s) {
  if (!is_dense(plan.path)) return p.head(row).num_always(plan.num_tokens) + p.head(row).num_indexed;
  const TokenFilter seen = p.seen_by_all(row);
  if (seen.is_range()) return plan.num_tokens - plan.first_token;
  int own = 0;
#pragma unroll 1
  for (int w = seen.begin / 64 + int(threadIdx.x); 64 * w < seen.end; w += kThreads) own += __popcll(seen.word(w));
  own = warp_sum(own);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) s.factor[threadIdx.x / kWarpSize] = float(own);
  __syncthreads();
  float sum = 0.0f;
#pragma unroll 1
  for (int w = 0; w < kThreads / kWarpSize; ++w) sum += s.factor[w];
  return int(sum);
}

// Output and lse of a column, sinks included. total: weight of what entered, in units of exp(unit). value: of the threads that have one.
__device__ __forceinline__ void write_output(const StepParams& p, int row, int g, float unit, float total, const float4& value) {
  const int query_row = p.query_row(row, g), qo_head = p.qo_head(row, g);
  const bool nothing = total == 0.0f;
  float lse = nothing ? -kInfinity : unit + logf(total), factor = nothing ? 0.0f : 1.0f / total;
  if (p.shape.sink_logits != nullptr) {
    const SinkShare share = add_sink(double(lse), double(p.shape.sink_logits[qo_head]));
    lse = float(share.lse);
    factor *= float(share.factor);
  }
  if (int(threadIdx.x) < p.shape.head_dim / 4)
    reinterpret_cast<float4*>(p.out.row(p.shape, query_row, qo_head))[threadIdx.x] = {value.x * factor, value.y * factor, value.z * factor,
                                                                                      value.w * factor};
  if (threadIdx.x == 0) p.out.set_lse(p.shape, query_row, qo_head, lse);
}

// The squared length of a column's output, and its weight in units of exp(reference), for the error estimate; by the whole block. total,
// value: as in write_output().
template <int kThreads>
__device__ __forceinline__ void measure_output(const StepParams& p, int g, RowPlan& plan, float unit, float total, const float4& value,
                                               MergeShared<kThreads>& s) {
  const bool own = int(threadIdx.x) < p.shape.head_dim / 4;
  const float square = warp_sum(own ? value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w : 0.0f);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) s.factor[threadIdx.x / kWarpSize] = square;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float sum = 0.0f;
  for (int w = 0; w < kThreads / kWarpSize; ++w) sum += s.factor[w];
  plan.output_square[g] = sum / total / total;
  plan.output_weight[g] = total * fast_rescale(unit, plan.reference[g]);
}

// What codes and estimates say of the rest of a head, by one warp; every lane gets it. weight.read is known. With a budget or a
// target error the rest is what codes say. A target was judged by what is expected of it, which is more, and now by how much heavier than
// expected the tokens were that have been read since.
__device__ __forceinline__ void weigh_coded_rest(const StepParams& p, int row, int g, const RowPlan& plan, HeadWeight& weight) {
  float coded = 0.0f;
  for (int tile = int(threadIdx.x) % kWarpSize; tile < p.scan_tiles; tile += kWarpSize)
    coded += p.workspace.unread_weight[(int64_t(row) * p.scan_tiles + tile) * p.group + g];
  weight.amount = warp_sum(coded) + plan.outside[g];
  weight.entered = weight.amount - (plan.used_outside[g] > 0.0f ? 0.0f : plan.outside[g]);
  const int count = plan.num_listed - max(plan.first_listed, plan.num_always);
  const double exact = double(weight.read - plan.read[g]);
  weight.surprise = count < kFewestSurprised ? 1.0f : float(code_surprise(exact, double(plan.listed[g]), count));
  weight.rest = plan.complete ? 0.0f : chooses_once(p.options) ? weight.amount : weight.surprise * plan.rest[g];
}

// What a head's sample and estimates say, in units of exp(reference), by one warp; every lane gets it.
__device__ __forceinline__ HeadWeight weigh_head(const StepParams& p, int row, int g, const RowPlan& plan, AttentionState read) {
  HeadWeight weight;
  const bool by_tokens = plan.path == DecodePath::sparse_tokens;
  const SampledRest sampled = sum_draws(p, row, g, plan);
  const auto believe = [&](float estimate) {
    return plan.num_draws > 0 ? believed_rest(sampled, estimate, sample_trust(p.options.variance)) : estimate;
  };
  weight.sampled = plan.num_draws > 0;
  weight.read = read.sum * fast_rescale(read.max, plan.reference[g]);
  if (by_tokens) {
    weigh_coded_rest(p, row, g, plan, weight);
    weight.amount = believe(weight.amount);
  } else {
    weight.rest = plan.complete ? 0.0f : plan.rest[g];
    weight.amount = p.options.tail == Tail::calibrated ? believe(weight.rest) : weight.rest;
    weight.entered = plan.used_rest[g];
  }
  weight.believed = believe(weight.rest);
  weight.upper_bound = rest_upper_bound(sampled, weight.rest, p.z);
  return weight;
}

// Whether the next round reads on for a head, and with which factor on its rest. By code, what is not seen counts in any case; the bound
// does where policy and round allow it.
__device__ __forceinline__ void judge(const StepParams& p, int g, RowPlan& plan, const HeadWeight& weight) {
  const bool by_tokens = plan.path == DecodePath::sparse_tokens, then_dense = p.round + 1 == p.dense_round;
  const bool by_bound = p.options.certificate.enabled && p.options.certificate.policy != MissPolicy::accept;
  float rest = 0.0f;
  if (by_bound) rest = weight.upper_bound;
  if (by_tokens && !then_dense) rest = fmaxf(p.widens && by_bound ? rest : 0.0f, kCodedMargin * weight.rest);
  if (p.surveys()) {
    plan.misses[g] = true;
    return;
  }
  plan.read[g] = weight.read;
  plan.surprise[g] = weight.surprise;
  plan.rest_factor[g] = weight.rest > 0.0f ? rest / weight.rest : 1.0f;
  plan.misses[g] = (by_tokens || by_bound) && !plan.complete && !meets_target(weight.read, rest, p.options.target_ratio);
}

// Grid: (group, rows).
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 2) merge_kernel(const __grid_constant__ StepParams p) {
  QUORUM_SHARED(MergeShared<kThreads>, s);
  const int g = int(blockIdx.x), row = int(blockIdx.y);
  let_next_kernel_start();
  wait_for_previous_kernel();
  RowPlan& plan = p.workspace.plan[row];
  if (p.round > 0 && !plan.widens) return;
  const bool sparse = !is_dense(plan.path), is_wanted = p.query_of(row, g) < p.num_query_rows;
  const int listed = row * kSegmentKinds + int(SegmentKind::listed), tail = row * kSegmentKinds + int(SegmentKind::tail);
  const AttentionState read = merge_states<kThreads>(p, g, plan.first_round, listed, s);
  HeadWeight weight;
  float unit = read.max, of_tail = 0.0f, amount = 0.0f;
  if (sparse) {
    weight = weigh_head(p, row, g, plan, read);
    const bool has_tail = (p.options.tail != Tail::drop || p.surveys()) && plan.num_tail > 0 && weight.entered > 0.0f;
    unit = larger_max(read.max, plan.reference[g]);
    if (has_tail) amount = weight.amount;
    of_tail = tail_scale(amount, weight.entered) * fast_rescale(plan.reference[g], unit);
    amount *= fast_rescale(plan.reference[g], unit);
  }
  const float total = read.sum * fast_rescale(read.max, unit) + amount;
  float4 value = {};
#pragma unroll 1
  for (int round = plan.first_round; round <= p.round; ++round)
    add_outputs<kThreads>(p, g, partials_of(p, round, listed), s, value,
                          [&](const AttentionState& state) { return fast_rescale(state.max, unit); });
  if (of_tail > 0.0f) add_outputs<kThreads>(p, g, partials_of(p, p.round, tail), s, value, [&](const AttentionState&) { return of_tail; });
  join_outputs<kThreads>(p, s, value);
  if (sparse && p.surveys()) measure_output<kThreads>(p, g, plan, unit, total, value, s);
  const int num_visible = p.reports == nullptr ? 0 : count_visible<kThreads>(p, row, plan, s);
  if (is_wanted) write_output(p, row, g, unit, total, value);
  if (threadIdx.x != 0) return;
  if (is_wanted) write_report(p, row, g, plan, num_visible, weight);
  if (!sparse || p.round + 1 >= p.num_rounds) return;
  judge(p, g, plan, weight);
}

}  // namespace quorum::cuda
