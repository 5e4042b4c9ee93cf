// The CUDA runtime's functions, as far as the library and its tests call them (runtime.cpp, stream.cpp), and how a kernel is launched.
//
// Device memory is malloc's, so that the address sanitizer sees its bounds, and is filled with bytes 0xff. Everything is done when it is
// enqueued, except on a stream that is captured: then it becomes a node of a graph, and what may not happen during a capture
// (allocation, waiting) is an error, as on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

namespace quorum::emulation {

// What the program asked of the runtime so far.
struct Counts {
  int64_t launches = 0;  // a graph's kernels count each time it is launched
  int64_t allocations = 0;
  int64_t waits = 0;  // of the host for the device
};
Counts& counts();

// What cudaDeviceGetAttribute says from now on: to plan as for another device.
void set_device_attribute(cudaDeviceAttr attribute, int value);

// Enqueues a launch of `body` once per thread, in teams of team_blocks. `kernel` identifies the kernel: how much dynamic shared memory it
// may have.
// Errors: the runtime's, for a configuration that the device cannot run. What a kernel does wrong is thrown (Failure).
cudaError_t launch_grid(const void* kernel, dim3 grid, dim3 block, int team_blocks, int64_t dynamic_shared_bytes, cudaStream_t stream,
                        std::function<void()> body);

}  // namespace quorum::emulation
