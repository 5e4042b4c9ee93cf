// The index of one sequence in one layer on the device, owned.
#pragma once

#include <algorithm>
#include <vector>

#include "quorum/core/arena.hpp"
#include "quorum/core/flat_index_view.hpp"
#include "quorum/core/residual_code.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/core/token_filter.hpp"
#include "quorum/cuda/support/device_buffer.cuh"

namespace quorum::cuda {

// Clustered index over the keys of every KV head, in device memory.
class ClusterIndex {
 public:
  ClusterIndex() = default;

  // Copies an index that was built on the host, its segments joined to one. Waits for the copy.
  //
  // Errors: Error(invalid_argument) if it is stored in f32 or a cluster has more than 65535 tokens; Error(cuda_failure).
  explicit ClusterIndex(const ClusterIndexView& host) {
    require(host.storage == IndexStorage::int8, "cuda::ClusterIndex", "index.storage", "int8", "f32");
    for (int h = 0; h < host.num_kv_heads; ++h) check_sizes(host.heads[h]);
    std::vector<FlatHeadView> views(size_t(host.num_kv_heads));
    Arena sizes(nullptr, kDeviceAlignment);
    for (int h = 0; h < host.num_kv_heads; ++h) flatten(host, h, sizes, nullptr, views[size_t(h)]);
    sizes.take<FlatHeadView>(host.num_kv_heads);
    memory_ = DeviceBuffer(sizes.used());
    std::vector<std::byte> content(size_t(sizes.used()));
    Arena arena(memory_.as<>(), kDeviceAlignment);
    for (int h = 0; h < host.num_kv_heads; ++h) flatten(host, h, arena, content.data(), views[size_t(h)]);
    heads_ =
        put<FlatHeadView>(arena, content.data(), host.num_kv_heads, [&](FlatHeadView* out) { std::copy(views.begin(), views.end(), out); });
    check(cudaMemcpy(memory_.as<>(), content.data(), content.size(), cudaMemcpyHostToDevice), "cuda::ClusterIndex", "cudaMemcpy");
  }

  // Takes over memory in which an index lies already; heads: its views, [num_kv_heads], in that memory.
  ClusterIndex(DeviceBuffer memory, const FlatHeadView* heads) noexcept : memory_(std::move(memory)), heads_(heads) {}

  // [num_kv_heads], in device memory: this sequence's row of DecodeBatch::heads.
  const FlatHeadView* heads() const noexcept { return heads_; }
  int64_t bytes() const noexcept { return memory_.bytes(); }

 private:
  // Selection keeps sizes in 16 bits.
  static void check_sizes(const ClusterHeadView& head) {
    for (int s = 0; s < head.num_segments; ++s)
      for (int j = 0; j < head.segments[s].num_clusters; ++j)
        require(head.segments[s].size[j] <= 65535.0f, "cuda::ClusterIndex", "clusters of the index", "at most 65535 tokens",
                head.segments[s].size[j]);
  }

  // Copies `count` elements to the next place of the arena; returns the place on the device. content: the arena's image on the host.
  template <class T, class Fill>
  T* put(Arena& arena, std::byte* content, int64_t count, Fill&& fill) const {
    T* place = arena.take<T>(count);
    if (content != nullptr) fill(reinterpret_cast<T*>(content + (reinterpret_cast<std::byte*>(place) - memory_.as<>())));
    return place;
  }

