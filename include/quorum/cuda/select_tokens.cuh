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
    const LaunchConfig config{dim3(unsigned(p.shape.num_kv_heads), unsigned(p.sets())), kSelectThreads,
                              select_shared_bytes(p.group, p.max_slots), stream, true};
    return launch(config, kernel, p);
  });
}

inline cudaError_t prepare_select_tokens(int group, int max_slots) {
  return dispatch_select(group, [&](auto kernel) { return allow_dynamic_shared(kernel, select_shared_bytes(group, max_slots)); });
}

}  // namespace quorum::cuda
