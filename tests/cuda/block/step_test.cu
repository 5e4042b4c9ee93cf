#include "quorum/cuda/block/step.cuh"

#include <doctest/doctest.h>

#include <vector>

namespace quorum::test {
namespace {

TEST_CASE("step: rows are KV heads of sequences, and partial results have room for every block and segment") {
  cuda::StepParams p;
  p.shape = {12, 3, 64, 0.0f};
  p.num_sequences = 5;
  p.attend_blocks = 7;
  CHECK(p.num_rows() == 15);
  CHECK(p.sequence_of(14) == 4);
  CHECK(p.kv_head_of(14) == 2);
  CHECK(p.sequence_of(3) == 1);
  CHECK(p.kv_head_of(3) == 0);
  CHECK(p.num_partials() == 7 + 45);
}

TEST_CASE("step: the first decision about a row, without an index and with one") {
  const std::vector<int32_t> num_tokens{3000, 100};
  std::vector<FlatHeadView> heads(2);
  for (FlatHeadView& head : heads) {
    head.num_indexed = 86;
    head.clusters.num_clusters = 32;
  }
  cuda::StepParams p;
  p.shape = {1, 1, 64, 0.0f};
  p.num_sequences = 2;
  p.max_slots = 32;
  p.kv.num_tokens = num_tokens.data();
  p.options.dense_below = 200;
  CHECK(p.first_path(0) == DecodePath::dense_by_length);
  p.heads = heads.data();
  CHECK(p.first_path(0) == DecodePath::sparse);
  CHECK(p.first_path(1) == DecodePath::dense_by_length);
  heads[0].non_finite = true;
  CHECK(p.first_path(0) == DecodePath::dense_by_numerics);
  heads[0].non_finite = false;
  p.max_slots = 16;
  CHECK(p.first_path(0) == DecodePath::dense_by_capacity);
  heads[0].num_indexed = 0;
  CHECK(p.first_path(0) == DecodePath::dense_by_length);
}

}  // namespace
}  // namespace quorum::test
