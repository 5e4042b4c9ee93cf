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

TEST_CASE("step: query rows are dealt to sets of up to 16 columns; what the last one has in excess repeats the last query row") {
  const std::vector<int32_t> num_tokens{50, 2};
  cuda::StepParams p;
  p.shape = {6, 2, 64, 0.0f};
  p.num_sequences = 2;
  p.kv.num_tokens = num_tokens.data();
  p.deal_query_rows(7, true, RowSets::shared);
  CHECK(p.group == 15);
  CHECK(p.num_sets == 2);
  CHECK(p.num_rows() == 8);
  CHECK(p.columns_differ());
  const int row = 3;  // sequence 0, second set, KV head 1
  CHECK(p.sequence_of(row) == 0);
  CHECK(p.kv_head_of(row) == 1);
  CHECK(p.query_of(row, 4) == 6);
  CHECK(p.query_of(row, 6) == 7);
  CHECK(p.query_row(row, 6) == 6);
  CHECK(p.query_row(row + 4, 0) == 7 + 5);
  CHECK(p.qo_head(row, 4) == 4);
  CHECK(p.seen_by(row, 0).end == 49);
  CHECK(p.seen_by(row, 14).end == 50);
  CHECK(p.seen_by_all(1).end == 48);
  CHECK(p.seen_by_all(4).end == 0);  // the rows stand before the first token
  p.shape.sliding_window = 10;
  CHECK(p.seen_by_all(row).begin == 39);
  CHECK(p.seen_by(row, 14).begin == 40);
  p.deal_query_rows(7, false, RowSets::own);
  CHECK(p.num_sets == 7);
  CHECK(p.group == 3);
  CHECK(!p.columns_differ());
  CHECK(p.seen_by(0, 0).end == 50);
}

TEST_CASE("step: a set whose first query row does not see what is indexed is dense, and so is one that a window cuts") {
  const std::vector<int32_t> num_tokens{300};
  FlatHeadView head;
  head.num_indexed = 290;
  head.indexed_end = head.always.num_known = 297;
  head.clusters.num_clusters = 16;
  cuda::StepParams p;
  p.shape = {1, 1, 64, 0.0f};
  p.num_sequences = 1;
  p.max_slots = 16;
  p.heads = &head;
  p.kv.num_tokens = num_tokens.data();
  p.options.dense_below = 0;
  for (const int rows : {1, 4, 5}) {
    p.deal_query_rows(rows, true, RowSets::shared);
    CHECK(p.first_path(0) == (rows <= 4 ? DecodePath::sparse : DecodePath::dense_by_view));
  }
  p.deal_query_rows(5, false, RowSets::shared);
  CHECK(p.first_path(0) == DecodePath::sparse);
  p.deal_query_rows(1, true, RowSets::shared);
  for (const int window : {299, 300}) {
    p.shape.sliding_window = window;
    CHECK(p.first_path(0) == (window < 300 ? DecodePath::dense_by_view : DecodePath::sparse));
  }
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

TEST_CASE("step: rows with codes choose tokens where that is planned; without, a target error ends densely") {
  const std::vector<int32_t> num_tokens{500};
  std::vector<FlatHeadView> heads(1);
  heads[0].num_indexed = 480;
  heads[0].indexed_end = 480;
  heads[0].clusters.num_clusters = 16;
  heads[0].always.num_known = 480;
  cuda::StepParams p;
  p.shape = {2, 1, 64, 0.0f};
  p.options.dense_below = 0;
  p.num_sequences = 1;
  p.max_slots = 16;
  p.max_tokens = 500;
  p.kv.num_tokens = num_tokens.data();
  p.heads = heads.data();
  p.deal_query_rows(1, true, RowSets::shared);
  CHECK(p.first_path(0) == DecodePath::sparse);
  CHECK(p.max_code_blocks() == 0);
  p.by_tokens = true;
  CHECK(p.max_code_blocks() == 500 / 16 + 16);
  CHECK(p.first_path(0) == DecodePath::sparse);
  heads[0].residual_codes = true;
  CHECK(p.first_path(0) == DecodePath::sparse_tokens);
  p.options.target_error = 0.1f;
  CHECK(p.first_path(0) == DecodePath::sparse_tokens);
  CHECK(p.surveys());
  p.round = 1;
  CHECK(!p.surveys());
  heads[0].residual_codes = false;
  CHECK(p.first_path(0) == DecodePath::dense_by_target);
  p.options.dense_below = 500;
  CHECK(p.first_path(0) == DecodePath::dense_by_length);
}

TEST_CASE("step: only a certificate samples what codes leave") {
  cuda::StepParams p;
  p.by_tokens = true;
  CHECK(!p.samples_coded());
  p.options.certificate.enabled = true;
  CHECK(p.samples_coded());
  p.by_tokens = false;
  CHECK(!p.samples_coded());
}

}  // namespace
}  // namespace quorum::test
