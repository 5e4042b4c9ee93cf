// Fourth stage where tokens are chosen by code: how many are worth reading, in a later round how many more. One block a row.
#pragma once

#include "quorum/cuda/block/token_choice.cuh"
#include "quorum/cuda/kernel/select_tokens_kernel.cuh"

namespace quorum::cuda {

// Whether a row goes on in this round. Ends with a barrier.
__device__ __forceinline__ bool goes_on(const StepParams& p, int row, RowPlan& plan) {
  bool on = plan.path == DecodePath::sparse_tokens;
  if (p.round == 0) return on;
  bool misses = false;
  for (int g = 0; g < p.group; ++g) misses = misses || plan.misses[g];
  on = on && misses;
  __syncthreads();
  if (threadIdx.x == 0) {
    plan.widens = on;
    plan.bucket_before = plan.token_bucket;
    for (int g = 0; g < p.group; ++g) plan.misses[g] = false;
    if (!on) write_counts(p, row, 0, 0, 0);
  }
  __syncthreads();
  return on;
}

// Grid: (num_kv_heads, sets). kThreads: kChoiceThreads.
// Leaves: the row's plan, and where each tile of the scan lists its tokens; counts.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1) choose_tokens_kernel(const __grid_constant__ StepParams p) {
  static_assert(kThreads == kChoiceThreads);
  QUORUM_SHARED(ChoiceShared, s);
  const int row = int(blockIdx.y) * p.shape.num_kv_heads + int(blockIdx.x), group = p.group;
  let_next_kernel_start();
  wait_for_previous_kernel();
  RowPlan& plan = p.workspace.plan[row];
  if (p.first_path(row) != DecodePath::sparse_tokens || !goes_on(p, row, plan)) return;
  const TokenChoice choice{p, s, plan, {p.workspace.token_histogram + int64_t(row) * (group + 1) * kNumKeyBuckets}, row, group};
  if (p.round > 0 && p.round == p.dense_round) {
    if (threadIdx.x == 0) {
      start_plan(p, row, DecodePath::dense_by_policy, plan);
      write_counts(p, row, plan.num_listed, 0, 0);
    }
    return;
  }
  choice.choose();
  const DecodePath path = choice.path();
  choice.place_tiles();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (is_dense(path)) {
    start_plan(p, row, path, plan);
    write_counts(p, row, plan.num_listed, 0, 0);
    return;
  }
  plan.first_listed = p.round == 0 ? 0 : plan.num_listed;
  plan.num_listed += s.num_tokens;
  plan.complete = plan.num_listed == plan.num_always + p.head(row).num_indexed;
  if (p.round > 0 && p.options.target_error == 0.0f) ++plan.num_rounds;
  const bool has_tail = !plan.complete && (p.options.tail != Tail::drop || p.surveys());
  if (!has_tail) plan.num_tail = 0;
  write_counts(p, row, plan.num_listed - plan.first_listed, plan.num_tail, 0);
}

}  // namespace quorum::cuda
