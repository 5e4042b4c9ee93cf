// How tokens become clusters and rows become bytes: what every backend that builds an index shares.
#pragma once

#include <cmath>

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/core/random.hpp"

namespace quorum {

// Which tokens of a sequence that is indexed for the first time lie in clusters: all but sinks and window, in the order of writing.
struct IndexedTokens {
  int first = 0;  // position of the first, the number of sinks
  int count = 0;
  int num_tokens = 0;  // of the sequence

  static constexpr IndexedTokens of(int num_tokens, const IndexOptions& options) {
    const int sinks = num_tokens < options.num_sink_tokens ? num_tokens : options.num_sink_tokens;
    const int rest = num_tokens - sinks - options.window_tokens;
    return {sinks, rest > 0 ? rest : 0, num_tokens};
  }
  // The others, as AlwaysRead lists them.
  QUORUM_HOST_DEVICE constexpr int num_listed() const { return num_tokens - count; }
  QUORUM_HOST_DEVICE constexpr int32_t listed(int i) const { return i < first ? i : i + count; }
};

// Clusters of a segment. Whole blocks where there are several: what would fill up the last block is scored like any other.
QUORUM_HOST_DEVICE constexpr int num_clusters_for(int num_tokens, int cluster_size) {
  const int clusters = num_tokens / cluster_size;
  return clusters > kClusterBlock ? int(round_up(clusters, kClusterBlock)) : clusters > 1 ? clusters : 1;
}

// Row that a cluster starts from: rows at uniform stride, the first and the last among them. num_clusters <= num_rows.
QUORUM_HOST_DEVICE constexpr int seed_row(int cluster, int num_rows, int num_clusters) {
  return num_clusters == 1 ? 0 : int(int64_t(cluster) * (num_rows - 1) / (num_clusters - 1));
}

// Sign of a coordinate in the random rotation, one stream a KV head.
QUORUM_HOST_DEVICE constexpr float rotation_sign(uint64_t seed, int kv_head, int coordinate) {
  return uniform_unit(seed + uint64_t(kv_head), uint64_t(coordinate)) < 0.5f ? -1.0f : 1.0f;
}

// Scale of an int8 row from its largest magnitude, which becomes 127 steps; of a row of zeros, something positive.
QUORUM_HOST_DEVICE constexpr float int8_scale(float largest) { return (largest > 1e-12f ? largest : 1e-12f) / 127.0f; }
// Steps to the nearest, halves away from zero.
QUORUM_HOST_DEVICE inline int int8_steps(float x, float scale) { return int(lroundf(x / scale)); }

// Byte of a coordinate in a block of centroids, of the cluster at `place` in the block.
QUORUM_HOST_DEVICE constexpr int centroid_byte(int coordinate, int place) {
  return coordinate / 4 * 4 * kClusterBlock + place * 4 + coordinate % 4;
}

// The query metric has the eigenvectors of the queries' second moment and the square roots of its eigenvalues, in units of their mean and
// shrunk (algorithm.md eq. 3). The eigenvalues themselves would make queries white: what a prompt asked is not all that will be asked, and
// along directions that it did not use, white coordinates let single heavy keys disappear in clusters (decision 14).
template <class T>
QUORUM_HOST_DEVICE T metric_root(T eigenvalue) {
  using std::sqrt;
  return eigenvalue > T(0) ? sqrt(eigenvalue) : T(0);
}
template <class T>
QUORUM_HOST_DEVICE constexpr T metric_eigenvalue(T root, T mean_root, T shrinkage) {
  return (T(1) - shrinkage) * root / mean_root + shrinkage;
}

// A factor of the query metric of each KV head (algorithm.md eq. 3), for builds that are given one: z = (k - mean_key) * forward, and
// y = inverse * q for the query. inverse is the inverse of forward. Null: both are the identity, distances are plain L2.
//
// Shapes: both [num_kv_heads][head_dim][head_dim], contiguous, finite.
struct MetricFactorView {
  const float* forward = nullptr;  // [kv_head][key coordinate][coordinate of z]
  const float* inverse = nullptr;  // [kv_head][coordinate of y][query coordinate]
};

}  // namespace quorum
