// What to attend: lists of tokens per KV head, the form in which a choice leaves the library and enters kernels.
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// Tokens chosen for each (sequence, KV head), compressed rows. Row r = sequence * num_kv_heads + kv_head holds
// tokens[indptr[r] .. indptr[r + 1]), positions in the sequence, each once, ascending.
struct SelectionView {
  const int64_t* indptr = nullptr;  // [num_sequences * num_kv_heads + 1]
  const int32_t* tokens = nullptr;  // [indptr[last]]
  int num_sequences = 0;
  int num_kv_heads = 0;

  QUORUM_HOST_DEVICE int num_tokens(int sequence, int kv_head) const {
    const int64_t row = int64_t(sequence) * num_kv_heads + kv_head;
    return int(indptr[row + 1] - indptr[row]);
  }
  QUORUM_HOST_DEVICE const int32_t* row(int sequence, int kv_head) const {
    return tokens + indptr[int64_t(sequence) * num_kv_heads + kv_head];
  }
};

}  // namespace quorum
