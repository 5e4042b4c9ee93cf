#include "quorum/cuda/kernel/sort_tokens_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

cudaError_t sort(const BuildStage& stage) {
  const cuda::BuildParams& p = stage.params;
  return stage.run(cuda::sort_tokens_kernel<cuda::kSortThreads>, dim3(unsigned(p.num_segments)), cuda::kSortThreads,
                   cuda::sort_shared_bytes(p.slots_per_segment));
}

void check_sort(int num_tokens, const IndexOptions& options, uint64_t seed) {
  CAPTURE(num_tokens);
  CAPTURE(seed);
  BuildStage stage(64, num_tokens, options), wanted(64, num_tokens, options);
  cuda::BuildParams& p = stage.params;
  const std::vector<int32_t> assignment = stage.random_assignment(seed);
  BuildStage::put(p.workspace.assignment, assignment);
  wanted.set_clusters(assignment);  // in the order of the tokens
  stage.set_changed(0, 1);
  REQUIRE(sort(stage) == cudaSuccess);
  const int64_t tokens = p.num_kv_heads * p.tokens.count, slots = p.num_kv_heads * p.num_slots;
  CHECK(BuildStage::get(p.index.cluster_tokens, tokens) == BuildStage::get(wanted.params.index.cluster_tokens, tokens));
  CHECK(BuildStage::get(p.index.cluster_indptr, slots + 2) == BuildStage::get(wanted.params.index.cluster_indptr, slots + 2));
  const auto size = BuildStage::get(p.index.size, slots);
  CHECK(size == BuildStage::get(wanted.params.index.size, slots));
  const auto rank = BuildStage::get(p.workspace.empty_rank, slots);
  const auto num_empty = BuildStage::get(p.workspace.num_empty, p.num_kv_heads * p.num_segments);
  for (int h = 0; h < p.num_kv_heads; ++h)
    for (int s = 0; s < p.num_segments; ++s) {
      const cuda::BuildSegment segment = p.segment(s);
      int empty = 0;
      for (int j = 0; j < segment.num_slots; ++j) {
        const size_t at = size_t(p.slots_of(h) + segment.first_slot + j);
        CHECK(rank[at] == (j < segment.num_clusters && size[at] == 0.0f ? empty++ : -1));
      }
      CHECK(num_empty[size_t(h * p.num_segments + s)] == empty);
    }
}

TEST_CASE("sort tokens: by cluster, ascending inside each, with empty clusters, padding and segments of any length") {
  for (const int num_tokens : {1, 31, 32, 33, 500, 1201}) check_sort(num_tokens, BuildStage::options(500, 20), uint64_t(num_tokens));
  IndexOptions sinks = BuildStage::options(64, 3);
  sinks.num_sink_tokens = 5;
  check_sort(200, sinks, 3);
  check_sort(1300, BuildStage::options(1300, 2), 4);  // more clusters than threads
}

TEST_CASE("sort tokens: a segment in which nothing moved is left alone") {
  BuildStage stage(64, 100, BuildStage::options(100, 20));
  BuildStage::put(stage.params.index.cluster_tokens, std::vector<int32_t>(200, -7));
  stage.set_changed(0, 0);
  REQUIRE(sort(stage) == cudaSuccess);
  CHECK(BuildStage::get(stage.params.index.cluster_tokens, 200) == std::vector<int32_t>(200, -7));
}

}  // namespace
}  // namespace quorum::test
