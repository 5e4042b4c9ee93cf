// Keys and values of a batch, in pages or one run of tokens per sequence: the forms in which engines keep them.
#pragma once

#include "quorum/core/kv_cache_view.hpp"

namespace quorum {

// Where the pages of a batch lie; owns nothing. A cache without pages is one page a sequence.
//
// Shapes: the row of a token and KV head is at `keys + page * key_page_stride + token_in_page * key_token_stride +
// kv_head * key_head_stride`. Units: strides in bytes. Memory: all pointers on the device that uses the view.
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
  int page_size = 0;  // tokens of a page; any with page_indices null

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

  // keys, values: [num_sequences][capacity_tokens][num_kv_heads][head_dim], contiguous.
  template <class T>
  static PagedKvView nhd(const T* keys, const T* values, const int32_t* num_tokens, int64_t capacity_tokens, int num_kv_heads,
                         int head_dim) {
    const int64_t row = int64_t(head_dim) * int64_t(sizeof(T));
    return contiguous(keys, values, num_tokens, capacity_tokens * num_kv_heads * row, num_kv_heads * row, row);
  }
  // keys, values: [num_sequences][num_kv_heads][capacity_tokens][head_dim], contiguous.
  template <class T>
  static PagedKvView hnd(const T* keys, const T* values, const int32_t* num_tokens, int64_t capacity_tokens, int num_kv_heads,
                         int head_dim) {
    const int64_t row = int64_t(head_dim) * int64_t(sizeof(T));
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

}  // namespace quorum
