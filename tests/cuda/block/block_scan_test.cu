#include "quorum/cuda/block/block_scan.cuh"

#include <doctest/doctest.h>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

constexpr int kThreads = 96;

struct Scan {
  int before, total;
  unsigned long long wide_before, wide_total;
};

__global__ void scan_kernel(const int* values, Scan* results) {
  QUORUM_SHARED(unsigned long long[kThreads / cuda::kWarpSize], warp_sums);
  QUORUM_SHARED(int[kThreads / cuda::kWarpSize], narrow_sums);
  Scan own;
  const int value = values[threadIdx.x];
  own.before = cuda::block_exclusive_sum<kThreads>(value, own.total, narrow_sums);
  // The same memory twice in a row.
  own.wide_before = cuda::block_exclusive_sum<kThreads>(static_cast<unsigned long long>(value) << 33, own.wide_total, warp_sums);
  unsigned long long again = 0;
  own.wide_before += cuda::block_exclusive_sum<kThreads>(1ull, again, warp_sums);
  results[threadIdx.x] = own;
}

TEST_CASE("block scan: sums before each thread and of all, in 32 and 64 bits") {
  std::vector<int> values;
  for (int i = 0; i < kThreads; ++i) values.push_back(i * 37 % 101);
  const DeviceArray<int> input(values);
  const DeviceArray<Scan> output(kThreads);
  REQUIRE(cuda::launch({.threads = kThreads}, scan_kernel, static_cast<const int*>(input.data()), output.data()) == cudaSuccess);
  int before = 0, total = 0;
  for (const int value : values) total += value;
  const std::vector<Scan> results = output.values();
  for (int i = 0; i < kThreads; ++i) {
    CAPTURE(i);
    CHECK(results[size_t(i)].before == before);
    CHECK(results[size_t(i)].total == total);
    CHECK(results[size_t(i)].wide_before == (static_cast<unsigned long long>(before) << 33) + static_cast<unsigned long long>(i));
    CHECK(results[size_t(i)].wide_total == static_cast<unsigned long long>(total) << 33);
    before += values[size_t(i)];
  }
}

}  // namespace
}  // namespace quorum::test
