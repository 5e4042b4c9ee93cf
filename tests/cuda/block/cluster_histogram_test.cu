#include "quorum/cuda/block/cluster_histogram.cuh"

#include <doctest/doctest.h>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

__global__ void find_kernel(const uint32_t* sums, const uint32_t* wanted, int count, cuda::OrderPlace* places) {
  QUORUM_SHARED(uint32_t[kNumOrderBuckets], column);
  for (int i = int(threadIdx.x); i < kNumOrderBuckets; i += cuda::kWarpSize) column[i] = sums[i];
  __syncwarp();
  for (int i = 0; i < count; ++i) {
    const cuda::OrderPlace place = cuda::find_place(column, wanted[i]);
    if (threadIdx.x == 0) places[i] = place;
  }
}

TEST_CASE("cluster histogram: the bucket in which a sum is reached, and what lies before it") {
  std::vector<uint32_t> sums(kNumOrderBuckets, 0);
  for (const int bucket : {0, 1, 31, 32, 500, 1022}) sums[size_t(bucket)] = uint32_t(bucket) + 5;
  std::vector<uint32_t> wanted{1, 5, 6, 11, 12, 47, 48, 84, 85, 589, 590, 1616, 1617, 0xffffffffu};
  const DeviceArray<uint32_t> column(sums), values(wanted);
  const DeviceArray<cuda::OrderPlace> output(wanted.size());
  REQUIRE(cuda::launch({.threads = 32}, find_kernel, static_cast<const uint32_t*>(column.data()),
                       static_cast<const uint32_t*>(values.data()), int(wanted.size()), output.data()) == cudaSuccess);
  const std::vector<cuda::OrderPlace> places = output.values();
  for (size_t i = 0; i < wanted.size(); ++i) {
    CAPTURE(wanted[i]);
    uint32_t before = 0;
    int bucket = 0;
    while (bucket < kNumOrderBuckets && before + sums[size_t(bucket)] < wanted[i]) before += sums[size_t(bucket++)];
    CHECK(places[i].bucket == bucket);
    CHECK(places[i].before == before);
  }
}

TEST_CASE("cluster histogram: a column for each head and one for tokens") {
  CHECK(cuda::ClusterHistogram::bytes(4) == 5 * kNumOrderBuckets * 4);
}

}  // namespace
}  // namespace quorum::test
