// What a cluster's tokens are expected to weigh, from its centroid and its spread alone (algorithm.md eq. 5).
#pragma once

#include <algorithm>
#include <cmath>

#include "quorum/core/config.hpp"

namespace quorum {

// How the spread of scores inside a cluster is modelled. Bytes a cluster: none 0, shared 4, diagonal head_dim + 4.
enum class VarianceModel : uint8_t {
  none,      // exp(q.c) alone: under-estimates (Jensen); kept to compare
  shared,    // one covariance for the head, one scalar a cluster
  diagonal,  // one variance per coordinate and cluster, int8 with a row scale
};

// What a variance of scores adds to the log of the mean weight of n tokens, from half that variance: as much again for normal scores, but n
// tokens cannot realise it beyond a half variance of ln n; then the heaviest of them rules, and the sum grows with the standard deviation
// only (Derrida's random energy model, Phys. Rev. B 24, 2613, 1981). ln n is taken for 3: clusters of 20.
template <class V>
QUORUM_HOST_DEVICE QUORUM_ALWAYS_INLINE V limited_half_variance(V half_variance) {
  using std::max, std::min, std::sqrt;
  const V limit(3.0f);
  return min(half_variance, limit) + V(2.0f) * sqrt(limit * max(half_variance, limit)) - V(6.0f);
}

// Log of the expected weight of one token of a cluster: score of the centroid plus half the variance of the scores. Exact for Gaussian
// clusters. Where a cluster is read as a whole or not at all, too much is the safe side: one heavy token among others is not missed.
// V is float or a SIMD batch of clusters.
template <class V>
QUORUM_HOST_DEVICE QUORUM_ALWAYS_INLINE V token_log_weight(V centroid_score, V spread, V half_query_variance) {
  return centroid_score + spread * half_query_variance;
}

// The same with the limited half variance: where codes look inside, clusters of large spread must not hide the others.
template <class V>
QUORUM_HOST_DEVICE QUORUM_ALWAYS_INLINE V limited_token_log_weight(V centroid_score, V spread, V half_query_variance) {
  return centroid_score + limited_half_variance(spread * half_query_variance);
}

// Expected weight of a whole cluster, in units of exp(reference).
template <class V>
QUORUM_HOST_DEVICE QUORUM_ALWAYS_INLINE V cluster_weight(V size, V exp_token_log_weight) {
  return size * exp_token_log_weight;
}

}  // namespace quorum
