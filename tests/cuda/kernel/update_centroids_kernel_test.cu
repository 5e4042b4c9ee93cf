#include "quorum/cuda/kernel/update_centroids_kernel.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

dim3 slots_of(const cuda::BuildParams& p) {
  return dim3(unsigned(ceil_div(p.slots_per_segment, cuda::kUpdateSlots)), unsigned(p.num_segments));
}

// Coordinate of a centroid of the search.
double coordinate(const std::vector<uint8_t>& bytes, const std::vector<float>& scale, int64_t slot, int d, int c) {
  const int64_t at = slot / 16 * 16 * d + c / 4 * 64 + slot % 16 * 4 + c % 4;
  return double(scale[size_t(slot)]) * (double(bytes[size_t(at)]) - 128.0);
}

template <int kHeadDim>
void check_means() {
  CAPTURE(kHeadDim);
  BuildStage stage(kHeadDim, 270, BuildStage::options(200, 13));
  stage.make_rows(8);
  cuda::BuildParams& p = stage.params;
  REQUIRE(stage.run(cuda::seed_centroids_kernel<kHeadDim>, slots_of(p), cuda::kBuildThreads) == cudaSuccess);
  const std::vector<int32_t> assignment = stage.random_assignment(2);
  stage.set_clusters(assignment);
  stage.set_changed(0, 1);
  BuildStage::put(p.workspace.empty_rank, std::vector<int32_t>(size_t(2 * p.num_slots), 1 << 20));  // none starts again
  BuildStage::put(p.workspace.num_empty, std::vector<int32_t>(4, 1));
  REQUIRE(stage.run(cuda::update_centroids_kernel<kHeadDim>, slots_of(p), cuda::kBuildThreads) == cudaSuccess);
  REQUIRE(stage.run(cuda::describe_clusters_kernel<kHeadDim>, slots_of(p), cuda::kBuildThreads) == cudaSuccess);
  const auto bytes = BuildStage::get(p.index.centroids, 2 * p.num_slots * kHeadDim);
  const auto scale = BuildStage::get(p.index.centroid_scale, 2 * p.num_slots), size = BuildStage::get(p.index.size, 2 * p.num_slots);
  const auto half_norm = BuildStage::get(p.workspace.half_norm, 2 * p.num_slots);
  const auto means = BuildStage::get(p.workspace.means, 2 * p.num_slots * kHeadDim),
             spread = BuildStage::get(p.index.spread, 2 * p.num_slots);
  for (int h = 0; h < 2; ++h)
    for (int s = 0; s < p.num_segments; ++s) {
      const cuda::BuildSegment segment = p.segment(s);
      for (int j = 0; j < segment.num_slots; ++j) {
        const int64_t slot = p.slots_of(h) + segment.first_slot + j;
        const double count = double(size[size_t(slot)]);
        if (j >= segment.num_clusters) CHECK(half_norm[size_t(slot)] == kInfinity);
        double square = 0.0, norm = 0.0;
        for (int c = 0; c < kHeadDim; ++c) {
          double sum = 0.0, squares = 0.0;
          for (int i = segment.first_row; i < segment.first_row + segment.num_rows; ++i) {
            if (assignment[size_t(p.tokens_of(h) + i)] != j) continue;
            sum += stage.row(h, i, c) / count;
            squares += stage.row(h, i, c) * stage.row(h, i, c) / count;
          }
          square += squares - sum * sum;
          CHECK(std::fabs(double(means[size_t(slot * kHeadDim + c)]) - sum) <= 1e-5);
          if (count == 0.0) continue;
          const double found = coordinate(bytes, scale, slot, kHeadDim, c);
          CHECK(std::fabs(found - sum) <= 0.51 * double(scale[size_t(slot)]));
          norm += found * found;
        }
        CHECK(std::fabs(double(spread[size_t(slot)]) - square) <= 1e-4 * square + 1e-5);
        if (count > 0.0) CHECK(std::fabs(double(half_norm[size_t(slot)]) - 0.5 * norm) <= 1e-4 * norm);
      }
    }
}

TEST_CASE("update centroids: means, half norms, spreads; padding is never near") {
  check_means<64>();
  check_means<96>();
  check_means<128>();
  check_means<256>();
}

TEST_CASE("update centroids: empty clusters take the farthest rows, no two the same; at rest nothing changes") {
  BuildStage stage(64, 90, BuildStage::options(90, 10), 1);
  stage.make_rows(3);
  cuda::BuildParams& p = stage.params;
  REQUIRE(stage.run(cuda::seed_centroids_kernel<64>, slots_of(p), cuda::kBuildThreads) == cudaSuccess);
  std::vector<int32_t> assignment(90);
  for (int i = 0; i < 90; ++i) assignment[size_t(i)] = i % 7;  // clusters 7 and 8 are empty
  stage.set_clusters(assignment);
  std::vector<int32_t> rank(16, -1);
  rank[7] = 0;
  rank[8] = 1;
  BuildStage::put(p.workspace.empty_rank, rank);
  BuildStage::put(p.workspace.num_empty, std::vector<int32_t>{2});
  std::vector<float> distance(90, 1.0f);
  distance[40] = 9.0f;  // the farthest of the even rows, twice
  distance[62] = 9.0f;
  distance[41] = 3.0f;  // of the odd ones
  BuildStage::put(p.workspace.distance, distance);
  stage.set_changed(0, 0);
  const auto before = BuildStage::get(p.index.centroids, 16 * 64);
  REQUIRE(stage.run(cuda::update_centroids_kernel<64>, slots_of(p), cuda::kBuildThreads) == cudaSuccess);
  CHECK(BuildStage::get(p.index.centroids, 16 * 64) == before);
  stage.set_changed(0, 1);
  REQUIRE(stage.run(cuda::update_centroids_kernel<64>, slots_of(p), cuda::kBuildThreads) == cudaSuccess);
  const auto bytes = BuildStage::get(p.index.centroids, 16 * 64);
  const auto scale = BuildStage::get(p.index.centroid_scale, 16);
  for (int c = 0; c < 64; ++c) {
    CHECK(std::fabs(coordinate(bytes, scale, 7, 64, c) - stage.row(0, 40, c)) <= 1e-5);
    CHECK(std::fabs(coordinate(bytes, scale, 8, 64, c) - stage.row(0, 41, c)) <= 1e-5);
  }
}

}  // namespace
}  // namespace quorum::test
