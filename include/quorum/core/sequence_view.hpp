// One sequence of a call: its cache, its index, its query rows and what each of them may see.
#pragma once

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/core/token_filter.hpp"

namespace quorum {

// Shapes: mask bit t % 64 of word t / 64 says whether token t is visible, mask_words(kv.num_tokens) words a row.
struct SequenceView {
  KvCacheView kv;
  const ClusterIndexView* index = nullptr;  // null: attend densely
  const uint64_t* mask = nullptr;           // null: everything is visible
  int64_t mask_stride = 0;                  // words between the masks of two rows; 0: all rows have the same
  // Query rows. Causal: they stand at the last num_rows tokens, row r sees tokens [0, num_tokens - num_rows + 1 + r). Otherwise all of them
  // see all tokens: beams or samples that continue a common prefix.
  int num_rows = 1;
  bool causal = true;

  // No token at or beyond is seen by the row; not positive if it stands before the first token.
  QUORUM_HOST_DEVICE int row_end(int row) const { return causal ? kv.num_tokens - num_rows + 1 + row : kv.num_tokens; }
  // How far the ends of two neighbouring rows lie apart.
  QUORUM_HOST_DEVICE int row_step() const { return causal ? 1 : 0; }

  // Tokens that one of the rows [first_row, first_row + count) sees, their masks being the same.
  QUORUM_HOST_DEVICE TokenFilter filter(int first_row, int count, int sliding_window) const {
    TokenFilter out;
    out.mask = mask == nullptr ? nullptr : mask + first_row * mask_stride;
    out.live = index == nullptr ? nullptr : index->live;
    out.num_live = index == nullptr ? 0 : index->always.num_known;
    out.begin = window_begin(row_end(first_row), sliding_window);
    out.end = row_end(first_row + count - 1) > 0 ? row_end(first_row + count - 1) : 0;
    return out;
  }
  QUORUM_HOST_DEVICE static int window_begin(int row_end, int sliding_window) {
    return sliding_window > 0 && row_end > sliding_window ? row_end - sliding_window : 0;
  }

  // How many rows from `first` on, at most `most`, can share a set of tokens: they must have one mask, and no cluster may hold a token that
  // only some of them see. dense: clusters do not matter.
  QUORUM_HOST_DEVICE int shared_rows(int first, int most, int sliding_window, bool dense) const {
    const int count = num_rows - first < most ? num_rows - first : most;
    if (count <= 1 || (mask != nullptr && mask_stride != 0)) return 1;
    if (dense || !causal || index == nullptr || index->empty()) return count;
    const bool window_cuts = window_begin(row_end(first + count - 1), sliding_window) > 0;
    return index->indexed_end > row_end(first) || window_cuts ? 1 : count;
  }
};

// Most query rows that share a set of tokens: with the heads of a row as many heads as are handled together.
constexpr int max_shared_rows(RowSets rows, int heads_per_row, int max_rows) {
  const int most = kMaxGroupSize / heads_per_row;
  return rows == RowSets::own ? 1 : max_rows < most ? max_rows : most;
}

// Query rows of one sequence that share a set of tokens.
struct RowSpan {
  int sequence = 0;
  int query_row = 0;  // the first of them in the call's queries
  int first_row = 0;  // and in the sequence
  int num_rows = 1;
};

}  // namespace quorum
