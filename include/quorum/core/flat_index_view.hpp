// The index of one KV head as one run of clusters: the form in which it lies on a GPU. docs/layouts.md draws the arrays.
#pragma once

#include "quorum/core/cluster_index_view.hpp"

namespace quorum {

// Clusters of all segments side by side, ids as in ClusterHeadView; cluster_indptr and code_indptr count through all of them. Rows of the
// arrays that are not in blocks of 16 exist for padding clusters too.
struct FlatHeadView {
  QueryMetricView metric;
  SegmentView clusters;  // num_clusters: slots, a multiple of 16
  ValueMoments moments;
  AlwaysRead always;               // the list on the device too
  int32_t num_indexed = 0;         // tokens in clusters
  int32_t indexed_end = 0;         // no cluster holds a token at or beyond
  const uint64_t* live = nullptr;  // as in ClusterIndexView; erased tokens are in no cluster
  bool non_finite = false;         // an indexed key or value was NaN or Inf: attend densely
  bool residual_codes = false;

  QUORUM_HOST_DEVICE bool empty() const { return num_indexed == 0; }
  QUORUM_HOST_DEVICE int num_blocks() const { return clusters.num_clusters / kClusterBlock; }
  // Without clusters everything is read.
  QUORUM_HOST_DEVICE int num_always(int num_tokens) const { return empty() ? num_tokens : always.count(num_tokens); }
  QUORUM_HOST_DEVICE int always_token(int i) const { return empty() ? i : always.token(i); }
};

}  // namespace quorum
