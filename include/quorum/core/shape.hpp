// The shape of an attention layer and the mapping between query heads and KV heads.
#pragma once

#include <cmath>

#include "quorum/core/config.hpp"
#include "quorum/core/error.hpp"

namespace quorum {

inline constexpr int kMaxHeadDim = 512;
inline constexpr int kMaxGroupSize = 16;

// Heads and vector length of one attention layer (MHA, GQA and MQA by the ratio of the two head counts).
struct AttentionShape {
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;       // length of a query, key or value vector: a multiple of 8, 8..512
  float sm_scale = 0.0f;  // factor of q.k before the softmax; 0 means 1 / sqrt(head_dim)
  // Soft-capping: a score becomes cap * tanh(score / cap), after sm_scale and before masks; 0: none.
  float logit_softcap = 0.0f;
  // A row sees only so many of the newest tokens up to its own; 0: all of them.
  int sliding_window = 0;
  // Attention sinks: [num_qo_heads], a logit for each query head that joins the softmax's denominator and has no value; null: none. Kept by
  // the caller. Output and lse contain it; targets, reports and the certificate are of the tokens alone.
  const float* sink_logits = nullptr;

  QUORUM_HOST_DEVICE constexpr int group_size() const { return num_qo_heads / num_kv_heads; }
  QUORUM_HOST_DEVICE constexpr int kv_head_of(int qo_head) const { return qo_head / group_size(); }
  float softmax_scale() const { return sm_scale != 0.0f ? sm_scale : 1.0f / std::sqrt(float(head_dim)); }
};

// Length of a row of float scratch memory for one vector, in elements.
constexpr int padded_dim(int head_dim) { return int(round_up(head_dim, kRowAlignment)); }

// Errors: Error(invalid_argument) naming the member, its rule and its value.
inline void validate(const AttentionShape& shape, const char* function) {
  require(shape.num_kv_heads >= 1, function, "shape.num_kv_heads", "at least 1", shape.num_kv_heads);
  require(shape.num_qo_heads >= 1, function, "shape.num_qo_heads", "at least 1", shape.num_qo_heads);
  require(shape.num_qo_heads % shape.num_kv_heads == 0, function, "shape.num_qo_heads", "a multiple of shape.num_kv_heads",
          shape.num_qo_heads);
  require(shape.group_size() <= kMaxGroupSize, function, "shape.num_qo_heads / shape.num_kv_heads", "at most 16", shape.group_size());
  require(shape.head_dim >= 8 && shape.head_dim <= kMaxHeadDim && shape.head_dim % 8 == 0, function, "shape.head_dim",
          "a multiple of 8 from 8 to 512", shape.head_dim);
  require(std::isfinite(shape.sm_scale) && shape.sm_scale >= 0.0f, function, "shape.sm_scale", "finite and not negative", shape.sm_scale);
  require(std::isfinite(shape.logit_softcap) && shape.logit_softcap >= 0.0f, function, "shape.logit_softcap", "finite and not negative",
          shape.logit_softcap);
  require(shape.sliding_window >= 0, function, "shape.sliding_window", "at least 0", shape.sliding_window);
}

}  // namespace quorum
