// First stage: the expected weight of every cluster and the exact weight of what is always read.
#pragma once

#include "quorum/cuda/dispatch/shape.cuh"
#include "quorum/cuda/kernel/score_clusters_kernel.cuh"
#include "quorum/cuda/kernel/transform_queries_kernel.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// Post: workspace.log_weight, cluster_weight and always_weight of every row that is not dense from the start.
// Stream: enqueues two kernels, waits for nothing. Cost: head_dim + 12 bytes a cluster, 2 head_dim^2 bytes a row.
inline cudaError_t score_clusters(const StepParams& p, cudaStream_t stream) {
  return dispatch_shape(p.shape.head_dim, p.group, [&](auto head_dim, auto head_tiles) {
    const dim3 rows(unsigned(p.shape.num_kv_heads), unsigned(p.sets()));
    const LaunchConfig transform{rows, kTransformThreads, int64_t(sizeof(QueryCoordinates<head_dim()>)), stream, true};
    const cudaError_t status = launch(transform, transform_queries_kernel<head_dim()>, p);
    if (status != cudaSuccess) return status;
    const LaunchConfig score{dim3(unsigned(p.score_tiles), rows.x, rows.y), kScoreThreads, 0, stream, true};
    return launch(score, score_clusters_kernel<head_dim(), head_tiles()>, p);
  });
}

// Once per shape, when planning: lets the kernels have their shared memory.
inline cudaError_t prepare_score_clusters(const AttentionShape& shape) {
  return dispatch_shape(shape.head_dim, 1, [](auto head_dim, auto) {
    return allow_dynamic_shared(transform_queries_kernel<head_dim()>, int64_t(sizeof(QueryCoordinates<head_dim()>)));
  });
}

}  // namespace quorum::cuda
