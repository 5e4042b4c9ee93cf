#include "quorum/cuda/support/launch.cuh"

#include <doctest/doctest.h>

#include <vector>

#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

using namespace quorum::cuda;
using quorum::test::DeviceArray;

namespace {

__global__ void count_kernel(int* count, int step) {
  int* shared = dynamic_shared<int>();
  shared[threadIdx.x] = step;
  __syncthreads();
  atomicAdd(count + blockIdx.y * gridDim.x + blockIdx.x, shared[blockDim.x - 1 - threadIdx.x]);
}

LaunchConfig config_of(int64_t dynamic_shared, cudaStream_t stream = nullptr) {
  return {.grid = {3, 2, 1}, .threads = 40, .dynamic_shared = dynamic_shared, .stream = stream};
}

}  // namespace

TEST_CASE("every thread of every block runs once") {
  const DeviceArray<int> count(std::vector<int>(6));
  REQUIRE(launch(config_of(160), count_kernel, count.data(), 7) == cudaSuccess);
  CHECK(count.values() == std::vector<int>(6, 280));
}

TEST_CASE("a launch says what is wrong with it") {
  const DeviceArray<int> count(std::vector<int>(6));
  CHECK(launch({.threads = 2000}, count_kernel, count.data(), 1) != cudaSuccess);
  CHECK(launch({.grid = {0, 1, 1}, .threads = 32}, count_kernel, count.data(), 1) != cudaSuccess);
  CHECK(cudaGetLastError() != cudaSuccess);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(count.values() == std::vector<int>(6, 0));
}

TEST_CASE("more than 48 KiB of dynamic shared memory must be allowed first") {
  const DeviceArray<int> count(std::vector<int>(6));
  CHECK(launch(config_of(64 << 10), count_kernel, count.data(), 1) == cudaErrorInvalidValue);
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  REQUIRE(allow_dynamic_shared(count_kernel, 64 << 10) == cudaSuccess);
  CHECK(launch(config_of(64 << 10), count_kernel, count.data(), 1) == cudaSuccess);
  CHECK(count.values() == std::vector<int>(6, 40));
  CHECK(allow_dynamic_shared(count_kernel, 1 << 20) == cudaErrorInvalidValue);
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
}

TEST_CASE("launches are captured in a graph and replayed") {
  const DeviceArray<int> count(std::vector<int>(6));
  cudaStream_t stream;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(launch(config_of(160, stream), count_kernel, count.data(), 1) == cudaSuccess);
  CHECK(launch(config_of(160, stream), count_kernel, count.data(), 2) == cudaSuccess);
  cudaGraph_t graph;
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(count.values() == std::vector<int>(6, 0));
  cudaGraphExec_t executable;
  REQUIRE(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess);
  for (int replay = 1; replay <= 2; ++replay) {
    REQUIRE(cudaGraphLaunch(executable, stream) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(count.values() == std::vector<int>(6, 120 * replay));
  }
  CHECK(cudaGraphExecDestroy(executable) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("waiting spoils a capture") {
  cudaStream_t stream;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  cudaGetLastError();
}
