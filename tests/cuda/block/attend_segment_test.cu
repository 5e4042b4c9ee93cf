#include "quorum/cuda/block/attend_segment.cuh"

#include <doctest/doctest.h>

#include <algorithm>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

TEST_CASE("attend segment: a warp's tiles are every step-th one of a part") {
  for (const int step : {1, 3, 4})
    for (const int last : {0, 1, 4, 11}) {
      std::vector<int> seen;
      for (int warp = 0; warp < step; ++warp) {
        const cuda::WarpTiles own{warp, last, step};
        for (int i = 0; i < own.count(); ++i) seen.push_back(own[i]);
      }
      std::sort(seen.begin(), seen.end());
      CHECK(int(seen.size()) == last);
      for (int tile = 0; tile < int(seen.size()); ++tile) CHECK(seen[size_t(tile)] == tile);
    }
}

constexpr int kHeadDim = 64;

// Values of one tile as they come to lie in shared memory, by way of registers and without.
__global__ void values_kernel(const __grid_constant__ SegmentView clusters, const int* list, bf16* results) {
  constexpr int kElements = cuda::kTileElements<bf16, kHeadDim>;
  QUORUM_SHARED(bf16[2 * kElements], tile);
  const int lane = int(threadIdx.x), cluster = list[lane % cuda::kTileTokens];
  cuda::TailTile<kHeadDim, 1> values;
  values.load_values(clusters, cluster);
  values.store_values(tile);
  cuda::TailTile<kHeadDim, 1>::copy_values(clusters, cluster, tile + kElements);
  __syncwarp();
  for (int i = lane; i < 2 * cuda::kTileTokens * kHeadDim; i += cuda::kWarpSize) {
    const int row = i / kHeadDim;  // rows of the second tile lie behind those of the first
    results[i] = tile[row * cuda::kTileStride<bf16, kHeadDim> + i % kHeadDim];
  }
}

TEST_CASE("attend segment: value means become bf16 without loss") {
  constexpr int kClusters = 20;
  std::vector<int8_t> means;
  for (int i = 0; i < kClusters * kHeadDim; ++i) means.push_back(int8_t(i * 37 % 255 - 127));
  std::vector<int> list;
  for (int i = 0; i < cuda::kTileTokens; ++i) list.push_back(i * 7 % kClusters);
  const DeviceArray<int8_t> bytes(means);
  const DeviceArray<int> on_device(list);
  const DeviceArray<bf16> output(2 * cuda::kTileTokens * kHeadDim);
  SegmentView clusters;
  clusters.value_means = bytes.data();
  REQUIRE(cuda::launch({.threads = 32}, values_kernel, clusters, static_cast<const int*>(on_device.data()), output.data()) == cudaSuccess);
  const std::vector<bf16> found = output.values();
  for (int i = 0; i < 2 * cuda::kTileTokens * kHeadDim; ++i) {
    const int place = i / kHeadDim % cuda::kTileTokens;
    CHECK(to_float(found[size_t(i)]) == float(means[size_t(list[size_t(place)] * kHeadDim + i % kHeadDim)]));
  }
}

}  // namespace
}  // namespace quorum::test
