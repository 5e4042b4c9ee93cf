// A ggml attention node (GGML_OP_FLASH_ATTN_EXT) as quorum's views, and why one is not supported.
#pragma once

#include <cstring>
#include <optional>
#include <utility>

#include "ggml.h"
#include "quorum/core/attention_output.hpp"
#include "quorum/core/sequence_view.hpp"
#include "quorum/core/supports.hpp"

namespace quorum_ggml {

inline std::optional<quorum::ElementType> element_type(ggml_type type) {
  switch (type) {
    case GGML_TYPE_F32:
      return quorum::ElementType::f32;
    case GGML_TYPE_F16:
      return quorum::ElementType::f16;
    case GGML_TYPE_BF16:
      return quorum::ElementType::bf16;
    case GGML_TYPE_Q8_0:
      return quorum::ElementType::q8_0;
    default:
      return std::nullopt;
  }
}

// Shapes: q [head_dim, num_rows, num_qo_heads, num_streams], k and v [head_dim, num_cells, num_kv_heads, num_streams], mask
// [num_cells, num_rows, 1, num_streams], output [head_dim, num_qo_heads, num_rows, num_streams], the first dimension contiguous.
class AttentionNode {
 public:
  explicit AttentionNode(const ggml_tensor* op) : op_(op) {}

  const ggml_tensor* q() const { return op_->src[0]; }
  const ggml_tensor* k() const { return op_->src[1]; }
  const ggml_tensor* v() const { return op_->src[2]; }
  const ggml_tensor* mask() const { return op_->src[3]; }
  const ggml_tensor* sinks() const { return op_->src[4]; }

  int num_cells() const { return int(k()->ne[1]); }
  int num_rows() const { return int(q()->ne[1]); }  // of a stream
  int num_streams() const { return int(q()->ne[3]); }

  quorum::AttentionShape shape() const {
    quorum::AttentionShape shape;
    shape.num_qo_heads = int(q()->ne[2]);
    shape.num_kv_heads = int(k()->ne[2]);
    shape.head_dim = int(k()->ne[0]);
    shape.sm_scale = param(0);
    shape.logit_softcap = param(2);
    // ggml divides the scale by the cap before it multiplies, we after: the same number.
    if (sinks() != nullptr) shape.sink_logits = static_cast<const float*>(sinks()->data);
    return shape;
  }

  // Null if the node is supported, otherwise a sentence that names the argument and the rule.
  const char* unsupported_reason() const {
    const auto type = element_type(k()->type);
    if (!type) return "type_k: keys and values must be f32, f16, bf16 or q8_0";
    if (v()->type != k()->type) return "type_v: keys and values must be of the same type";
    if (q()->type != GGML_TYPE_F32 || op_->type != GGML_TYPE_F32) return "q: queries and output must be f32";
    if (q()->nb[0] != sizeof(float) || k()->nb[0] != ggml_type_size(k()->type) || v()->nb[0] != ggml_type_size(v()->type))
      return "layout: the elements of a row must be contiguous";
    if (!ggml_is_contiguous(op_)) return "layout: the output must be contiguous";
    if (k()->ne[3] != q()->ne[3] || v()->ne[3] != q()->ne[3]) return "layout: keys, values and queries must have as many streams";
    if (v()->ne[2] != k()->ne[2]) return "layout: keys and values must have as many heads";
    if (mask() != nullptr &&
        (mask()->type != GGML_TYPE_F16 || mask()->nb[0] != 2 || mask()->ne[2] != 1 || (mask()->ne[3] != 1 && mask()->ne[3] != q()->ne[3])))
      return "mask: it must be f16, one for all heads";
    if (sinks() != nullptr && sinks()->type != GGML_TYPE_F32) return "sinks: they must be f32";
    quorum::AttentionFeatures features;
    features.shape = shape();
    features.kv_type = *type;
    features.value_head_dim = int(v()->ne[0]);
    features.alibi_max_bias = param(1);
    features.mask = true;
    return quorum::unsupported_reason(features);
  }

  quorum::KvCacheView cache(int stream) const {
    quorum::KvCacheView kv;
    kv.keys = static_cast<const std::byte*>(k()->data) + stream * k()->nb[3];
    kv.values = static_cast<const std::byte*>(v()->data) + stream * v()->nb[3];
    kv.type = *element_type(k()->type);
    kv.num_tokens = num_cells();
    kv.key_token_stride = int64_t(k()->nb[1]);
    kv.key_head_stride = int64_t(k()->nb[2]);
    kv.value_token_stride = int64_t(v()->nb[1]);
    kv.value_head_stride = int64_t(v()->nb[2]);
    return kv;
  }
  quorum::QueryView queries(int stream) const {
    return {static_cast<const std::byte*>(q()->data) + stream * q()->nb[3], quorum::ElementType::f32, num_rows(), int64_t(q()->nb[1]),
            int64_t(q()->nb[2])};
  }
  quorum::AttentionOutput output(int stream) const {
    return {static_cast<float*>(op_->data) + int64_t(stream) * num_rows() * op_->ne[0] * op_->ne[1], nullptr};
  }
  // What tells one cache of the engine from another: the buffer that holds its layers' keys, and the number of the stream.
  std::pair<const void*, int64_t> cache_id(int stream) const {
    const ggml_tensor* whole = k()->view_src != nullptr ? k()->view_src : k();
    const auto first = static_cast<const char*>(k()->data) - static_cast<const char*>(whole->data);
    return {whole->buffer, k()->nb[3] > 0 ? first / int64_t(k()->nb[3]) + stream : stream};
  }
  // Null without a mask: every cell is visible.
  const quorum::f16* mask_row(int stream, int row) const {
    if (mask() == nullptr) return nullptr;
    const auto* data = static_cast<const std::byte*>(mask()->data);
    return reinterpret_cast<const quorum::f16*>(data + (mask()->ne[3] == 1 ? 0 : stream) * mask()->nb[3] + row * mask()->nb[1]);
  }

 private:
  float param(int i) const {
    float value;
    std::memcpy(&value, reinterpret_cast<const char*>(op_->op_params) + size_t(i) * sizeof(float), sizeof(value));
    return value;
  }

  const ggml_tensor* op_;
};

}  // namespace quorum_ggml
