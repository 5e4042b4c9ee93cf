// Building an index on the device, from keys and values that lie there: clusters, their bytes, residual codes (algorithm.md section 8).
#pragma once

#include "quorum/cuda/build_layout.cuh"
#include "quorum/cuda/cluster_index.cuh"
#include "quorum/cuda/dispatch/shape.cuh"
#include "quorum/cuda/kernel/assign_tokens_kernel.cuh"
#include "quorum/cuda/kernel/encode_clusters_kernel.cuh"
#include "quorum/cuda/kernel/encode_residuals_kernel.cuh"
#include "quorum/cuda/kernel/key_coordinates_kernel.cuh"
#include "quorum/cuda/kernel/publish_index_kernel.cuh"
#include "quorum/cuda/kernel/sort_tokens_kernel.cuh"
#include "quorum/cuda/kernel/turn_coordinates_kernel.cuh"
#include "quorum/cuda/kernel/update_centroids_kernel.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// The memory of build_bytes(), the caller's, each aligned to 256 bytes.
struct BuildMemory {
  std::byte* index = nullptr;
  std::byte* workspace = nullptr;
};

// Launches of a build, one after another on a stream; stops at the first error and keeps it.
class BuildLaunches {
 public:
  BuildLaunches(const BuildParams& params, cudaStream_t stream) : p_(params), stream_(stream) {}

  // Coordinates of the search and k-means. Post: cluster_tokens, cluster_indptr, size, spread; means.
  template <int kHeadDim>
  void cluster_keys() {
    const int segment_rows = std::min(p_.segment_tokens, p_.tokens.count);
    const dim3 of_slots = grid(ceil_div(p_.segment(0).num_slots, kUpdateSlots), p_.num_segments);
    const dim3 of_rows = grid(ceil_div(segment_rows, kAssignRows<kHeadDim>), p_.num_segments);
    const int64_t sort_shared = sort_shared_bytes(p_.segment(0).num_slots);
    allow_shared(sort_tokens_kernel<kSortThreads>, sort_shared);
    run(sum_keys_kernel<kHeadDim>, grid(p_.key_tiles()), kWarpSize);
    run(prepare_coordinates_kernel<kHeadDim>, grid(kHeadDim / 16), kBuildThreads);
    run(key_coordinates_kernel<kHeadDim>, grid(p_.row_tiles()), kBuildThreads);
    run(seed_centroids_kernel<kHeadDim>, of_slots, kBuildThreads);
    for (p_.round = 0; p_.round <= p_.iterations; ++p_.round) {
      run(assign_tokens_kernel<kHeadDim>, of_rows, kAssignThreads);
      run(sort_tokens_kernel<kSortThreads>, grid(p_.num_segments), kSortThreads, sort_shared);
      if (p_.round < p_.iterations) run(update_centroids_kernel<kHeadDim>, of_slots, kBuildThreads);
    }
    run(describe_clusters_kernel<kHeadDim>, of_slots, kBuildThreads);
  }

  // What decoding reads of the clusters, in the coordinates of the index.
  template <int kHeadDim>
  void encode_clusters() {
    allow_shared(turn_coordinates_kernel<kHeadDim>, kTurnSharedBytes<kHeadDim>);
    run(residual_moment_kernel<kHeadDim>, grid(kHeadDim / kMomentTile, kHeadDim / kMomentTile), kBuildThreads);
    run(turn_coordinates_kernel<kHeadDim>, grid(1), kJacobiThreads, kTurnSharedBytes<kHeadDim>);
    run(finish_metric_kernel<kHeadDim>, grid(kHeadDim / 16), kBuildThreads);
    run(encode_centroids_kernel<kHeadDim>, grid(p_.num_slots / kClusterBlock), kBuildThreads);
    run(mean_values_kernel<kHeadDim>, grid(ceil_div(p_.num_slots, kBuildThreads / kWarpSize)), kBuildThreads);
    if (!p_.residual_codes()) return;
    run(count_code_blocks_kernel<kBuildThreads>, grid(1), kBuildThreads);
    run(encode_residuals_kernel<kHeadDim>, grid(p_.max_code_blocks), kBuildThreads);
  }

  void publish() { run(publish_index_kernel<kBuildThreads>, grid(1), kBuildThreads); }

  cudaError_t status() const { return status_; }

 private:
  dim3 grid(int64_t x, int64_t y = 1) const { return dim3(unsigned(x), unsigned(y), unsigned(p_.num_kv_heads)); }

