#include "quorum/cuda/block/build.cuh"

#include <doctest/doctest.h>

namespace quorum::cuda {
namespace {

TEST_CASE("build parameters: segments cover all rows once, slots begin at whole blocks") {
  BuildParams p;
  p.tokens = {4, 1003, 1010};
  p.cluster_size = 9;
  p.segment_tokens = 250;
  p.num_segments = 5;
  p.slots_per_segment = p.segment(0).num_slots;
  int rows = 0, slots = 0;
  for (int s = 0; s < p.num_segments; ++s) {
    const BuildSegment segment = p.segment(s);
    CHECK(segment.first_row == rows);
    CHECK(segment.first_slot == slots);
    CHECK(segment.num_slots % kClusterBlock == 0);
    CHECK(segment.num_clusters <= segment.num_slots);
    CHECK(segment.num_clusters == num_clusters_for(segment.num_rows, 9));
    rows += segment.num_rows;
    slots += segment.num_slots;
  }
  CHECK(rows == 1003);
  CHECK(p.segment(4).num_rows == 3);
  CHECK(p.key_tiles() == 16);
  CHECK(p.row_tiles() == 63);
}

TEST_CASE("build parameters: a round has work while the one before moved tokens") {
  BuildParams p;
  int32_t changed[3 * 2] = {5, 0, 0, 0, 0, 0};
  p.iterations = 2;
  p.num_segments = 2;
  p.workspace.changed = changed;
  CHECK(p.searches(1, 0));
  p.round = 1;
  CHECK(p.searches(0, 0));
  CHECK_FALSE(p.searches(1, 0));
  p.round = 2;
  CHECK_FALSE(p.searches(0, 0));
}

}  // namespace
}  // namespace quorum::cuda
