// Before the first stage: the queries of every row in the coordinates of its index (algorithm.md eq. 3 and 4). A kernel of its own, because
// every block of scoring would repeat it.
#pragma once

#include "quorum/cuda/block/query_coordinates.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kTransformThreads = 256;

// Grid: (num_kv_heads, sets). Shared: QueryCoordinates.
template <int kHeadDim>
__global__ void __launch_bounds__(kTransformThreads) transform_queries_kernel(const __grid_constant__ StepParams p) {
  auto& s = *dynamic_shared<QueryCoordinates<kHeadDim>>();
  const int row = int(blockIdx.y) * p.shape.num_kv_heads + int(blockIdx.x);
  let_next_kernel_start();
  wait_for_previous_kernel();
  if (is_dense(p.first_path(row))) return;
  prepare_queries<kHeadDim>(p, row, p.head(row).metric, s);
  const int64_t at = int64_t(row) * kMaxGroupSize;
  const auto* bytes = reinterpret_cast<const uint32_t*>(s.quantised);
  auto* quantised = reinterpret_cast<uint32_t*>(p.workspace.quantised + at * kHeadDim);
  for (int i = int(threadIdx.x); i < kMaxGroupSize * kHeadDim / 4; i += kTransformThreads) quantised[i] = bytes[i];
  for (int i = int(threadIdx.x); i < p.group * kHeadDim; i += kTransformThreads)
    p.workspace.scaled_queries[at * kHeadDim + i] = s.query[i / kHeadDim][i % kHeadDim];
  if (int(threadIdx.x) < p.group) p.workspace.constants[at + threadIdx.x] = s.constants[threadIdx.x];
}

}  // namespace quorum::cuda