  // One array of all segments, `per_cluster` elements a cluster; rows that padding clusters lack are zero.
  template <class T>
  const T* join(Arena& arena, std::byte* content, const ClusterHeadView& head, const T* SegmentView::*array, int64_t per_cluster,
                bool padded) const {
    return put<T>(arena, content, head.num_cluster_slots() * per_cluster, [&](T* out) {
      for (int s = 0; s < head.num_segments; ++s) {
        const SegmentView& segment = head.segments[s];
        const int64_t slots = head.segment_first[s + 1] - head.segment_first[s];
        std::copy_n(segment.*array, (padded ? slots : segment.num_clusters) * per_cluster, out + head.segment_first[s] * per_cluster);
      }
    });
  }
  // An array of row starts, counting on through the segments. Returns the number of entries behind it in `total`.
  const int32_t* join_indptr(Arena& arena, std::byte* content, const ClusterHeadView& head, const int32_t* SegmentView::*array,
                             int64_t& total) const {
    total = 0;
    for (int s = 0; s < head.num_segments; ++s) total += (head.segments[s].*array)[head.segment_first[s + 1] - head.segment_first[s]];
    return put<int32_t>(arena, content, int64_t(head.num_cluster_slots()) + 1, [&](int32_t* out) {
      int32_t before = 0;
      for (int s = 0; s < head.num_segments; ++s) {
        const int slots = head.segment_first[s + 1] - head.segment_first[s];
        for (int i = 0; i <= slots; ++i) out[head.segment_first[s] + i] = before + (head.segments[s].*array)[i];
        before += (head.segments[s].*array)[slots];
      }
    });
  }
  // What the row starts lead to, `per_entry` elements each.
  template <class T>
  const T* join_entries(Arena& arena, std::byte* content, const ClusterHeadView& head, const T* SegmentView::*array,
                        const int32_t* SegmentView::*indptr, int64_t total, int64_t per_entry) const {
    return put<T>(arena, content, total * per_entry, [&](T* out) {
      for (int s = 0; s < head.num_segments; ++s) {
        const int64_t count = (head.segments[s].*indptr)[head.segment_first[s + 1] - head.segment_first[s]] * per_entry;
        std::copy_n(head.segments[s].*array, count, out);
        out += count;
      }
    });
  }

  void flatten(const ClusterIndexView& host, int kv_head, Arena& arena, std::byte* content, FlatHeadView& view) const {
    const ClusterHeadView& head = host.heads[kv_head];
    const int64_t d = host.head_dim, padded = padded_dim(host.head_dim);
    view = {};
    view.moments = head.moments;
    view.num_indexed = host.num_indexed;
    view.indexed_end = host.indexed_end;
    view.always = host.always;
    view.always.listed = put<int32_t>(arena, content, host.always.num_listed,
                                      [&](int32_t* out) { std::copy_n(host.always.listed, host.always.num_listed, out); });
    if (host.live != nullptr)
      view.live = put<uint64_t>(arena, content, mask_words(host.always.num_known),
                                [&](uint64_t* out) { std::copy_n(host.live, mask_words(host.always.num_known), out); });
    view.non_finite = head.non_finite;
    if (head.num_segments == 0) return;
    const auto copy = [&]<class T>(const T* from, int64_t count) {
      return put<T>(arena, content, count, [&](T* out) { std::copy_n(from, count, out); });
    };
    view.metric = {copy(head.metric.inverse, padded * d), copy(head.metric.signs, d), copy(head.metric.eigenvalues, padded),
                   copy(head.metric.mean_key, padded)};
    SegmentView& all = view.clusters;
    all.num_clusters = head.num_cluster_slots();
    all.centroids = join(arena, content, head, &SegmentView::centroids, d, true);
    all.centroid_scale = join(arena, content, head, &SegmentView::centroid_scale, 1, true);
    all.spread = join(arena, content, head, &SegmentView::spread, 1, true);
    all.size = join(arena, content, head, &SegmentView::size, 1, true);
    all.value_means = join(arena, content, head, &SegmentView::value_means, d, false);
    all.value_mean_scale = join(arena, content, head, &SegmentView::value_mean_scale, 1, true);
    int64_t tokens = 0, blocks = 0;
    all.cluster_indptr = join_indptr(arena, content, head, &SegmentView::cluster_indptr, tokens);
    all.cluster_tokens = join_entries(arena, content, head, &SegmentView::cluster_tokens, &SegmentView::cluster_indptr, tokens, 1);
    view.residual_codes = host.residual_codes;
    if (!host.residual_codes) return;
    all.code_indptr = join_indptr(arena, content, head, &SegmentView::code_indptr, blocks);
    all.codes = join_entries(arena, content, head, &SegmentView::codes, &SegmentView::code_indptr, blocks, code_block_bytes(int(d)));
    all.code_scale = join_entries(arena, content, head, &SegmentView::code_scale, &SegmentView::code_indptr, blocks, int64_t(kCodeBlock));
  }

  DeviceBuffer memory_;
  const FlatHeadView* heads_ = nullptr;
};

}  // namespace quorum::cuda
