// The choice of one row's tokens by one block, from what their codes came to: the key bucket at which every head has enough, found without
// a sort (algorithm.md eq. 15). Once before anything is read; once more where that has not brought what was expected.
#pragma once

#include "quorum/core/coded_rest.hpp"
#include "quorum/core/decode_plan.hpp"
#include "quorum/core/stopping_rule.hpp"
#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/block/key_histogram.cuh"
#include "quorum/cuda/block/step.cuh"

namespace quorum::cuda {

inline constexpr int kChoiceThreads = 576;  // a warp for each of up to 16 heads, one for the least and one for the most tokens
inline constexpr int kChoiceWarps = kChoiceThreads / kWarpSize;

struct ChoiceShared {
  int32_t bucket[kMaxGroupSize + 2];
  int32_t num_tokens;
  int32_t failed, finite;
  uint32_t warp_sums[kChoiceWarps];
};

struct TokenChoice {
  const StepParams& p;
  ChoiceShared& s;
  RowPlan& plan;
  KeyHistogram<unsigned long long> histogram;  // of the row: expected weights of each head, then counts
  int row, group;

  __device__ __forceinline__ int warp() const { return int(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ int lane() const { return int(threadIdx.x) % kWarpSize; }
  __device__ __forceinline__ bool by_budget() const { return p.options.fixed_budget > 0; }

  // Where each column has what it must; the last one: must not have more.
  __device__ __forceinline__ void find_thresholds() const {
    static_assert(kChoiceWarps >= kMaxGroupSize + 2);
    if (threadIdx.x == 0) {
      s.failed = 0;
      s.finite = 1;
    }
    const int w = warp();
    if (w > group + 1) return;
    int bucket = -1;
    if (w < group) {
      const unsigned long long wanted = wanted_steps(w);
      if (!by_budget()) bucket = find_threshold(histogram.column(w), wanted);
    } else if (w == group) {
      const int least = by_budget() ? p.options.fixed_budget : p.options.min_tokens;
      bucket = find_threshold(histogram.column(group), static_cast<unsigned long long>(least));
    } else {
      const auto most = static_cast<unsigned long long>(p.options.max_tokens);
      bucket = min(find_place<kNumKeyBuckets>(histogram.column(group), most + 1).bucket - 1, kLastKeyBucket);
    }
    if (lane() == 0) s.bucket[w] = bucket;
  }
  // What head g must have listed, in steps; by one warp. Post: in the first round, plan's rest, and what is outside of the candidates as
  // codes make of it.
  __device__ __forceinline__ unsigned long long wanted_steps(int g) const {
    if (p.round == 0) correct_outside(g);
    const double steps = ceil((p.options.target_error > 0.0f ? wanted_squares(g) : wanted_weight(g)) * double(token_unit(p.options)));
    return steps > 0.0 ? static_cast<unsigned long long>(fmin(steps, 0x1p62)) : 0ull;
  }
  // By target ratio: expected weight, as a share of the total.
  __device__ __forceinline__ double wanted_weight(int g) const {
    const double surprise = p.round == 0 ? 1.0 : double(plan.surprise[g]);
    const double factor = double(p.round == 0 ? kCodedMargin : plan.rest_factor[g]);
    const double need = coded_need(double(p.options.target_ratio), double(plan.read[g]), surprise * double(plan.rest[g]), factor, surprise);
    return need > 0.0 ? share_through(g, plan.bucket_before) + need / double(plan.total[g]) : 0.0;
  }
  // By target error: squared weight, as a share of the total's square. Nothing before the output's length is known.
  __device__ __forceinline__ double wanted_squares(int g) const {
    if (p.surveys()) return 0.0;
    const double unit = double(plan.total[g]) * double(plan.total[g]), squares = share_through(g, kNumKeyBuckets - 1);
    return error_model(g).squares_to_list(squares * unit, double(plan.outside_squares[g]) * unit, double(p.options.target_error)) / unit;
  }
  __device__ __forceinline__ ErrorModel error_model(int g) const {
    const QueryConstants& query = p.workspace.constants[row * kMaxGroupSize + g];
    return ErrorModel::of(p.head(row).moments, double(query.square), double(plan.output_square[g]), double(plan.output_weight[g]));
  }
  // What the scan added up for head g in buckets [0, bucket]; every lane gets it.
  __device__ __forceinline__ double share_through(int g, int bucket) const {
    return double(sum_through(histogram.column(g), bucket)) / double(token_unit(p.options));
  }
  __device__ __forceinline__ void correct_outside(int g) const {
    float sum = 0.0f;
#pragma unroll 4
    for (int tile = lane(); tile < p.scan_tiles; tile += kWarpSize)
      sum += p.workspace.unread_weight[(int64_t(row) * p.scan_tiles + tile) * group + g];
    sum = warp_sum(sum);
    if (lane() == 0) {
      const double total = double(plan.total[g]), expected = double(sum) * total;
      const double read = double(plan.read[g]), before = double(plan.outside[g]);
      const double found = plan.num_coded > 0 ? outside_factor(expected, total - read - before) : 1.0, outside = before * found;
      const float used = plan.used_outside[g];
      plan.outside[g] = float(outside);
      plan.rest[g] = float(expected + outside);
      plan.log_outside_scale[g] = used > 0.0f && outside > 0.0 ? __logf(tail_scale(float(outside), used)) : -kInfinity;
      if (p.options.target_error > 0.0f) plan.outside_squares[g] *= float(found * found);
    }
    __syncwarp();
  }

  // The bucket up to which tokens are listed. Post: plan's rest is what is expected of the others. Ends with a barrier.
  __device__ __forceinline__ void choose() const {
    find_thresholds();
    __syncthreads();
    const int before = plan.bucket_before;
    int cut = before;
    for (int w = 0; w <= group; ++w) cut = max(cut, s.bucket[w]);
    cut = p.surveys() ? -1 : max(before, min(cut, s.bucket[group + 1]));
    if (warp() == group) {
      const unsigned long long* counts = histogram.column(group);
      const auto listed = int(sum_through(counts, cut) - sum_through(counts, before));
      if (lane() == 0) s.num_tokens = listed;
    }
    if (warp() < group) take(warp(), before, cut);
    if (threadIdx.x == 0) plan.token_bucket = cut;
    __syncthreads();
  }
  // What a head is left with; by one warp.
  __device__ __forceinline__ void take(int g, int before, int cut) const {
    const double total = double(plan.total[g]), through = share_through(g, cut), listed = through - share_through(g, before);
    if (p.options.target_error > 0.0f) {
      const double unit = total * total, left = share_through(g, kNumKeyBuckets - 1) - through;
      if (lane() == 0 && !p.surveys()) {
        plan.error_estimate[g] = float(error_model(g).error(left * unit, double(plan.outside_squares[g]) * unit));
        if (!isfinite(plan.output_square[g])) atomicExch(&s.finite, 0);
      }
    } else if (lane() == 0) {
      plan.listed[g] = float(listed * total);
      plan.rest[g] = fmaxf(plan.rest[g] - plan.listed[g], 0.0f);
      if (!meets_target(plan.read[g] + plan.listed[g], plan.rest[g], 0.5f * p.options.target_ratio)) atomicExch(&s.failed, 1);
    }
    if (lane() == 0 && !isfinite(plan.rest[g])) atomicExch(&s.finite, 0);
  }

  // Which way the row goes. Where all that seemed worth reading would be read, and by estimate half of some head's target is missed all the
  // same, estimates and codes have led astray.
  __device__ __forceinline__ DecodePath path() const {
    if (s.finite == 0) return DecodePath::dense_by_numerics;
    const int num_read = plan.num_listed + s.num_tokens, num_visible = plan.num_always + p.head(row).num_indexed;
    const bool by_target = !by_budget() && p.options.target_error == 0.0f;
    if (by_target && p.options.max_tokens >= plan.num_coded && num_read < num_visible && s.failed != 0)
      return DecodePath::dense_by_numerics;
    if (dense_is_cheaper(p.options, num_read, num_visible)) return DecodePath::dense_by_cost;
    return DecodePath::sparse_tokens;
  }

  // Where each tile's tokens go in the list.
  __device__ __forceinline__ void place_tiles() const {
    const int64_t first = int64_t(row) * p.scan_tiles;
#pragma unroll 1
    for (int tile = warp(); tile < p.scan_tiles; tile += kChoiceWarps) {
      const uint32_t* counts = p.workspace.tile_counts + (first + tile) * kNumKeyBuckets;
      const uint32_t count = sum_through(counts, plan.token_bucket) - sum_through(counts, plan.bucket_before);
      if (lane() == 0) p.workspace.tile_start[first + tile] = int32_t(count);
    }
    __syncthreads();
    uint32_t before = uint32_t(plan.num_listed);
#pragma unroll 1
    for (int begin = 0; begin < p.scan_tiles; begin += kChoiceThreads) {
      const int tile = begin + int(threadIdx.x);
      const uint32_t own = tile < p.scan_tiles ? uint32_t(p.workspace.tile_start[first + tile]) : 0u;
      uint32_t total;
      const uint32_t start = before + block_exclusive_sum<kChoiceThreads>(own, total, s.warp_sums);
      if (tile < p.scan_tiles) p.workspace.tile_start[first + tile] = int32_t(start);
      before += total;
    }
  }
};

}  // namespace quorum::cuda
