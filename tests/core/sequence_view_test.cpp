// What the rows of a sequence see, and which of them can share a set.
#include "quorum/core/sequence_view.hpp"

#include <doctest/doctest.h>

using namespace quorum;

namespace {

SequenceView rows_of(int num_tokens, int num_rows, bool causal = true) {
  SequenceView view;
  view.kv.num_tokens = num_tokens;
  view.num_rows = num_rows;
  view.causal = causal;
  return view;
}

}  // namespace

TEST_CASE("a single row sees everything") {
  const TokenFilter filter = rows_of(100, 1).filter(0, 1, 0);
  CHECK(filter.is_range());
  CHECK(filter.begin == 0);
  CHECK(filter.end == 100);
}

TEST_CASE("causal rows stand at the last tokens, others all see everything") {
  const SequenceView causal = rows_of(100, 5), beams = rows_of(100, 5, false);
  for (int r = 0; r < 5; ++r) {
    CHECK(causal.row_end(r) == 96 + r);
    CHECK(causal.filter(r, 1, 0).end == 96 + r);
    CHECK(beams.filter(r, 1, 0).end == 100);
  }
  CHECK(causal.filter(1, 3, 0).end == 99);
  CHECK(rows_of(3, 5).filter(0, 1, 0).end == 0);  // stands before the first token
  CHECK(rows_of(3, 5).filter(2, 1, 0).end == 1);
}

TEST_CASE("a window begins where the first of its rows needs it") {
  const SequenceView view = rows_of(100, 4);
  CHECK(view.filter(3, 1, 10).begin == 90);
  CHECK(view.filter(0, 4, 10).begin == 87);
  CHECK(view.filter(0, 4, 97).begin == 0);
  CHECK(view.filter(0, 4, 1000).begin == 0);
  CHECK(SequenceView::window_begin(10, 0) == 0);
  CHECK(SequenceView::window_begin(10, 10) == 0);
  CHECK(SequenceView::window_begin(11, 10) == 1);
}

TEST_CASE("masks and what has been erased go along") {
  const uint64_t words[4] = {}, live[2] = {};
  SequenceView view = rows_of(100, 2);
  view.mask = words;
  CHECK(view.filter(1, 1, 0).mask == words);
  view.mask_stride = 2;
  CHECK(view.filter(1, 1, 0).mask == words + 2);
  ClusterIndexView index;
  index.live = live;
  index.always.num_known = 70;
  view.index = &index;
  CHECK(view.filter(0, 1, 0).live == live);
  CHECK(view.filter(0, 1, 0).num_live == 70);
}

TEST_CASE("rows share unless their masks differ or a cluster would hold what some may not see") {
  const uint64_t words[4] = {};
  SequenceView view = rows_of(100, 6);
  CHECK(view.shared_rows(0, 4, 0, false) == 4);
  CHECK(view.shared_rows(4, 4, 0, false) == 2);
  CHECK(view.shared_rows(5, 4, 0, false) == 1);
  view.mask = words;
  CHECK(view.shared_rows(0, 4, 0, false) == 4);
  view.mask_stride = 2;
  CHECK(view.shared_rows(0, 4, 0, false) == 1);
  CHECK(view.shared_rows(0, 4, 0, true) == 1);
  view.mask = nullptr;
  CHECK(view.shared_rows(0, 4, 0, false) == 4);
  ClusterIndexView index;
  view.index = &index;
  index.indexed_end = 95;  // the first row's end
  index.num_indexed = 90;
  CHECK(view.shared_rows(0, 4, 0, false) == 4);
  CHECK(view.shared_rows(0, 4, 98, false) == 4);  // reaches back to token 0
  CHECK(view.shared_rows(0, 4, 97, false) == 1);
  CHECK(view.shared_rows(0, 4, 97, true) == 4);
  index.indexed_end = 96;
  CHECK(view.shared_rows(0, 4, 0, false) == 1);
  CHECK(view.shared_rows(1, 4, 0, false) == 4);
  CHECK(view.shared_rows(0, 4, 0, true) == 4);
  view.causal = false;
  CHECK(view.shared_rows(0, 4, 10, false) == 4);
  index.num_indexed = 0;
  view.causal = true;
  CHECK(view.shared_rows(0, 4, 10, false) == 4);
}

TEST_CASE("as many rows share as make up to sixteen heads") {
  CHECK(max_shared_rows(RowSets::shared, 4, 16) == 4);
  CHECK(max_shared_rows(RowSets::shared, 3, 16) == 5);
  CHECK(max_shared_rows(RowSets::shared, 1, 100) == 16);
  CHECK(max_shared_rows(RowSets::shared, 16, 16) == 1);
  CHECK(max_shared_rows(RowSets::shared, 9, 16) == 1);
  CHECK(max_shared_rows(RowSets::shared, 4, 2) == 2);
  CHECK(max_shared_rows(RowSets::own, 1, 16) == 1);
}
