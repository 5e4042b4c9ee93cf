// A kernel of somebody else's program on quorum's pieces for CUDA; compiled, not run.
#include <quorum/cuda/support/device_buffer.cuh>
#include <quorum/cuda/support/launch.cuh>
#include <quorum/cuda/support/shared_memory.cuh>

namespace {

__global__ void reverse_kernel(int* values) {
  QUORUM_SHARED(int[32], copy);
  copy[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = copy[31 - threadIdx.x];
}

}  // namespace

void reverse(int* values) {
  const quorum::cuda::DeviceBuffer scratch(128);
  quorum::cuda::check(quorum::cuda::launch({.threads = 32}, reverse_kernel, values), "reverse", "launch");
}
