#include "quorum/cuda/block/apply_map.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
__global__ void map_kernel(const float* rows, const float* map, float* mapped, float* largest) {
  QUORUM_SHARED(cuda::MappedRows<kHeadDim>, s);
  for (int i = int(threadIdx.x); i < 16 * kHeadDim; i += cuda::kBuildThreads) s.from[i / kHeadDim][i % kHeadDim] = rows[i];
  __syncthreads();
  cuda::apply_map<kHeadDim>(map, s);
  for (int i = int(threadIdx.x); i < 16 * kHeadDim; i += cuda::kBuildThreads) mapped[i] = s.to[i / kHeadDim][i % kHeadDim];
  for (int r = int(threadIdx.x) / 32; r < 16; r += cuda::kBuildThreads / 32) {
    const float most = cuda::largest_magnitude<kHeadDim>(s.to[r]);
    if (threadIdx.x % 32 == 0) largest[r] = most;
  }
}

template <int kHeadDim>
void check_map() {
  std::mt19937_64 random(kHeadDim);
  std::normal_distribution<float> normal;
  std::vector<float> rows(16 * kHeadDim), map(static_cast<size_t>(kHeadDim * kHeadDim));
  for (float& x : rows) x = normal(random);
  for (float& x : map) x = normal(random);
  const DeviceArray<float> from(rows), factors(map), to(rows.size()), most(16);
  REQUIRE(cuda::launch({.threads = cuda::kBuildThreads}, map_kernel<kHeadDim>, static_cast<const float*>(from.data()),
                       static_cast<const float*>(factors.data()), to.data(), most.data()) == cudaSuccess);
  const std::vector<float> mapped = to.values(), largest = most.values();
  for (size_t r = 0; r < 16; ++r) {
    double expected_largest = 0.0;
    int wrong = 0;
    for (size_t c = 0; c < kHeadDim; ++c) {
      double sum = 0.0;
      for (size_t i = 0; i < kHeadDim; ++i) sum += double(rows[r * kHeadDim + i]) * double(map[i * kHeadDim + c]);
      wrong += std::fabs(double(mapped[r * kHeadDim + c]) - sum) <= 1e-4 ? 0 : 1;
      expected_largest = std::max(expected_largest, std::fabs(sum));
    }
    CHECK(wrong == 0);
    CHECK(std::fabs(double(largest[r]) - expected_largest) <= 1e-4);
  }
}

TEST_CASE("map of 16 rows: every product is there, for every head_dim") {
  check_map<64>();
  check_map<96>();
  check_map<128>();
  check_map<256>();
}

}  // namespace
}  // namespace quorum::test
