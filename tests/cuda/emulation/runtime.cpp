#include "tests/cuda/emulation/runtime.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "tests/cuda/emulation/scheduler.hpp"
#include "tests/cuda/emulation/stream.hpp"

namespace quorum::emulation {
namespace {

constexpr int kDefaultDynamicShared = 48 << 10;

// A small device of compute capability 9.0: few multiprocessors, so that grids that fill the device stay small.
std::map<cudaDeviceAttr, int>& device_attributes() {
  static std::map<cudaDeviceAttr, int> result = {
      {cudaDevAttrMultiProcessorCount, 4},
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
      {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
      {cudaDevAttrMaxSharedMemoryPerBlock, kDefaultDynamicShared},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
      {cudaDevAttrReservedSharedMemoryPerBlock, 1 << 10},
      {cudaDevAttrMaxGridDimX, 2147483647},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrL2CacheSize, 50 << 20},
      {cudaDevAttrMemoryPoolsSupported, 1},
      {cudaDevAttrClusterLaunch, 1},
  };
  return result;
}

// What cudaFuncSetAttribute gave a kernel.
std::map<const void*, int>& dynamic_shared_limits() {
  static std::map<const void*, int> result;
  return result;
}

cudaError_t allocate(void** memory, size_t bytes) {
  ++counts().allocations;
  *memory = nullptr;
  if (capturing()) return spoil_capture();
  if (bytes == 0) return cudaSuccess;
  if (posix_memalign(memory, 256, bytes) != 0) return remember(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}

cudaError_t deallocate(void* memory) {
  if (capturing()) return spoil_capture();
  std::free(memory);
  return cudaSuccess;
}

bool runnable(dim3 grid, dim3 block) {
  const auto& limits = device_attributes();
  const unsigned threads = block.x * block.y * block.z;
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= unsigned(limits.at(cudaDevAttrMaxGridDimX)) &&
         grid.y <= unsigned(limits.at(cudaDevAttrMaxGridDimY)) && grid.z <= unsigned(limits.at(cudaDevAttrMaxGridDimZ)) && threads > 0 &&
         threads <= unsigned(limits.at(cudaDevAttrMaxThreadsPerBlock));
}

}  // namespace

void set_device_attribute(cudaDeviceAttr attribute, int value) { device_attributes()[attribute] = value; }

cudaError_t launch_grid(const void* kernel, dim3 grid, dim3 block, int team_blocks, int64_t dynamic_shared_bytes, cudaStream_t stream,
                        std::function<void()> body) {
  if (stream == nullptr && capturing()) return spoil_capture();
  if (!runnable(grid, block)) return remember(cudaErrorInvalidConfiguration);
  if (team_blocks < 1 || team_blocks > int(kMaxTeamBlocks) || grid.x % unsigned(team_blocks) != 0 ||
      (team_blocks > 1 && device_attributes().at(cudaDevAttrClusterLaunch) == 0)) {
    return remember(cudaErrorInvalidClusterSize);
  }
  const auto limit = dynamic_shared_limits().find(kernel);
  const int64_t allowed = std::max(limit != dynamic_shared_limits().end() ? limit->second : 0, kDefaultDynamicShared);
  if (dynamic_shared_bytes < 0 || dynamic_shared_bytes > allowed) return remember(cudaErrorInvalidValue);
  enqueue(stream, [=, body = std::move(body)] {
    ++counts().launches;
    run_grid(grid, block, unsigned(team_blocks), size_t(dynamic_shared_bytes), body);
  });
  return cudaSuccess;
}

}  // namespace quorum::emulation

namespace emulation = quorum::emulation;

extern "C" {

const char* cudaGetErrorName(cudaError_t status) { return status == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidClusterSize:
      return "cluster misconfiguration";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return "unknown error";
  }
}

cudaError_t cudaMalloc(void** memory, size_t bytes) { return emulation::allocate(memory, bytes); }
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) { return emulation::allocate(memory, bytes); }
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return emulation::allocate(memory, bytes); }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return emulation::allocate(memory, bytes); }
cudaError_t cudaFree(void* memory) { return emulation::deallocate(memory); }
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return emulation::deallocate(memory); }
cudaError_t cudaFreeHost(void* memory) { return emulation::deallocate(memory); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  emulation::enqueue(stream, [=] {
    if (bytes > 0) std::memmove(to, from, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  ++emulation::counts().waits;
  if (emulation::capturing()) return emulation::spoil_capture();
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  emulation::enqueue(stream, [=] {
    if (bytes > 0) std::memset(memory, value, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (emulation::capturing()) return emulation::spoil_capture();
  return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : emulation::remember(cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const auto& attributes = emulation::device_attributes();
  const auto found = attributes.find(attribute);
  if (device != 0 || found == attributes.end()) return emulation::remember(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > emulation::device_attributes().at(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return emulation::remember(cudaErrorInvalidValue);
  emulation::dynamic_shared_limits()[kernel] = value;
  return cudaSuccess;
}

// By threads and dynamic shared memory alone: registers are not known here.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t dynamic_shared_bytes) {
  const auto& limits = emulation::device_attributes();
  const int64_t shared = int64_t(dynamic_shared_bytes) + limits.at(cudaDevAttrReservedSharedMemoryPerBlock);
  const int64_t by_threads = limits.at(cudaDevAttrMaxThreadsPerMultiProcessor) / std::max(threads, 1);
  const int64_t by_shared = limits.at(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / shared;
  *blocks = int(std::min({by_threads, by_shared, int64_t(limits.at(cudaDevAttrMaxBlocksPerMultiprocessor))}));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* kernel, int threads, size_t bytes, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, bytes);
}

}  // extern "C"
