// What a cluster's tokens are expected to weigh, from its centroid and its spread alone (algorithm.md eq. 5).
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// How the spread of scores inside a cluster is modelled. Bytes a cluster: none 0, shared 4, diagonal head_dim + 4.
enum class VarianceModel : uint8_t {
  none,      // exp(q.c) alone: under-estimates (Jensen); kept to compare
  shared,    // one covariance for the head, one scalar a cluster
  diagonal,  // one variance per coordinate and cluster, int8 with a row scale
};

// Log of the expected weight of one token of a cluster: score of the centroid plus half the variance of the scores.
// Exact for Gaussian clusters. V is float or a SIMD batch of clusters.
template <class V>
QUORUM_HOST_DEVICE QUORUM_ALWAYS_INLINE V token_log_weight(V centroid_score, V spread, V half_query_variance) {
  return centroid_score + spread * half_query_variance;
}

// Expected weight of a whole cluster, in units of exp(reference).
template <class V>
QUORUM_HOST_DEVICE QUORUM_ALWAYS_INLINE V cluster_weight(V size, V exp_token_log_weight) {
  return size * exp_token_log_weight;
}

}  // namespace quorum
