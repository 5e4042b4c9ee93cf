// What a step reads, in bytes, from its report's counts.
#pragma once

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/core/decode_report.hpp"
#include "quorum/core/shape.hpp"

namespace quorum {

// How one KV head's keys, values and index lie in memory.
struct StoredHead {
  int head_dim = 0;
  ElementType type = ElementType::f16;
  IndexStorage storage = IndexStorage::int8;
  VarianceModel variance = VarianceModel::shared;  // of the options: what scoring reads
  int num_cluster_slots = 0;

  QUORUM_HOST_DEVICE int64_t row_bytes() const { return quorum::row_bytes(type, head_dim); }
  QUORUM_HOST_DEVICE int64_t dense_bytes(int num_tokens) const { return 2 * row_bytes() * num_tokens; }

  // Keys, values, drawn keys, lists, query metric, centroids, value means and codes of a sparse step. code_slots: tokens whose codes were
  // scanned, blocks of 16 counted as a whole; listed_from_index: tokens whose numbers were read from the index.
  QUORUM_HOST_DEVICE int64_t sparse_bytes(const HeadReport& report, int64_t listed_from_index, int64_t code_slots) const {
    const int64_t mean = storage == IndexStorage::int8 ? head_dim + 4 : 4 * int64_t(head_dim);
    const int64_t metric = 2 * int64_t(padded_dim(head_dim)) * head_dim + 12 * int64_t(head_dim);
    return row_bytes() * (int64_t(report.tokens_read) + report.tokens_scored + report.tokens_sampled) + 4 * listed_from_index + metric +
           num_cluster_slots * score_bytes_per_cluster(head_dim, storage, variance) + report.clusters_used * mean +
           code_slots * code_bytes_per_token(head_dim);
  }
};

}  // namespace quorum
