// Launching a kernel: the one place where it happens, and where its error is seen.
#pragma once

#include <cuda_runtime_api.h>

#include "quorum/core/config.hpp"

namespace quorum::cuda {

// Where and how wide a kernel runs.
struct LaunchConfig {
  dim3 grid = {1, 1, 1};
  int threads = 0;             // of a block
  int64_t dynamic_shared = 0;  // bytes of a block
  cudaStream_t stream = nullptr;
  bool overlaps_previous = false;  // may start before the kernel before it has finished; then it calls wait_for_previous_kernel()
  int team = 1;                    // blocks, neighbours along x, that run together (BlockTeam); divides grid.x; 1 below 9.0
};

#if !defined(QUORUM_CUDA_EMULATION)

// Enqueues kernel(args...). Errors: what the runtime says of the launch; never waits. Allowed while a stream is captured.
template <class... Params, class... Args>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Params...), Args... args) {
  cudaLaunchConfig_t native = {};
  native.gridDim = config.grid;
  native.blockDim = dim3(unsigned(config.threads));
  native.dynamicSmemBytes = size_t(config.dynamic_shared);
  native.stream = config.stream;
  cudaLaunchAttribute attributes[2] = {};
  native.attrs = attributes;
  if (config.overlaps_previous) {
    cudaLaunchAttribute& overlap = attributes[native.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.team > 1) {
    cudaLaunchAttribute& team = attributes[native.numAttrs++];
    team.id = cudaLaunchAttributeClusterDimension;
    team.val.clusterDim.x = unsigned(config.team);
    team.val.clusterDim.y = team.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&native, kernel, Params(args)...);
}

#else

// The same on the host (tests).
template <class... Params, class... Args>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Params...), Args... args) {
  return emulation::launch_grid(reinterpret_cast<const void*>(kernel), config.grid, dim3(unsigned(config.threads)), config.team,
                                config.dynamic_shared, config.stream, [=] { kernel(Params(args)...); });
}

#endif

// Lets a kernel have `bytes` of dynamic shared memory. Once per kernel, when planning.
template <class... Params>
cudaError_t allow_dynamic_shared(void (*kernel)(Params...), int64_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}

}  // namespace quorum::cuda
