// Addressing of queries, keys and values: the only file that knows where a row lies in the caller's memory.
#pragma once

#include "quorum/core/config.hpp"
#include "quorum/core/element.hpp"
#include "quorum/core/error.hpp"

namespace quorum {

// Keys and values of one sequence in one layer, as they lie in the caller's cache; owns nothing.
//
// Shapes: row (token, kv_head) holds head_dim contiguous elements at `keys + token * key_token_stride + kv_head * key_head_stride`;
// with pages at `keys + pages[token / page_size] * key_page_stride + (token % page_size) * key_token_stride + kv_head * key_head_stride`.
// Values likewise. In fp8_e4m3 an element is what its row holds times the scale of its KV head. Units: strides in bytes, any sign and
// order, so that NHD, HND and interleaved keys and values are all views. Caller: rows are aligned to their element, q8_0 to 2 bytes; page
// numbers and scales are not checked.
struct KvCacheView {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  ElementType type = ElementType::f16;
  int num_tokens = 0;
  int64_t key_token_stride = 0;
  int64_t key_head_stride = 0;
  int64_t value_token_stride = 0;
  int64_t value_head_stride = 0;
  const int32_t* pages = nullptr;  // [ceil(num_tokens / page_size)], the order of tokens; null: one run of tokens
  int page_size = 0;               // tokens of a page; any with pages null
  int64_t key_page_stride = 0;
  int64_t value_page_stride = 0;
  const float* key_scales = nullptr;    // [num_kv_heads], with fp8_e4m3 only; null: 1
  const float* value_scales = nullptr;  // the same

  QUORUM_HOST_DEVICE const std::byte* key_row(int token, int kv_head) const {
    return keys + token_offset(token, key_page_stride, key_token_stride) + kv_head * key_head_stride;
  }
  QUORUM_HOST_DEVICE const std::byte* value_row(int token, int kv_head) const {
    return values + token_offset(token, value_page_stride, value_token_stride) + kv_head * value_head_stride;
  }

  QUORUM_HOST_DEVICE float key_scale(int kv_head) const { return key_scales == nullptr ? 1.0f : key_scales[kv_head]; }
  QUORUM_HOST_DEVICE float value_scale(int kv_head) const { return value_scales == nullptr ? 1.0f : value_scales[kv_head]; }

  // The first `count` tokens of this view.
  KvCacheView first(int count) const {
    KvCacheView view = *this;
    view.num_tokens = count;
    return view;
  }

  // keys, values: [num_tokens][num_kv_heads][head_dim], contiguous.
  template <class T>
  static KvCacheView nhd(const T* keys, const T* values, int num_tokens, int num_kv_heads, int head_dim) {
    const int64_t row = row_bytes(ElementTypeOf<T>::value, head_dim);
    return contiguous(keys, values, num_tokens, row * num_kv_heads, row);
  }

  // keys, values: [num_kv_heads][capacity_tokens][head_dim], contiguous; the first num_tokens of each head are filled.
  template <class T>
  static KvCacheView hnd(const T* keys, const T* values, int num_tokens, int capacity_tokens, int head_dim) {
    const int64_t row = row_bytes(ElementTypeOf<T>::value, head_dim);
    return contiguous(keys, values, num_tokens, row, row * capacity_tokens);
  }

 private:
  // Divided without a sign, which takes fewer instructions; tokens are never negative.
  QUORUM_HOST_DEVICE int64_t token_offset(int token, int64_t page_stride, int64_t token_stride) const {
    if (pages == nullptr) return token * token_stride;
    const uint32_t page = uint32_t(token) / uint32_t(page_size), in_page = uint32_t(token) % uint32_t(page_size);
    return pages[page] * page_stride + in_page * token_stride;
  }
  template <class T>
  static KvCacheView contiguous(const T* keys, const T* values, int num_tokens, int64_t token_stride, int64_t head_stride) {
    KvCacheView view;
    view.keys = reinterpret_cast<const std::byte*>(keys);
    view.values = reinterpret_cast<const std::byte*>(values);
    view.type = ElementTypeOf<T>::value;
    view.num_tokens = num_tokens;
    view.key_token_stride = view.value_token_stride = token_stride;
    view.key_head_stride = view.value_head_stride = head_stride;
    return view;
  }
};

// Query vectors, one row per (row, qo_head); a row is a sequence when decoding and a token when building an index.
struct QueryView {
  const std::byte* data = nullptr;
  ElementType type = ElementType::f32;
  int num_rows = 0;
  int64_t row_stride = 0;   // bytes
  int64_t head_stride = 0;  // bytes

  QUORUM_HOST_DEVICE const std::byte* row(int index, int qo_head) const { return data + index * row_stride + qo_head * head_stride; }

  // queries: [num_rows][num_qo_heads][head_dim], contiguous.
  template <class T>
  static QueryView contiguous(const T* queries, int num_rows, int num_qo_heads, int head_dim) {
    const int64_t row = row_bytes(ElementTypeOf<T>::value, head_dim);
    return {reinterpret_cast<const std::byte*>(queries), ElementTypeOf<T>::value, num_rows, row * num_qo_heads, row};
  }
};

// False if there are scales that no element would be multiplied by. Kv: KvCacheView or PagedKvView.
template <class Kv>
constexpr bool scales_fit(const Kv& kv) {
  return kv.type == ElementType::fp8_e4m3 || (kv.key_scales == nullptr && kv.value_scales == nullptr);
}

// Errors: Error(invalid_argument) unless rows of head_dim elements can lie as the view says. Pointers and num_tokens are not looked at.
inline void validate(const KvCacheView& kv, int head_dim, const char* function) {
  require(kv.pages == nullptr || kv.page_size >= 1, function, "kv.page_size", "at least 1 with pages", kv.page_size);
  require(scales_fit(kv), function, "kv.key_scales and kv.value_scales", "null unless keys and values are fp8_e4m3", element_name(kv.type));
  require(head_dim % block_elements(kv.type) == 0, function, "shape.head_dim", "a multiple of 32 with keys and values in q8_0", head_dim);
}
inline void validate(const QueryView& queries, int head_dim, const char* function) {
  require(head_dim % block_elements(queries.type) == 0, function, "shape.head_dim", "a multiple of 32 with queries in q8_0", head_dim);
}

}  // namespace quorum
