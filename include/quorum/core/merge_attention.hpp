// Two attention results over disjoint tokens become one.
#pragma once

#include "quorum/core/attention_state.hpp"

namespace quorum {

// Merges results row by row (algorithm.md eq. 2): a shared prefix with own suffixes, a cache in two places.
//
// Shapes: output_a, output_b, output [num_rows][head_dim]; lse_a, lse_b, lse [num_rows], natural; a row is a query row and head. output and
// lse may be one of the inputs; lse may be null. Edges: an empty part (lse -inf) leaves the other as it is; two of them give output 0 and
// lse -inf; NaN stays NaN. Attention sinks must be in one of the parts only (AttentionShape::sink_logits null for the other).
inline void merge_attention(const float* output_a, const float* lse_a, const float* output_b, const float* lse_b, int64_t num_rows,
                            int head_dim, float* output, float* lse) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const float a = lse_a[row], b = lse_b[row];
    // An empty part's sum is 0: its maximum must not rule, nor its output be multiplied.
    const AttentionState all = merge({a, a == -kInfinity ? 0.0f : 1.0f}, {b, b == -kInfinity ? 0.0f : 1.0f});
    const float of_a = rescale_factor(a, all.max) / all.sum, of_b = rescale_factor(b, all.max) / all.sum;
    for (int64_t i = row * head_dim; i < (row + 1) * head_dim; ++i)
      output[i] = (a == -kInfinity ? 0.0f : of_a * output_a[i]) + (b == -kInfinity ? 0.0f : of_b * output_b[i]);
    if (lse != nullptr) lse[row] = all.lse();
  }
}

}  // namespace quorum
