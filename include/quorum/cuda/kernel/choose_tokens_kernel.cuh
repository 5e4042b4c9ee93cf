// Fourth stage where tokens are chosen by code: how many are worth reading. One block a row.
#pragma once

#include "quorum/cuda/block/token_choice.cuh"
#include "quorum/cuda/kernel/select_tokens_kernel.cuh"

namespace quorum::cuda {

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
  if (plan.path != DecodePath::sparse_tokens) return;
  const TokenChoice choice{p, s, plan, {p.workspace.token_histogram + int64_t(row) * (group + 1) * kNumKeyBuckets}, row, group};
  choice.choose();
  const DecodePath path = choice.path();
  __syncthreads();
  if (is_dense(path)) {
    if (threadIdx.x == 0) {
      start_plan(p, row, path, plan);
      write_counts(p, row, plan.num_listed, 0, 0);
    }
    return;
  }
  choice.place_tiles();
  if (threadIdx.x == 0) {
    plan.num_listed = plan.num_always + s.num_tokens;
    plan.complete = s.num_tokens == p.head(row).num_indexed;
    write_counts(p, row, plan.num_listed, plan.complete ? 0 : plan.num_tail, 0);
  }
}

}  // namespace quorum::cuda
