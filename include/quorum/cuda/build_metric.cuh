// The query metric of an index from queries that lie on the device.
#pragma once

#include "quorum/core/options.hpp"
#include "quorum/core/supports.hpp"
#include "quorum/cuda/dispatch/shape.cuh"
#include "quorum/cuda/kernel/query_metric_kernel.cuh"
#include "quorum/cuda/support/device_buffer.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// Device memory of a metric, in bytes.
constexpr int64_t metric_bytes(const AttentionShape& shape) {
  return 2 * int64_t(sizeof(float)) * shape.num_kv_heads * shape.head_dim * shape.head_dim;
}

// Factors of the query metric of every KV head, as build_index() takes them; metric_factors() does the same on the host.
//
// Shapes: prompt_queries rows [num_qo_heads][head_dim], f32, f16 or bf16, aligned to 16 bytes, a sample of the prompt's own queries after
// RoPE: every 32nd is plenty; without any, plain L2. Memory: prompt_queries and metric_bytes() bytes at `memory`, aligned to 256, in device
// memory, kept by the caller until the index is built. Stream: enqueues two kernels; never waits or allocates; may be captured.
// Determinism: same queries, same factors. Errors: Error(invalid_argument) before anything is enqueued; Error(cuda_failure). Cost: num_rows
// * group_size * head_dim^2 multiply-adds a KV head, and sweeps of rotations by a block each.
inline MetricFactorView build_metric(const AttentionShape& shape, const IndexOptions& options, const QueryView& prompt_queries,
                                     std::byte* memory, cudaStream_t stream) {
  const char* function = "cuda::build_metric";
  validate(shape, function);
  validate(options, function);
  require(has_kernels(shape.head_dim), function, "shape.head_dim", "64, 96, 128 or 256", shape.head_dim);
  require(prompt_queries.num_rows >= 0, function, "prompt_queries.num_rows", "at least 0", prompt_queries.num_rows);
  require(prompt_queries.data != nullptr || prompt_queries.num_rows == 0, function, "prompt_queries.data", "not null", "null");
  require(takes_queries(prompt_queries.type), function, "prompt_queries.type", "f32, f16 or bf16", element_name(prompt_queries.type));
  require(memory != nullptr && reinterpret_cast<uintptr_t>(memory) % kDeviceAlignment == 0, function, "memory",
          "not null and aligned to 256 bytes", static_cast<const void*>(memory));
  MetricParams p{prompt_queries, shape.num_kv_heads, shape.group_size(), shape.head_dim, options.metric_shrinkage, nullptr, nullptr};
  p.forward = reinterpret_cast<float*>(memory);
  p.inverse = p.forward + int64_t(shape.num_kv_heads) * shape.head_dim * shape.head_dim;
  const cudaError_t status = dispatch_shape(shape.head_dim, 1, [&](auto head_dim, auto) {
    const auto heads = unsigned(p.num_kv_heads), tiles = unsigned(head_dim / kMetricTile);
    const cudaError_t first =
        launch({.grid = {tiles, tiles, heads}, .threads = kMomentThreads, .stream = stream}, query_moment_kernel<head_dim()>, p);
    if (first != cudaSuccess) return first;
    return launch({.grid = {1, 1, heads}, .threads = kJacobiThreads, .stream = stream}, factor_metric_kernel<head_dim()>, p);
  });
  check(status, function, "launch");
  return {p.forward, p.inverse};
}

}  // namespace quorum::cuda
