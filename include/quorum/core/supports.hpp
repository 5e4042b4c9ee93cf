// What an engine asks before it hands a layer over: whether attention of this kind is supported, and if not, why.
#pragma once

#include "quorum/core/element.hpp"
#include "quorum/core/shape.hpp"

namespace quorum {

namespace cuda {

// What kernels are compiled for.
constexpr bool has_kernels(int head_dim) { return head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256; }
constexpr bool has_kernels(ElementType kv_type) {
  return kv_type == ElementType::f16 || kv_type == ElementType::bf16 || kv_type == ElementType::fp8_e4m3;
}
inline constexpr const char* kKvTypeRule = "f16, bf16 or fp8_e4m3";
constexpr bool takes_queries(ElementType type) { return type == ElementType::f32 || type == ElementType::f16 || type == ElementType::bf16; }

}  // namespace cuda

enum class Backend : uint8_t { cpu, cuda };

// A layer and the way in which it is called.
struct AttentionFeatures {
  AttentionShape shape;
  ElementType kv_type = ElementType::f16;
  int num_rows = 1;             // query rows of a sequence in a call
  float alibi_max_bias = 0.0f;  // as in ggml; 0: no position biases
  bool additive_bias = false;   // a mask with entries other than 0 and -inf
  bool mask = false;            // a mask of bits
  bool encoder = false;         // no KV cache: every token attends to every other one
  int value_head_dim = 0;       // 0: shape.head_dim
};

// Null if `backend` supports it, otherwise one sentence that names the argument and the rule. Neither allocates nor throws.
inline const char* unsupported_reason(const AttentionFeatures& f, Backend backend = Backend::cpu) noexcept {
  const AttentionShape& shape = f.shape;
  if (shape.num_kv_heads < 1 || shape.num_qo_heads < 1 || shape.num_qo_heads % shape.num_kv_heads != 0)
    return "shape: num_qo_heads must be a positive multiple of num_kv_heads";
  if (shape.group_size() > kMaxGroupSize) return "shape: at most 16 query heads for a KV head are supported";
  if (shape.head_dim < 8 || shape.head_dim > kMaxHeadDim || shape.head_dim % 8 != 0)
    return "shape: head_dim must be a multiple of 8 from 8 to 512";
  if (shape.head_dim % block_elements(f.kv_type) != 0) return "kv_type: head_dim must be a multiple of 32 with q8_0";
  if (!std::isfinite(shape.sm_scale) || shape.sm_scale < 0.0f) return "shape: sm_scale must be finite and not negative";
  if (!std::isfinite(shape.logit_softcap) || shape.logit_softcap < 0.0f) return "shape: logit_softcap must be finite and not negative";
  if (shape.sliding_window < 0) return "shape: sliding_window must be at least 0";
  if (f.value_head_dim != 0 && f.value_head_dim != shape.head_dim) return "value_head_dim: keys and values must have the same length";
  if (f.alibi_max_bias != 0.0f) return "alibi_max_bias: position biases are not supported, it must be 0";
  if (f.additive_bias) return "additive_bias: masks must hide or show a token, biases are not supported";
  if (f.encoder) return "encoder: attention without a KV cache is not supported";
  if (f.num_rows < 1 || f.num_rows > 1024) return "num_rows: 1 to 1024 query rows of a sequence are supported, prefill is not";
  if (backend == Backend::cpu) return nullptr;
  if (!cuda::has_kernels(shape.head_dim)) return "shape: head_dim must be 64, 96, 128 or 256 on this device";
  if (!cuda::has_kernels(f.kv_type)) return "kv_type: must be f16, bf16 or fp8_e4m3 on this device";
  if (f.mask) return "mask: masks are not supported on this device";
  return nullptr;
}

}  // namespace quorum
