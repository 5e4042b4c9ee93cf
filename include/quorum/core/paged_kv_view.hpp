// Keys and values of a batch, in pages or one run of tokens per sequence: the forms in which engines keep them.
#pragma once

#include "quorum/core/kv_cache_view.hpp"

namespace quorum {

// Where the pages of a batch lie; owns nothing. A cache without pages is one page a sequence.
//
// Shapes: the row of a token and KV head is at `keys + page * key_page_stride + token_in_page * key_token_stride +
// kv_head * key_head_stride`, elements in fp8_e4m3 times the scale of the KV head. Units: strides in bytes. Memory: all pointers on the
// device that uses the view.
struct PagedKvView {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  ElementType type = ElementType::f16;
  int64_t key_page_stride = 0;
  int64_t key_token_stride = 0;
  int64_t key_head_stride = 0;
  int64_t value_page_stride = 0;
  int64_t value_token_stride = 0;
  int64_t value_head_stride = 0;
  const int32_t* num_tokens = nullptr;    // [num_sequences]; vLLM's seq_lens
  const int32_t* page_indices = nullptr;  // [..]; null: page s is all of sequence s
  const int32_t* page_indptr = nullptr;   // [num_sequences + 1], FlashInfer's form; null: rows of pages_per_sequence, vLLM's block_table
  int pages_per_sequence = 0;
  int page_size = 0;                    // tokens of a page; any with page_indices null
  const float* key_scales = nullptr;    // [num_kv_heads], with fp8_e4m3 only; null: 1
  const float* value_scales = nullptr;  // the same

  // Where a token is, before the KV head is known: both offsets from the page's.
  struct Place {
    int64_t page = 0;
    int64_t token = 0;  // within the page
  };
  QUORUM_HOST_DEVICE Place place(int sequence, int token) const {
    if (page_indices == nullptr) return {sequence, token};
    return {pages_of(sequence)[token / page_size], token % page_size};
  }
  // The pages of a sequence, in the order of its tokens. Only with page_indices.
  QUORUM_HOST_DEVICE const int32_t* pages_of(int sequence) const {
    return page_indices + (page_indptr != nullptr ? int64_t(page_indptr[sequence]) : int64_t(sequence) * pages_per_sequence);
  }
  QUORUM_HOST_DEVICE const std::byte* key_row(Place place, int kv_head) const {
    return keys + place.page * key_page_stride + place.token * key_token_stride + kv_head * key_head_stride;
  }
  QUORUM_HOST_DEVICE const std::byte* value_row(Place place, int kv_head) const {
    return values + place.page * value_page_stride + place.token * value_token_stride + kv_head * value_head_stride;
  }

  QUORUM_HOST_DEVICE float key_scale(int kv_head) const { return key_scales == nullptr ? 1.0f : key_scales[kv_head]; }
  QUORUM_HOST_DEVICE float value_scale(int kv_head) const { return value_scales == nullptr ? 1.0f : value_scales[kv_head]; }

  // One sequence of the batch, without copying; num_tokens and page_indices are read here, so they must be in the caller's memory.
  KvCacheView sequence(int s) const {
    KvCacheView view{keys, values, type, num_tokens[s], key_token_stride, key_head_stride, value_token_stride, value_head_stride};
    view.key_scales = key_scales;
    view.value_scales = value_scales;
    if (page_indices == nullptr) {
      view.keys += s * key_page_stride;
      view.values += s * value_page_stride;
      return view;
    }
    view.pages = pages_of(s);
    view.page_size = page_size;
    view.key_page_stride = key_page_stride;
    view.value_page_stride = value_page_stride;
    return view;
  }

  // keys, values: [num_sequences][capacity_tokens][num_kv_heads][head_dim], contiguous.
  template <class T>
  static PagedKvView nhd(const T* keys, const T* values, const int32_t* num_tokens, int64_t capacity_tokens, int num_kv_heads,
                         int head_dim) {
    const int64_t row = row_bytes(ElementTypeOf<T>::value, head_dim);
    return contiguous(keys, values, num_tokens, capacity_tokens * num_kv_heads * row, num_kv_heads * row, row);
  }
  // keys, values: [num_sequences][num_kv_heads][capacity_tokens][head_dim], contiguous.
  template <class T>
  static PagedKvView hnd(const T* keys, const T* values, const int32_t* num_tokens, int64_t capacity_tokens, int num_kv_heads,
                         int head_dim) {
    const int64_t row = row_bytes(ElementTypeOf<T>::value, head_dim);
    return contiguous(keys, values, num_tokens, capacity_tokens * num_kv_heads * row, row, capacity_tokens * row);
  }

 private:
  template <class T>
  static PagedKvView contiguous(const T* keys, const T* values, const int32_t* num_tokens, int64_t page, int64_t token, int64_t head) {
    PagedKvView view;
    view.keys = reinterpret_cast<const std::byte*>(keys);
    view.values = reinterpret_cast<const std::byte*>(values);
    view.type = ElementTypeOf<T>::value;
    view.key_page_stride = view.value_page_stride = page;
    view.key_token_stride = view.value_token_stride = token;
    view.key_head_stride = view.value_head_stride = head;
    view.num_tokens = num_tokens;
    return view;
  }
};

// Lengths of sequences from FlashInfer's form, in which the last page alone may be partly filled; a sequence without pages has none.
//
// Shapes: page_indptr [num_sequences + 1]; last_page_len and num_tokens [num_sequences], which may be the same array.
inline void count_tokens(const int32_t* page_indptr, const int32_t* last_page_len, int page_size, int num_sequences, int32_t* num_tokens) {
  for (int s = 0; s < num_sequences; ++s) {
    const int32_t num_pages = page_indptr[s + 1] - page_indptr[s];
    num_tokens[s] = num_pages > 0 ? (num_pages - 1) * page_size + last_page_len[s] : 0;
  }
}

}  // namespace quorum
