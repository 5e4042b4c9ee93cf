// One immutable run of indexed tokens: its clusters for every KV head. Segments are shared between copies of an index.
#pragma once

#include <vector>

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/cpu/aligned_vector.hpp"

namespace quorum::cpu {

// Clusters of one KV head in one segment; see SegmentView for the layouts.
struct HeadSegment {
  int num_clusters = 0;
  bool non_finite = false;  // a key or value of the segment is NaN or Inf
  ValueMoments moments;     // with residual codes
  AlignedVector<uint8_t> centroids;
  AlignedVector<float> centroid_scale;
  AlignedVector<float> centroids_f32;
  AlignedVector<float> spread;
  AlignedVector<float> size;
  AlignedVector<int32_t> cluster_indptr;
  AlignedVector<int32_t> cluster_tokens;
  AlignedVector<int8_t> value_means;
  AlignedVector<float> value_mean_scale;
  AlignedVector<float> value_means_f32;
  AlignedVector<uint8_t> residual_variance;
  AlignedVector<float> variance_scale;
  AlignedVector<uint8_t> codes;
  AlignedVector<f16> code_scale;
  AlignedVector<int32_t> code_indptr;

  SegmentView view() const {
    const auto pointer = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    SegmentView view;
    view.num_clusters = num_clusters;
    view.centroids = pointer(centroids);
    view.centroid_scale = pointer(centroid_scale);
    view.centroids_f32 = pointer(centroids_f32);
    view.spread = pointer(spread);
    view.size = pointer(size);
    view.cluster_indptr = pointer(cluster_indptr);
    view.cluster_tokens = pointer(cluster_tokens);
    view.value_means = pointer(value_means);
    view.value_mean_scale = pointer(value_mean_scale);
    view.value_means_f32 = pointer(value_means_f32);
    view.residual_variance = pointer(residual_variance);
    view.variance_scale = pointer(variance_scale);
    view.codes = pointer(codes);
    view.code_scale = pointer(code_scale);
    view.code_indptr = pointer(code_indptr);
    return view;
  }
  int64_t bytes() const {
    return content_bytes(centroids) + content_bytes(centroid_scale) + content_bytes(centroids_f32) + content_bytes(spread) +
           content_bytes(size) + content_bytes(cluster_indptr) + content_bytes(cluster_tokens) + content_bytes(value_means) +
           content_bytes(value_mean_scale) + content_bytes(value_means_f32) + content_bytes(residual_variance) +
           content_bytes(variance_scale) + content_bytes(codes) + content_bytes(code_scale) + content_bytes(code_indptr);
  }
};

struct Segment {
  int begin_token = 0;
  int end_token = 0;
  std::vector<HeadSegment> heads;  // [num_kv_heads]

  int num_tokens() const { return end_token - begin_token; }
  int64_t bytes() const {
    int64_t total = 0;
    for (const HeadSegment& head : heads) total += head.bytes();
    return total;
  }
};

}  // namespace quorum::cpu
