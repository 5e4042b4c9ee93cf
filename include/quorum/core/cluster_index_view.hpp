// The index as the kernels see it: pointers and sizes, nothing owned. docs/layouts.md draws the arrays.
#pragma once

#include "quorum/core/coded_rest.hpp"
#include "quorum/core/config.hpp"
#include "quorum/core/element.hpp"
#include "quorum/core/options.hpp"

namespace quorum {

// Clusters come in blocks of 16, the unit of scoring: a block is 64 bytes per four coordinates on every instruction set.
inline constexpr int kClusterBlock = 16;
// Centroids are stored as unsigned bytes around this zero point, as the dot product instructions want them.
inline constexpr int kCentroidZero = 128;

// Clusters of one KV head in one segment. Arrays over clusters are padded to whole blocks; padding clusters are empty.
struct SegmentView {
  int num_clusters = 0;
  const uint8_t* centroids = nullptr;          // [block][head_dim / 4][16][4], coordinate = scale * (byte - 128), mean key subtracted
  const float* centroid_scale = nullptr;       // [block][16]
  const float* centroids_f32 = nullptr;        // [num_clusters][head_dim], IndexStorage::f32 instead of the two above
  const float* spread = nullptr;               // [block][16], mean squared residual
  const float* size = nullptr;                 // [block][16], number of tokens; 0 in padding and empty clusters
  const int32_t* cluster_indptr = nullptr;     // [block * 16 + 1], first token of each cluster
  const int32_t* cluster_tokens = nullptr;     // [tokens of the segment], positions in the sequence
  const int8_t* value_means = nullptr;         // [num_clusters][head_dim]
  const float* value_mean_scale = nullptr;     // [block][16]
  const float* value_means_f32 = nullptr;      // [num_clusters][head_dim], IndexStorage::f32 instead of the two above
  const uint8_t* residual_variance = nullptr;  // [num_clusters][head_dim], VarianceModel::diagonal, coordinates of y
  const float* variance_scale = nullptr;       // [block][16]
  // Residual codes, IndexOptions::residual_codes. A cluster's tokens fill code blocks of their own, in the order of cluster_tokens.
  const uint8_t* codes = nullptr;        // [code block][code_lines(head_dim)][16][4]; see code_bit()
  const f16* code_scale = nullptr;       // [code block][16], mean magnitude of the residual's coordinates; 0 beyond the last token
  const int32_t* code_indptr = nullptr;  // [block * 16 + 1], first code block of each cluster
};

// Coordinates of one KV head's index: y = inverse * q; q' = rotation(signs * y); q.k = q'.x + q.mean_key for an indexed key k
// with coordinates x (algorithm.md eq. 3).
struct QueryMetricView {
  const f16* inverse = nullptr;        // [head_dim padded / 16][head_dim][16]: output block, input, output in block
  const float* signs = nullptr;        // [head_dim], of the random rotation
  const float* eigenvalues = nullptr;  // [head_dim padded], zero beyond; shared residual covariance, diagonal in y, trace 1
  const float* mean_key = nullptr;     // [head_dim padded], zero beyond; in the model's own coordinates
};

// Everything a decode step needs of one KV head. Cluster ids count through all segments, each starting at a multiple of 16.
struct ClusterHeadView {
  QueryMetricView metric;
  const SegmentView* segments = nullptr;   // [num_segments]
  const int32_t* segment_first = nullptr;  // [num_segments + 1], first cluster id
  const int32_t* block_segment = nullptr;  // [blocks], which segment a block of 16 ids lies in
  int num_segments = 0;
  ValueMoments moments;     // mean over all indexed tokens, with residual codes
  bool non_finite = false;  // an indexed key or value was NaN or Inf: attend densely

  QUORUM_HOST_DEVICE int num_cluster_slots() const { return num_segments == 0 ? 0 : segment_first[num_segments]; }
  QUORUM_HOST_DEVICE int num_blocks() const { return num_cluster_slots() / kClusterBlock; }
};

// Tokens that no cluster holds: a list, and everything that came after the index was last told. Always read.
struct AlwaysRead {
  const int32_t* listed = nullptr;  // [num_listed], as they were written: sinks, then those that wait to be clustered
  int num_listed = 0;
  int num_known = 0;  // tokens [0, num_known) are listed, in a cluster or erased

  // Number of them in a sequence of num_tokens >= num_known tokens, and which is the i-th.
  QUORUM_HOST_DEVICE int count(int num_tokens) const { return num_listed + num_tokens - num_known; }
  QUORUM_HOST_DEVICE int32_t token(int i) const { return i < num_listed ? listed[i] : num_known + i - num_listed; }
};

// Index of one sequence in one layer. Every live token is in exactly one cluster per KV head, or always read.
struct ClusterIndexView {
  const ClusterHeadView* heads = nullptr;  // [num_kv_heads]
  int num_kv_heads = 0;
  int head_dim = 0;
  int num_indexed = 0;  // tokens in clusters
  int indexed_end = 0;  // no cluster holds a token at or beyond
  AlwaysRead always;
  const uint64_t* live = nullptr;  // [ceil(num_known / 64)], bit t % 64 of word t / 64; null: no token has been erased
  IndexStorage storage = IndexStorage::int8;
  VarianceModel variance = VarianceModel::shared;
  bool residual_codes = false;

  QUORUM_HOST_DEVICE bool empty() const { return num_indexed == 0; }
};

// One cluster, found by its id.
struct ClusterRef {
  const SegmentView* segment = nullptr;
  int local = 0;  // cluster within the segment

  QUORUM_HOST_DEVICE int size() const { return int(segment->size[local]); }  // without a look at the list of tokens
  QUORUM_HOST_DEVICE int first() const { return segment->cluster_indptr[local]; }
  QUORUM_HOST_DEVICE int num_tokens() const { return segment->cluster_indptr[local + 1] - segment->cluster_indptr[local]; }
  QUORUM_HOST_DEVICE const int32_t* tokens() const { return segment->cluster_tokens + first(); }
};

QUORUM_HOST_DEVICE inline ClusterRef cluster_at(const ClusterHeadView& head, int cluster) {
  const int segment = head.block_segment[cluster / kClusterBlock];
  return {head.segments + segment, cluster - head.segment_first[segment]};
}

// Sizes of the 16 clusters of a block of ids.
QUORUM_HOST_DEVICE inline const float* block_sizes(const ClusterHeadView& head, int block) {
  const ClusterRef first = cluster_at(head, block * kClusterBlock);
  return first.segment->size + first.local;
}

// Bytes that scoring reads per cluster: centroid and scale, size, and the second-order term.
constexpr int64_t score_bytes_per_cluster(int head_dim, IndexStorage storage, VarianceModel variance) {
  const int64_t centroid = storage == IndexStorage::int8 ? head_dim + 4 : 4 * head_dim;
  const int64_t second_order = variance == VarianceModel::none ? 0 : variance == VarianceModel::shared ? 4 : head_dim + 4;
  return centroid + 4 + second_order;
}

}  // namespace quorum
