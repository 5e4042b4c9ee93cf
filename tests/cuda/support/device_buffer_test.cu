#include "quorum/cuda/support/device_buffer.cuh"

#include <doctest/doctest.h>

#include <string>
#include <utility>

using namespace quorum::cuda;

TEST_CASE("a buffer owns its memory and moves") {
  DeviceBuffer buffer(24);
  CHECK(buffer.bytes() == 24);
  REQUIRE(buffer.as<int>() != nullptr);
  const int values[6] = {1, 2, 3, 4, 5, 6};
  int read[6] = {};
  CHECK(cudaMemcpy(buffer.as<int>(), values, sizeof values, cudaMemcpyHostToDevice) == cudaSuccess);
  DeviceBuffer moved(std::move(buffer));
  DeviceBuffer assigned;
  assigned = std::move(moved);
  CHECK(cudaMemcpy(read, assigned.as<int>(), sizeof read, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(read[5] == 6);
  CHECK(assigned.bytes() == 24);
}

TEST_CASE("an empty buffer has no memory") {
  CHECK(DeviceBuffer().as<>() == nullptr);
  CHECK(DeviceBuffer(0).as<>() == nullptr);
}

TEST_CASE("a call that failed is named") {
  CHECK_NOTHROW(check(cudaSuccess, "plan", "cudaMalloc"));
  std::string message;
  try {
    check(cudaErrorInvalidValue, "plan", "cudaMalloc");
  } catch (const quorum::Error& error) {
    message = error.what();
    CHECK(error.code() == quorum::ErrorCode::cuda_failure);
  }
  CHECK(message == "plan: cudaMalloc must succeed, got invalid argument");
}