  void run(void (*kernel)(BuildParams), dim3 grid, int threads, int64_t dynamic_shared = 0) {
    if (status_ == cudaSuccess) status_ = launch(LaunchConfig{grid, threads, dynamic_shared, stream_}, kernel, p_);
  }
  void allow_shared(void (*kernel)(BuildParams), int64_t bytes) {
    if (status_ == cudaSuccess && bytes > 0) status_ = allow_dynamic_shared(kernel, bytes);
  }

  BuildParams p_;
  cudaStream_t stream_;
  cudaError_t status_ = cudaSuccess;
};

// Indexes the first kv.num_tokens tokens of a sequence but sinks and window, as ClusterIndex::build does on the host.
//
// Method: algorithm.md eq. 3 and 4, k-means in int8 on tensor cores; section 8 says where it differs from the CPU's. Shapes: kv rows
// [num_kv_heads][head_dim], f16, bf16 or fp8_e4m3, aligned to 16 bytes. Memory: kv, metric and memory in device memory, kept by the caller;
// the workspace is free again once the stream has got there. Stream: enqueues 13 + 3 * options.iterations kernels, 2 more with residual
// codes, one alone where nothing is indexed; never waits or allocates; may be captured. Determinism: same input, same index. Post: the
// returned views [num_kv_heads], in memory.index, are valid once the stream has got there. Errors: Error(invalid_argument) naming argument,
// rule and value, before anything is enqueued; Error(cuda_failure). Cost: num_tokens * segment_tokens / cluster_size * head_dim
// multiply-adds of bytes a KV head and round, 2 * num_tokens * head_dim^2 of floats a KV head; memory: build_bytes().
inline const FlatHeadView* build_index(const AttentionShape& shape, const IndexOptions& options, const KvCacheView& kv,
                                       const MetricFactorView& metric, const BuildMemory& memory, cudaStream_t stream) {
  const char* function = "cuda::build_index";
  BuildParams p = plan_build(shape, options, kv.num_tokens);
  require(has_kernels(kv.type), function, "kv.type", kKvTypeRule, element_name(kv.type));
  validate(kv, shape.head_dim, function);
  require(kv.keys != nullptr || p.tokens.count == 0, function, "kv.keys", "not null", "null");
  require(kv.values != nullptr || p.tokens.count == 0, function, "kv.values", "not null", "null");
  require((metric.forward == nullptr) == (metric.inverse == nullptr), function, "metric.inverse", "given exactly with metric.forward",
          static_cast<const void*>(metric.inverse));
  const auto aligned = [](const std::byte* block) { return reinterpret_cast<uintptr_t>(block) % kDeviceAlignment == 0; };
  require(memory.index != nullptr && aligned(memory.index), function, "memory.index", "not null and aligned to 256 bytes",
          static_cast<const void*>(memory.index));
  require((memory.workspace != nullptr || p.tokens.count == 0) && aligned(memory.workspace), function, "memory.workspace",
          "not null and aligned to 256 bytes", static_cast<const void*>(memory.workspace));
  p.kv = kv;
  p.metric = metric;
  lay_out_index(memory.index, p);
  lay_out_build(memory.workspace, p);
  BuildLaunches launches(p, stream);
  if (p.tokens.count > 0)
    dispatch_shape(p.head_dim, 1, [&](auto head_dim, auto) {
      launches.cluster_keys<head_dim()>();
      launches.encode_clusters<head_dim()>();
      return 0;
    });
  launches.publish();
  check(launches.status(), function, "launch");
  return p.index.heads;
}

// The same in memory of its own. Stream: waits for it. Memory: the workspace is released before it returns.
inline ClusterIndex build_index(const AttentionShape& shape, const IndexOptions& options, const KvCacheView& kv,
                                const MetricFactorView& metric = {}, cudaStream_t stream = nullptr) {
  const BuildBytes bytes = build_bytes(shape, options, kv.num_tokens);
  DeviceBuffer index(bytes.index);
  const DeviceBuffer workspace(bytes.workspace);
  const FlatHeadView* heads = build_index(shape, options, kv, metric, {index.as<>(), workspace.as<>()}, stream);
  check(cudaStreamSynchronize(stream), "cuda::build_index", "cudaStreamSynchronize");
  return ClusterIndex(std::move(index), heads);
}

}  // namespace quorum::cuda
