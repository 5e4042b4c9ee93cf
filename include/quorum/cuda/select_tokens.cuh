// Second stage: which tokens are read, which clusters lend their value means, which tokens are drawn.
#pragma once

#include "quorum/cuda/kernel/select_tokens_kernel.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// Calls run(kernel) with the kernel for a number of columns.
template <class Run>
cudaError_t dispatch_select(int group, Run&& run) {
  return group <= 4 ? run(select_tokens_kernel<4>) : group <= 8 ? run(select_tokens_kernel<8>) : run(select_tokens_kernel<16>);
}

// Post: workspace.plan, tokens, tail_clusters and draws of every row. Determinism: the same for the same weights.
// Stream: enqueues one kernel, waits for nothing. Cost: reads the weights of scoring twice.
inline cudaError_t select_tokens(const StepParams& p, cudaStream_t stream) {
  return dispatch_select(p.group, [&](auto kernel) {
    const dim3 grid(unsigned(p.select_blocks), unsigned(p.shape.num_kv_heads), unsigned(p.sets()));
    const int64_t shared = select_shared_bytes(p.group, p.max_slots, p.select_blocks);
    return launch({grid, kSelectThreads, shared, stream, true, p.select_blocks}, kernel, p);
  });
}

// Once per number of columns, when planning: lets the kernel have its shared memory. least_blocks: fewest a row.
inline cudaError_t prepare_select_tokens(int group, int max_slots, int least_blocks) {
  return dispatch_select(group,
                         [&](auto kernel) { return allow_dynamic_shared(kernel, select_shared_bytes(group, max_slots, least_blocks)); });
}

}  // namespace quorum::cuda
