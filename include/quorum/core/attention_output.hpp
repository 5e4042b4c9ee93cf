// Where the results of an attention call go.
#pragma once

#include "quorum/core/shape.hpp"

namespace quorum {

// Shapes: output [num_rows][num_qo_heads][head_dim] f32; lse (may be null) [num_rows][num_qo_heads] f32, natural logarithm, -inf where
// nothing was attended. Rows are those of the queries: one a sequence, or more (SequenceView::num_rows). Memory: the caller's.
struct AttentionOutput {
  float* output = nullptr;
  float* lse = nullptr;

  QUORUM_HOST_DEVICE float* row(const AttentionShape& shape, int query_row, int qo_head) const {
    return output + (int64_t(query_row) * shape.num_qo_heads + qo_head) * shape.head_dim;
  }
  QUORUM_HOST_DEVICE void set_lse(const AttentionShape& shape, int query_row, int qo_head, float value) const {
    if (lse != nullptr) lse[int64_t(query_row) * shape.num_qo_heads + qo_head] = value;
  }
};

}  // namespace quorum
