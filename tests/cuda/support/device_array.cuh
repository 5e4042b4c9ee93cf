// Arrays on the device for tests: made from a std::vector, read back as one.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "quorum/cuda/support/device_buffer.cuh"

namespace quorum::test {

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count), memory_(int64_t(count * sizeof(T))) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    cuda::check(cudaMemcpy(data(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "DeviceArray", "cudaMemcpy");
  }

  T* data() const { return memory_.as<T>(); }
  size_t size() const { return count_; }
  // Waits for the device first.
  std::vector<T> values() const {
    cuda::check(cudaDeviceSynchronize(), "DeviceArray", "cudaDeviceSynchronize");
    std::vector<T> result(count_);
    cuda::check(cudaMemcpy(result.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost), "DeviceArray", "cudaMemcpy");
    return result;
  }

 private:
  size_t count_;
  cuda::DeviceBuffer memory_;
};

}  // namespace quorum::test
