// First stage: the expected weight of every cluster and the exact weight of what is always read.
#pragma once

#include "quorum/cuda/dispatch/shape.cuh"
#include "quorum/cuda/kernel/score_clusters_kernel.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// Post: workspace.log_weight, cluster_weight and always_weight of every row that is not dense from the start.
// Stream: enqueues one kernel, waits for nothing. Cost: head_dim + 12 bytes a cluster, 2 head_dim^2 bytes a block.
inline cudaError_t score_clusters(const StepParams& p, cudaStream_t stream) {
  return dispatch_shape(p.shape, [&](auto head_dim, auto head_tiles) {
    const LaunchConfig config{dim3(unsigned(p.score_tiles), unsigned(p.shape.num_kv_heads), unsigned(p.num_sequences)), kScoreThreads,
                              int64_t(sizeof(ScoreShared<head_dim()>)), stream, false};
    return launch(config, score_clusters_kernel<head_dim(), head_tiles()>, p);
  });
}

// Once per shape, when planning: lets the kernel have its shared memory.
inline cudaError_t prepare_score_clusters(const AttentionShape& shape) {
  return dispatch_shape(shape, [](auto head_dim, auto head_tiles) {
    return allow_dynamic_shared(score_clusters_kernel<head_dim(), head_tiles()>, int64_t(sizeof(ScoreShared<head_dim()>)));
  });
}

}  // namespace quorum::cuda
