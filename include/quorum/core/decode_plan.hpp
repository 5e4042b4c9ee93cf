// Rules of a step that are settled before anything is computed.
#pragma once

#include "quorum/core/decode_report.hpp"
#include "quorum/core/options.hpp"

namespace quorum {

// What the first decision needs to know of one KV head.
struct IndexedHead {
  bool indexed = false;     // an index is there and holds tokens
  bool non_finite = false;  // one of its keys or values is NaN or Inf
  int num_cluster_slots = 0;
};

// Which way a KV head of a sequence of num_tokens tokens goes before anything is computed; DecodePath::sparse if nothing forbids it.
QUORUM_HOST_DEVICE inline DecodePath first_path(const IndexedHead& head, int num_tokens, const DecodeOptions& options,
                                                int max_cluster_slots) {
  if (!head.indexed || num_tokens <= options.dense_below) return DecodePath::dense_by_length;
  if (options.target_ratio >= 1.0f && options.fixed_budget == 0 && options.target_error == 0.0f) return DecodePath::dense_by_target;
  if (head.non_finite) return DecodePath::dense_by_numerics;
  if (head.num_cluster_slots > max_cluster_slots) return DecodePath::dense_by_capacity;
  return DecodePath::sparse;
}

}  // namespace quorum
