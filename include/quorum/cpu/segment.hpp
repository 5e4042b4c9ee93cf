// One immutable run of indexed tokens: its clusters for every KV head. Segments are shared between copies of an index.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/cpu/aligned_vector.hpp"

namespace quorum::cpu {

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
      for_each_array(*this, view, [](const auto& array, auto& pointer) { pointer = array.empty() ? nullptr : array.data(); });
    view.num_clusters = num_clusters;
    return view;
  }
  int64_t bytes() const {
    int64_t total = packed_bytes_;
    SegmentView view;
    for_each_array(*this, view, [&](const auto& array, auto&) { total += content_bytes(array); });
    return total;
  }

  // Bytes that the arrays take in one block, each from the start of a cache line.
  int64_t block_bytes() const {
    int64_t total = 0;
    SegmentView view;
    for_each_array(*this, view, [&](const auto& array, auto&) { total += round_up(content_bytes(array), int64_t(kCacheLine)); });
    return total;
  }
  // Moves the arrays into block_bytes() bytes of someone else's, who keeps them as long as the views are used.
  void pack(std::byte* block) {
    packed_bytes_ = bytes();
    for_each_array(*this, packed_, [&](auto& array, auto& pointer) {
      if (array.empty()) return;
      std::memcpy(block, array.data(), size_t(content_bytes(array)));
      pointer = reinterpret_cast<decltype(array.data())>(block);
      block += round_up(content_bytes(array), int64_t(kCacheLine));
      array = {};
    });
  }

 private:
  SegmentView packed_;
  int64_t packed_bytes_ = 0;

  // Calls f(array, its pointer in the view) for all of them.
  template <class Self, class F>
  static void for_each_array(Self& self, SegmentView& view, F&& f) {
    f(self.centroids, view.centroids);
    f(self.centroid_scale, view.centroid_scale);
    f(self.centroids_f32, view.centroids_f32);
    f(self.spread, view.spread);
    f(self.size, view.size);
    f(self.cluster_indptr, view.cluster_indptr);
    f(self.cluster_tokens, view.cluster_tokens);
    f(self.value_means, view.value_means);
    f(self.value_mean_scale, view.value_mean_scale);
    f(self.value_means_f32, view.value_means_f32);
    f(self.residual_variance, view.residual_variance);
    f(self.variance_scale, view.variance_scale);
    f(self.codes, view.codes);
    f(self.code_scale, view.code_scale);
    f(self.code_indptr, view.code_indptr);
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
