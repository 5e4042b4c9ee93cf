#include "quorum/cuda/support/shared_memory.cuh"

#include <doctest/doctest.h>

#include <vector>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

using namespace quorum::cuda;
using quorum::test::DeviceArray;

namespace {

struct Sums {
  int blocks, threads;
};

// Every block writes its own number into both kinds of shared memory and reads it through another thread.
__global__ void shared_kernel(int* output) {
  QUORUM_SHARED(int[64], values);
  QUORUM_SHARED(Sums, sums);
  int* dynamic = dynamic_shared<int>();
  const int thread = int(threadIdx.x), block = int(blockIdx.x), other = 63 - thread;
  values[thread] = block * 64 + thread;
  dynamic[thread] = thread;
  if (thread == 0) sums = {block, 64};
  __syncthreads();
  output[block * 64 + thread] = values[other] + 1000 * dynamic[other] + (sums.blocks == block && sums.threads == 64 ? 0 : 1000000);
}

__global__ void alignment_kernel(unsigned* remainder) {
  *remainder = unsigned(reinterpret_cast<unsigned long long>(dynamic_shared<char>()) % 128);
}

}  // namespace

TEST_CASE("each block has its own shared memory") {
  const DeviceArray<int> output(3 * 64);
  REQUIRE(launch({.grid = {3, 1, 1}, .threads = 64, .dynamic_shared = 64 * 4}, shared_kernel, output.data()) == cudaSuccess);
  const std::vector<int> values = output.values();
  for (int block = 0; block < 3; ++block) {
    for (int thread = 0; thread < 64; ++thread) {
      CHECK(values[size_t(block * 64 + thread)] == block * 64 + (63 - thread) + 1000 * (63 - thread));
    }
  }
}

TEST_CASE("dynamic shared memory is aligned to 128 bytes") {
  const DeviceArray<unsigned> remainder(1);
  REQUIRE(launch({.threads = 1, .dynamic_shared = 1}, alignment_kernel, remainder.data()) == cudaSuccess);
  CHECK(remainder.values()[0] == 0);
}
