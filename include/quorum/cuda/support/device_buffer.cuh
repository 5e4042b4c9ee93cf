// Memory on the device, owned.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "quorum/core/error.hpp"

namespace quorum::cuda {

// What cudaMalloc aligns to at least.
inline constexpr int64_t kDeviceAlignment = 256;

// Errors: Error(cuda_failure) with the call's name and what the runtime says.
inline void check(cudaError_t status, const char* function, const char* call) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::cuda_failure, std::string(function) + ": " + call + " must succeed, got " + cudaGetErrorString(status));
}

// Device memory of a fixed size, from cudaMalloc.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(int64_t bytes) : bytes_(bytes) {
    if (bytes > 0) check(cudaMalloc(&data_, size_t(bytes)), "DeviceBuffer", "cudaMalloc");
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) cudaFree(data_);
  }

  template <class T = std::byte>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace quorum::cuda
