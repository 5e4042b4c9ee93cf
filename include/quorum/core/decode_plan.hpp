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

// Whether single tokens are chosen rather than whole clusters.
QUORUM_HOST_DEVICE constexpr bool reads_tokens(const DecodeOptions& options, bool has_codes) {
  return options.unit != ReadUnit::clusters && has_codes;
}

// Whether tokens are chosen by code alone, so that what they weigh changes nothing.
QUORUM_HOST_DEVICE constexpr bool chooses_once(const DecodeOptions& options) {
  return (options.fixed_budget > 0 || options.target_error > 0.0f) && !options.certificate.enabled;
}

// Whether so many single tokens were chosen that dense attention is the cheaper way: rows at random come at about half the speed of a
// stream (docs/performance.md). num_read: tokens chosen and always read.
QUORUM_HOST_DEVICE constexpr bool dense_is_cheaper(const DecodeOptions& options, int num_read, int num_visible) {
  return options.unit == ReadUnit::automatic && options.fixed_budget == 0 && 2 * int64_t(num_read) >= num_visible;
}

}  // namespace quorum
