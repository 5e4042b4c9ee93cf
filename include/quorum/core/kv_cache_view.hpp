// Addressing of queries, keys and values: the only file that knows where a row lies in the caller's memory.
#pragma once

#include "quorum/core/config.hpp"
#include "quorum/core/element.hpp"

namespace quorum {

// Keys and values of one sequence in one layer, as they lie in the caller's cache; owns nothing.
//
// Shapes: row (token, kv_head) holds head_dim contiguous elements at `keys + token * key_token_stride + kv_head * key_head_stride`.
// Units: strides in bytes, any sign and order, so that NHD, HND and interleaved keys and values are all views.
struct KvCacheView {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  ElementType type = ElementType::f16;
  int num_tokens = 0;
  int64_t key_token_stride = 0;
  int64_t key_head_stride = 0;
  int64_t value_token_stride = 0;
  int64_t value_head_stride = 0;

  QUORUM_HOST_DEVICE const std::byte* key_row(int token, int kv_head) const {
    return keys + token * key_token_stride + kv_head * key_head_stride;
  }
  QUORUM_HOST_DEVICE const std::byte* value_row(int token, int kv_head) const {
    return values + token * value_token_stride + kv_head * value_head_stride;
  }

  // The first `count` tokens of this view.
  KvCacheView first(int count) const {
    KvCacheView view = *this;
    view.num_tokens = count;
    return view;
  }

  // keys, values: [num_tokens][num_kv_heads][head_dim], contiguous.
  template <class T>
  static KvCacheView nhd(const T* keys, const T* values, int num_tokens, int num_kv_heads, int head_dim) {
    const int64_t row = int64_t(head_dim) * int64_t(sizeof(T));
    return contiguous(keys, values, num_tokens, row * num_kv_heads, row);
  }

  // keys, values: [num_kv_heads][capacity_tokens][head_dim], contiguous; the first num_tokens of each head are filled.
  template <class T>
  static KvCacheView hnd(const T* keys, const T* values, int num_tokens, int capacity_tokens, int head_dim) {
    const int64_t row = int64_t(head_dim) * int64_t(sizeof(T));
    return contiguous(keys, values, num_tokens, row, row * capacity_tokens);
  }

 private:
  template <class T>
  static KvCacheView contiguous(const T* keys, const T* values, int num_tokens, int64_t token_stride, int64_t head_stride) {
    return {reinterpret_cast<const std::byte*>(keys),
            reinterpret_cast<const std::byte*>(values),
            ElementTypeOf<T>::value,
            num_tokens,
            token_stride,
            head_stride,
            token_stride,
            head_stride};
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
    const int64_t row = int64_t(head_dim) * int64_t(sizeof(T));
    return {reinterpret_cast<const std::byte*>(queries), ElementTypeOf<T>::value, num_rows, row * num_qo_heads, row};
  }
};

}  // namespace quorum
