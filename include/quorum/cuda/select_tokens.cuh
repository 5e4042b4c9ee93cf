// Second stage: which tokens are read, which clusters lend their value means, which tokens are drawn.
#pragma once

#include "quorum/cuda/kernel/select_tokens_kernel.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// Post: workspace.plan, tokens, tail_clusters and draws of every row. Determinism: the same for the same weights.
// Stream: enqueues one kernel, waits for nothing. Cost: reads the weights of scoring twice.
inline cudaError_t select_tokens(const StepParams& p, cudaStream_t stream) {
  const LaunchConfig config{dim3(unsigned(p.shape.num_kv_heads), unsigned(p.num_sequences)), kSelectThreads,
                            select_shared_bytes(p.shape.group_size(), p.max_slots), stream, true};
  return launch(config, select_tokens_kernel<kSelectThreads>, p);
}

inline cudaError_t prepare_select_tokens(const AttentionShape& shape, int max_slots) {
  return allow_dynamic_shared(select_tokens_kernel<kSelectThreads>, select_shared_bytes(shape.group_size(), max_slots));
}

}  // namespace quorum::cuda
