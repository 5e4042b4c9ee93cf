#include "quorum/cuda/block/nearest_centroids.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
__global__ void nearest_kernel(const __grid_constant__ cuda::BuildParams p, int num_tiles, float* best, int* cluster) {
  cuda::NearestCentroids<kHeadDim> nearest;
  const int lane = int(threadIdx.x);
  nearest.load(p.workspace.rows, p.workspace.constants);
  for (int block = 0; block < 2; ++block) {
    cuda::CentroidFragment<kHeadDim> words;
    words.load_words(p.index.centroids, block);
    float scale[2], half_norm[2];
    for (int i = 0; i < 2; ++i) {
      scale[i] = p.index.centroid_scale[block * 16 + i * 8 + lane / 4];
      half_norm[i] = p.workspace.half_norm[block * 16 + i * 8 + lane / 4];
    }
    nearest.compare(words, scale, half_norm, block * 16, num_tiles);
  }
  nearest.reduce();
  for (int t = 0; t < nearest.kTiles; ++t)
    for (int j = 0; j < 2; ++j)
      if (lane < 4) {
        best[t * 8 + lane * 2 + j] = nearest.best[t][j];
        cluster[t * 8 + lane * 2 + j] = nearest.cluster[t][j];
      }
}

// 32 centroids, two of which are the same and one of which there is not.
template <int kHeadDim>
void check_nearest() {
  CAPTURE(kHeadDim);
  constexpr int kRows = 8 * cuda::kSearchTiles<kHeadDim>;
  BuildStage stage(kHeadDim, 64, BuildStage::options(64, 2), 1);
  stage.make_rows(5);
  std::mt19937_64 random(2);
  std::vector<uint8_t> bytes(32 * kHeadDim);
  std::vector<float> scale(32, 0.02f), half_norm(32);
  const auto centroid = [&](int j, int c) {
    const uint8_t byte = bytes[size_t(j / 16 * 16 * kHeadDim + c / 4 * 64 + j % 16 * 4 + c % 4)];
    return double(scale[size_t(j)]) * (byte - 128.0);
  };
  for (uint8_t& x : bytes) x = uint8_t(random() % 256);
  for (int c = 0; c < kHeadDim; ++c)  // 20 like 3
    bytes[size_t(16 * kHeadDim + c / 4 * 64 + 4 * 4 + c % 4)] = bytes[size_t(c / 4 * 64 + 3 * 4 + c % 4)];
  for (int j = 0; j < 32; ++j)
    for (int c = 0; c < kHeadDim; ++c) half_norm[size_t(j)] += float(0.5 * centroid(j, c) * centroid(j, c));
  half_norm[20] = half_norm[3];
  half_norm[7] = kInfinity;
  BuildStage::put(stage.params.index.centroids, bytes);
  BuildStage::put(stage.params.index.centroid_scale, scale);
  BuildStage::put(stage.params.workspace.half_norm, half_norm);
  const DeviceArray<float> best(kRows);
  const DeviceArray<int> cluster(kRows);
  REQUIRE(cuda::launch({.threads = 32}, nearest_kernel<kHeadDim>, stage.params, cuda::kSearchTiles<kHeadDim> - 1, best.data(),
                       cluster.data()) == cudaSuccess);
  const std::vector<int> found = cluster.values();
  const std::vector<float> values = best.values();
  const auto constants = BuildStage::get(stage.params.workspace.constants, kRows);
  for (int i = 0; i < kRows; ++i) {
    if (i >= kRows - 8) {  // the tile that was left out
      CHECK(values[size_t(i)] == -kInfinity);
      continue;
    }
    double most = -1e30;
    int wanted = -1;
    for (int j = 0; j < 32; ++j) {
      double value = -double(half_norm[size_t(j)]);
      for (int c = 0; c < kHeadDim; ++c) value += stage.row(0, i, c) * centroid(j, c);
      if (value > most) wanted = j, most = value;
    }
    const double got = double(values[size_t(i)]) * double(constants[size_t(i)].scale);
    CHECK(std::fabs(got - most) <= 1e-4 * (1.0 + std::fabs(most)));
    CHECK(found[size_t(i)] == wanted);
    CHECK(found[size_t(i)] != 7);
    CHECK(found[size_t(i)] != 20);
  }
}

TEST_CASE("nearest centroids: as a search through all of them finds, the first of equals") {
  check_nearest<64>();
  check_nearest<96>();
  check_nearest<128>();
  check_nearest<256>();
}

}  // namespace
}  // namespace quorum::test
