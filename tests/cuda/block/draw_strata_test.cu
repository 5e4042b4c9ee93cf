#include "quorum/cuda/block/draw_strata.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <utility>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"
#include "tests/cuda/support/team.cuh"

namespace quorum::test {
namespace {

constexpr int kThreads = 64;

struct Drawn {
  int32_t cluster;
  float probability, into;
};

__global__ void draw_kernel(const unsigned long long* steps, int num_clusters, int num_draws, uint64_t seed, Drawn* drawn, int32_t* count) {
  QUORUM_SHARED(cuda::DrawShared<kThreads>, s);
  const cuda::BlockTeam team = cuda::BlockTeam::of_launch();
  team.barrier();
  const int got = cuda::draw_strata<kThreads>(
      cuda::ClusterRuns::of<kThreads>(team, num_clusters), SamplePoints{seed, num_draws}, s, [&](int cluster) { return steps[cluster]; },
      [&](int stratum, int cluster, float probability, float into) {
        drawn[stratum] = {cluster, probability, into};
      });
  if (threadIdx.x == 0) count[team.rank] = got;
}

std::vector<Drawn> draw(const std::vector<unsigned long long>& steps, int num_draws, int blocks, int& count) {
  const DeviceArray<unsigned long long> input(steps);
  const DeviceArray<Drawn> output{static_cast<size_t>(num_draws)};
  const DeviceArray<int32_t> got{static_cast<size_t>(blocks)};
  REQUIRE(cuda::launch({.grid = {unsigned(blocks), 1, 1}, .threads = kThreads, .team = blocks}, draw_kernel,
                       static_cast<const unsigned long long*>(input.data()), int(steps.size()), num_draws, uint64_t(5), output.data(),
                       got.data()) == cudaSuccess);
  const std::vector<int32_t> counts = got.values();
  count = counts[0];
  for (const int32_t of_block : counts) CHECK(of_block == count);
  return output.values();
}

TEST_CASE("draw strata: every stratum falls into the cluster that holds its point, and says how far into it") {
  for (const auto& [num_clusters, blocks] : {std::pair{1, 1}, {63, 1}, {64, 1}, {200, 1}, {1, 3}, {130, 3}, {700, 4}}) {
    if (blocks > most_team_blocks()) continue;
    CAPTURE(num_clusters);
    CAPTURE(blocks);
    std::vector<unsigned long long> steps;
    unsigned long long total = 0;
    for (int j = 0; j < num_clusters; ++j) {
      steps.push_back(j % 3 == 1 && num_clusters > 1 ? 0ull : (uint64_t(j) * 7919 % 1000 + 1) << 30);
      total += steps.back();
    }
    constexpr int kDraws = 48;
    int count = 0;
    const std::vector<Drawn> drawn = draw(steps, kDraws, blocks, count);
    CHECK(count == kDraws);
    for (int stratum = 0; stratum < kDraws; ++stratum) {
      const Drawn& own = drawn[size_t(stratum)];
      CAPTURE(stratum);
      REQUIRE(own.cluster >= 0);
      REQUIRE(own.cluster < num_clusters);
      unsigned long long before = 0;
      for (int j = 0; j < own.cluster; ++j) before += steps[size_t(j)];
      const double of_cluster = double(steps[size_t(own.cluster)]) / double(total), at = double(before) / double(total);
      CHECK(steps[size_t(own.cluster)] > 0);
      CHECK(std::fabs(double(own.probability) / of_cluster - 1.0) <= 1e-5);
      const double point = at + double(own.into) * of_cluster;
      CHECK(point >= double(stratum) / kDraws - 1e-6);
      CHECK(point <= double(stratum + 1) / kDraws + 1e-6);
    }
  }
}

TEST_CASE("draw strata: nothing to draw from") {
  int count = -1;
  for (const int blocks : {1, most_team_blocks()}) {
    draw(std::vector<unsigned long long>(70, 0), 8, blocks, count);
    CHECK(count == 0);
  }
}

}  // namespace
}  // namespace quorum::test
