// What to attend: lists of tokens per KV head, the form in which a choice leaves the library and enters kernels.
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// Tokens chosen for each (sequence, KV head); row r = sequence * num_kv_heads + kv_head. Each token once, ascending positions.
//
// Two forms: compressed rows (indptr) or padded rows of `capacity` tokens with counts, -1 beyond (indptr null).
struct SelectionView {
  const int32_t* tokens = nullptr;  // [indptr[rows]], or [rows][capacity]
  const int64_t* indptr = nullptr;  // [rows + 1], or null
  const int32_t* counts = nullptr;  // [rows], padded form
  int64_t capacity = 0;             // padded form
  int num_sequences = 0;
  int num_kv_heads = 0;

  QUORUM_HOST_DEVICE int num_tokens(int sequence, int kv_head) const {
    const int64_t r = int64_t(sequence) * num_kv_heads + kv_head;
    return indptr != nullptr ? int(indptr[r + 1] - indptr[r]) : counts[r];
  }
  QUORUM_HOST_DEVICE const int32_t* row(int sequence, int kv_head) const {
    const int64_t r = int64_t(sequence) * num_kv_heads + kv_head;
    return tokens + (indptr != nullptr ? indptr[r] : r * capacity);
  }
};

// Where select writes: padded rows in the caller's memory.
struct SelectionOutput {
  int32_t* tokens = nullptr;  // [num_sequences][num_kv_heads][capacity], -1 beyond the count
  int32_t* counts = nullptr;  // [num_sequences][num_kv_heads]
  int64_t capacity = 0;       // tokens a row can hold

  SelectionView view(int num_sequences, int num_kv_heads) const { return {tokens, nullptr, counts, capacity, num_sequences, num_kv_heads}; }
};

}  // namespace quorum
