// Tokens that were clustered together: their clusters for every KV head. Immutable, and shared between copies of an index.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/core/residual_code.hpp"
#include "quorum/cpu/aligned_vector.hpp"

namespace quorum::cpu {

// What the lengths of a segment's arrays follow from.
struct SegmentSizes {
  int64_t clusters = 0, slots = 0;  // slots: clusters in whole blocks
  int64_t tokens = 0, code_blocks = 0;
  int64_t head_dim = 0;

  static SegmentSizes of(const SegmentView& view, int head_dim) {
    const int64_t slots = round_up(view.num_clusters, kClusterBlock);
    return {view.num_clusters, slots, view.cluster_indptr[slots], view.code_indptr == nullptr ? 0 : view.code_indptr[slots], head_dim};
  }
};

// Clusters of one KV head in one segment; see SegmentView for the layouts. Once packed, the arrays are empty and the view stands for them.
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
    SegmentView view = packed_;
    if (packed_bytes_ == 0)
      for_each_array(*this, view, [](const auto& array, auto& pointer, int64_t) { pointer = array.empty() ? nullptr : array.data(); });
    view.num_clusters = num_clusters;
    return view;
  }
  int64_t bytes() const {
    int64_t total = packed_bytes_;
    SegmentView view;
    for_each_array(*this, view, [&](const auto& array, auto&, int64_t) { total += content_bytes(array); });
    return total;
  }

  // Bytes that the arrays take in one block, each from the start of a cache line.
  int64_t block_bytes() const {
    int64_t total = 0;
    SegmentView view;
    for_each_array(*this, view, [&](const auto& array, auto&, int64_t) { total += round_up(content_bytes(array), int64_t(kCacheLine)); });
    return total;
  }
  // Moves the arrays into block_bytes() bytes of someone else's, who keeps them as long as the views are used.
  void pack(std::byte* block) {
    packed_bytes_ = bytes();
    for_each_array(*this, packed_, [&](auto& array, auto& pointer, int64_t) {
      if (array.empty()) return;
      std::memcpy(block, array.data(), size_t(content_bytes(array)));
      pointer = reinterpret_cast<decltype(array.data())>(block);
      block += round_up(content_bytes(array), int64_t(kCacheLine));
      array = {};
    });
  }

  // Calls f(array, its pointer in the view, the array's length if the index has it) for all of them.
  template <class Self, class F>
  static void for_each_array(Self& self, SegmentView& view, F&& f, const SegmentSizes& n = {}) {
    f(self.centroids, view.centroids, n.slots * n.head_dim);
    f(self.centroid_scale, view.centroid_scale, n.slots);
    f(self.centroids_f32, view.centroids_f32, n.clusters * n.head_dim);
    f(self.spread, view.spread, n.slots);
    f(self.size, view.size, n.slots);
    f(self.cluster_indptr, view.cluster_indptr, n.slots + 1);
    f(self.cluster_tokens, view.cluster_tokens, n.tokens);
    f(self.value_means, view.value_means, n.clusters * n.head_dim);
    f(self.value_mean_scale, view.value_mean_scale, n.slots);
    f(self.value_means_f32, view.value_means_f32, n.clusters * n.head_dim);
    f(self.residual_variance, view.residual_variance, n.clusters * n.head_dim);
    f(self.variance_scale, view.variance_scale, n.slots);
    f(self.codes, view.codes, n.code_blocks * code_block_bytes(int(n.head_dim)));
    f(self.code_scale, view.code_scale, n.code_blocks * kCodeBlock);
    f(self.code_indptr, view.code_indptr, n.slots + 1);
  }

 private:
  SegmentView packed_;
  int64_t packed_bytes_ = 0;
};

struct Segment {
  int num_tokens = 0;
  int begin_token = 0, end_token = 0;  // all tokens lie in between
  std::vector<HeadSegment> heads;      // [num_kv_heads]

  // tokens: all of it, not empty.
  void set_tokens(std::span<const int32_t> all) {
    const auto [first, last] = std::minmax_element(all.begin(), all.end());
    num_tokens = int(all.size());
    begin_token = *first;
    end_token = *last + 1;
  }
  // Its tokens, in no particular order.
  std::span<const int32_t> tokens() const { return {heads[0].view().cluster_tokens, size_t(num_tokens)}; }
  int64_t bytes() const {
    int64_t total = 0;
    for (const HeadSegment& head : heads) total += head.bytes();
    return total;
  }

  std::shared_ptr<AlignedVector<std::byte>> block;  // of the packed arrays, shared by segments that were built together
};

// Moves all arrays of segments that were built together into one block, if that fills a huge page: each by itself is too small for one,
// and a step that reads a little of many arrays would find most of their pages' translations gone.
inline void pack_segments(const std::vector<std::shared_ptr<Segment>>& segments) {
  int64_t total = 0;
  for (const auto& segment : segments)
    for (const HeadSegment& head : segment->heads) total += head.block_bytes();
  if (total < int64_t(kHugePage)) return;
  const auto block = std::make_shared<AlignedVector<std::byte>>(size_t(total));
  std::byte* at = block->data();
  for (const auto& segment : segments) {
    segment->block = block;
    for (HeadSegment& head : segment->heads) {
      const int64_t bytes = head.block_bytes();
      head.pack(at);
      at += bytes;
    }
  }
}

}  // namespace quorum::cpu
