#include "quorum/cuda/block/score_block.cuh"

#include <doctest/doctest.h>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

constexpr int kHeadDim = 96, kBlocks = 3;

__global__ void dots_kernel(const __grid_constant__ SegmentView clusters, const int8_t* quantised, int32_t* dots) {
  const int lane = int(threadIdx.x);
  cuda::QueryFragment<kHeadDim> queries;
  for (int first = 0; first < kMaxGroupSize; first += 8) {
    queries.load(quantised, first);
    for (int block = 0; block < kBlocks; ++block) {
      cuda::CentroidFragment<kHeadDim> centroids;
      centroids.load(clusters, block);
      int32_t dot[4];
      cuda::int8_dots<kHeadDim>(centroids, queries, dot);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
          const int cluster = block * kClusterBlock + lane / 4 + 8 * i, head = first + lane % 4 * 2 + j;
          dots[cluster * kMaxGroupSize + head] = dot[2 * i + j];
          if (centroids.size[i] != clusters.size[cluster] || centroids.scale[i] != clusters.centroid_scale[cluster] ||
              centroids.spread[i] != clusters.spread[cluster])
            dots[cluster * kMaxGroupSize + head] = -1;
        }
    }
  }
}

TEST_CASE("score block: dot products of all clusters and heads are exact, extreme bytes too") {
  constexpr int kClusters = kBlocks * kClusterBlock;
  std::vector<uint8_t> centroids(size_t(kClusters) * kHeadDim);
  std::vector<int8_t> queries(size_t(kMaxGroupSize) * kHeadDim);
  for (size_t i = 0; i < centroids.size(); ++i) centroids[i] = uint8_t(i < 64 ? 255 : i * 131 % 256);
  for (size_t i = 0; i < queries.size(); ++i) queries[i] = int8_t(i < 32 ? -127 : int(i * 57 % 255) - 127);
  std::vector<float> of_cluster;
  for (int i = 0; i < kClusters; ++i) of_cluster.push_back(float(i) + 0.5f);
  const DeviceArray<uint8_t> bytes(centroids);
  const DeviceArray<int8_t> quantised(queries);
  const DeviceArray<float> scale(of_cluster), spread(std::vector<float>(of_cluster.rbegin(), of_cluster.rend())), size(of_cluster);
  const DeviceArray<int32_t> output(size_t(kClusters) * kMaxGroupSize);
  SegmentView clusters;
  clusters.centroids = bytes.data();
  clusters.centroid_scale = scale.data();
  clusters.spread = spread.data();
  clusters.size = size.data();
  REQUIRE(cuda::launch({.threads = 32}, dots_kernel, clusters, static_cast<const int8_t*>(quantised.data()), output.data()) == cudaSuccess);
  const std::vector<int32_t> dots = output.values();
  for (int cluster = 0; cluster < kClusters; ++cluster)
    for (int head = 0; head < kMaxGroupSize; ++head) {
      int32_t expected = 0;
      for (int c = 0; c < kHeadDim; ++c) {
        // [block][head_dim / 4][16][4], docs/layouts.md
        const size_t at = size_t(((cluster / 16 * (kHeadDim / 4) + c / 4) * 16 + cluster % 16) * 4 + c % 4);
        expected += int32_t(centroids[at]) * queries[size_t(head * kHeadDim + c)];
      }
      CHECK(dots[size_t(cluster * kMaxGroupSize + head)] == expected);
    }
}

}  // namespace
}  // namespace quorum::test
