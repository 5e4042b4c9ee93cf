// Third stage and merge: attention over the lists of all rows, whatever made them.
#pragma once

#include "quorum/cuda/dispatch/shape.cuh"
#include "quorum/cuda/dispatch/tuning.cuh"
#include "quorum/cuda/kernel/merge_kernel.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// Calls run(kernel, policy, shared bytes) with the attend kernel for a shape, an element type and a device.
template <class Run>
cudaError_t dispatch_attend(int dim, int group, ElementType type, const DeviceTuning& device, int num_rows, Run&& run) {
  return dispatch_shape(dim, group, [&](auto head_dim, auto head_tiles) {
    return dispatch_element(type, [&](auto element) {
      using T = decltype(element);
      using Large = LargeSharedMemory::Attend<T, head_dim(), head_tiles()>;
      using Small = SmallSharedMemory::Attend<T, head_dim(), head_tiles()>;
      if (device.large_shared_memory)
        return run(attend_kernel<T, head_dim(), head_tiles(), Large>, Large(),
                   attend_shared_bytes<T, head_dim(), head_tiles(), Large>(num_rows));
      return run(attend_kernel<T, head_dim(), head_tiles(), Small>, Small(),
                 attend_shared_bytes<T, head_dim(), head_tiles(), Small>(num_rows));
    });
  });
}

// Post: out and reports, from workspace.plan and its lists. Stream: enqueues two kernels, waits for nothing.
// Cost: keys and values of the listed tokens, value means of the tail, keys of the draws.
inline cudaError_t sparse_attention(const StepParams& p, const DeviceTuning& device, cudaStream_t stream) {
  const cudaError_t status =
      dispatch_attend(p.shape.head_dim, p.group, p.kv.type, device, p.num_rows(), [&](auto kernel, auto policy, int64_t shared) {
        const LaunchConfig config{dim3(unsigned(p.attend_blocks)), decltype(policy)::kThreads, shared, stream, true};
        return launch(config, kernel, p);
      });
  if (status != cudaSuccess) return status;
  const LaunchConfig config{dim3(unsigned(p.group), unsigned(p.num_rows())), kMergeThreads, 0, stream, true};
  return launch(config, merge_kernel<kMergeThreads>, p);
}

inline cudaError_t prepare_sparse_attention(int head_dim, int group, ElementType type, const DeviceTuning& device, int max_rows) {
  return dispatch_attend(head_dim, group, type, device, max_rows,
                         [&](auto kernel, auto, int64_t shared) { return allow_dynamic_shared(kernel, shared); });
}

}  // namespace quorum::cuda
