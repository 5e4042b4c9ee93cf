#include "quorum/cuda/kernel/assign_tokens_kernel.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "quorum/cuda/kernel/update_centroids_kernel.cuh"
#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
cudaError_t assign(const BuildStage& stage) {
  const cuda::BuildParams& p = stage.params;
  const auto tiles = unsigned(ceil_div(p.segment_tokens, cuda::kAssignRows<kHeadDim>));
  return stage.run(cuda::assign_tokens_kernel<kHeadDim>, dim3(tiles, unsigned(p.num_segments)), cuda::kAssignThreads);
}

// From seeds, which are rows: each row's nearest one, by the rows themselves.
template <int kHeadDim>
void check_assignment(int num_tokens) {
  CAPTURE(kHeadDim);
  CAPTURE(num_tokens);
  BuildStage stage(kHeadDim, num_tokens, BuildStage::options(300, 15));
  stage.make_rows(4);
  cuda::BuildParams& p = stage.params;
  const dim3 slots(unsigned(ceil_div(p.slots_per_segment, cuda::kUpdateSlots)), unsigned(p.num_segments));
  REQUIRE(stage.run(cuda::seed_centroids_kernel<kHeadDim>, slots, cuda::kBuildThreads) == cudaSuccess);
  REQUIRE(assign<kHeadDim>(stage) == cudaSuccess);
  const int64_t count = p.num_kv_heads * p.tokens.count;
  const auto found = BuildStage::get(p.workspace.assignment, count);
  const auto distance = BuildStage::get(p.workspace.distance, count);
  int wrong = 0;
  for (int h = 0; h < p.num_kv_heads; ++h)
    for (int s = 0; s < p.num_segments; ++s) {
      const cuda::BuildSegment segment = p.segment(s);
      CHECK(BuildStage::get(&p.changed(0, s, h), 1)[0] == segment.num_rows);
      CHECK(BuildStage::get(&p.changed(1, s, h), 1)[0] == 0);
      for (int i = segment.first_row; i < segment.first_row + segment.num_rows; ++i) {
        double least = 1e30, own = 0.0;
        for (int j = 0; j < segment.num_clusters; ++j) {
          const int seed = segment.first_row + seed_row(j, segment.num_rows, segment.num_clusters);
          double square = 0.0;
          for (int c = 0; c < kHeadDim; ++c) square += std::pow(stage.row(h, i, c) - stage.row(h, seed, c), 2);
          least = std::min(least, square);
          if (j == found[size_t(p.tokens_of(h) + i)]) own = square;
        }
        wrong += own <= least + 1e-3 ? 0 : 1;
        wrong += std::fabs(double(distance[size_t(p.tokens_of(h) + i)]) - own) <= 1e-2 + 1e-4 * own ? 0 : 1;
      }
    }
  CHECK(wrong == 0);
}

TEST_CASE("assign tokens: every row to the nearest centroid of its segment, for segments around whole tiles") {
  for (const int num_tokens : {1, 8, 31, 33, 300, 427}) check_assignment<64>(num_tokens);
  check_assignment<96>(150);
  check_assignment<128>(150);
  check_assignment<256>(70);
}

TEST_CASE("assign tokens: only what moved counts; a segment in which nothing moved is left alone") {
  BuildStage stage(64, 427, BuildStage::options(300, 15));
  stage.make_rows(4);
  cuda::BuildParams& p = stage.params;
  const dim3 slots(unsigned(ceil_div(p.slots_per_segment, cuda::kUpdateSlots)), unsigned(p.num_segments));
  REQUIRE(stage.run(cuda::seed_centroids_kernel<64>, slots, cuda::kBuildThreads) == cudaSuccess);
  REQUIRE(assign<64>(stage) == cudaSuccess);
  auto assignment = BuildStage::get(p.workspace.assignment, 2 * 427);
  const auto wanted = assignment;
  for (const int i : {5, 100, 310}) assignment[size_t(i)] = (assignment[size_t(i)] + 1) % 8;
  BuildStage::put(p.workspace.assignment, assignment);
  BuildStage::put(&p.changed(0, 1, 0), std::vector<int32_t>{0});  // the second segment of the first head was at rest
  p.round = 1;
  REQUIRE(assign<64>(stage) == cudaSuccess);
  CHECK(BuildStage::get(&p.changed(1, 0, 0), 1)[0] == 2);
  CHECK(BuildStage::get(&p.changed(1, 1, 0), 1)[0] == 0);
  CHECK(BuildStage::get(&p.changed(1, 0, 1), 1)[0] == 0);
  const auto after = BuildStage::get(p.workspace.assignment, 2 * 427);
  CHECK(after[5] == wanted[5]);
  CHECK(after[100] == wanted[100]);
  CHECK(after[310] == assignment[310]);
}

}  // namespace
}  // namespace quorum::test
