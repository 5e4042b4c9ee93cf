// An index that lies on the device, copied to the host: for CPUs to decode, to save, to look at.
#pragma once

#include <vector>

#include "quorum/core/arena.hpp"
#include "quorum/core/flat_index_view.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cuda/support/device_buffer.cuh"

namespace quorum::cuda {

// The way back of cuda::ClusterIndex: its segments stay joined, so every head has one segment; everything else is as it was.
class HostIndex {
 public:
  // Copies the index. heads: [num_kv_heads], in device memory, as ClusterIndex::heads(). Waits for the copies, on the default stream: what
  // writes the index must have finished. Errors: Error(cuda_failure).
  HostIndex(const FlatHeadView* heads, int num_kv_heads, int head_dim)
      : head_dim_(head_dim), flat_(fetch(heads, num_kv_heads)), heads_(size_t(num_kv_heads)), segments_(size_t(num_kv_heads)) {
    std::vector<Sizes> sizes;
    for (const FlatHeadView& flat : flat_) sizes.push_back(Sizes::of(flat));
    Arena counted(nullptr, kAlignment);
    for (size_t h = 0; h < flat_.size(); ++h) copy_head(h, sizes[h], counted);
    memory_.resize(size_t(counted.used() + kAlignment));
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    Arena arena(memory_.data() + (round_up(int64_t(address), kAlignment) - int64_t(address)), kAlignment);
    for (size_t h = 0; h < flat_.size(); ++h) copy_head(h, sizes[h], arena);
    if (!flat_.empty()) make_view();
  }
  HostIndex(HostIndex&& other) noexcept = default;  // what the views name stays where it is
  HostIndex& operator=(HostIndex&& other) noexcept = default;

  // What a decoder on the CPU reads, as long as this lives.
  const ClusterIndexView& view() const noexcept { return view_; }
  // What DecodeLimits::max_clusters must cover.
  int num_cluster_slots() const noexcept { return segment_first_.back(); }
  int64_t bytes() const noexcept { return int64_t(memory_.size()); }

 private:
  static constexpr int64_t kAlignment = 64;

  template <class T>
  static std::vector<T> fetch(const T* device, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    copy(values.data(), device, count);
    return values;
  }
  template <class T>
  static void copy(T* host, const T* device, int64_t count) {
    if (count > 0) check(cudaMemcpy(host, device, size_t(count) * sizeof(T), cudaMemcpyDeviceToHost), "cuda::HostIndex", "cudaMemcpy");
  }

  // Lengths that only the index knows.
  struct Sizes {
    int64_t tokens = 0, code_blocks = 0;
    static Sizes of(const FlatHeadView& flat) {
      const SegmentView& all = flat.clusters;
      if (all.num_clusters == 0) return {};
      return {fetch(all.cluster_indptr + all.num_clusters, 1)[0],
              flat.residual_codes ? fetch(all.code_indptr + all.num_clusters, 1)[0] : 0};
    }
  };

  // Takes an array from the arena and, if that has memory, fills it.
  template <class T>
  static void take(Arena& arena, const T* device, int64_t count, const T*& host) {
    if (device == nullptr) return;
    T* place = arena.take<T>(count);
    if (place != nullptr) copy(place, device, count);
    host = place;
  }

  void copy_head(size_t h, const Sizes& n, Arena& arena) {
    const FlatHeadView& flat = flat_[h];
    const SegmentView& from = flat.clusters;
    const int64_t slots = from.num_clusters, d = head_dim_, padded = padded_dim(head_dim_);
    ClusterHeadView& head = heads_[h];
    SegmentView& to = segments_[h];
    if (h == 0) {
      take(arena, flat.always.listed, flat.always.num_listed, listed_);
      take(arena, flat.live, ceil_div(flat.always.num_known, 64), live_);
    }
    head.moments = flat.moments;
    head.non_finite = flat.non_finite;
    take(arena, flat.metric.inverse, padded * d, head.metric.inverse);
    take(arena, flat.metric.signs, d, head.metric.signs);
    take(arena, flat.metric.eigenvalues, padded, head.metric.eigenvalues);
    take(arena, flat.metric.mean_key, padded, head.metric.mean_key);
    to.num_clusters = int(slots);
    take(arena, from.centroids, slots * d, to.centroids);
    take(arena, from.centroid_scale, slots, to.centroid_scale);
    take(arena, from.spread, slots, to.spread);
    take(arena, from.size, slots, to.size);
    take(arena, from.cluster_indptr, slots + 1, to.cluster_indptr);
    take(arena, from.cluster_tokens, n.tokens, to.cluster_tokens);
    take(arena, from.value_means, slots * d, to.value_means);
    take(arena, from.value_mean_scale, slots, to.value_mean_scale);
    if (!flat.residual_codes) return;
    take(arena, from.codes, n.code_blocks * code_block_bytes(head_dim_), to.codes);
    take(arena, from.code_scale, n.code_blocks * kCodeBlock, to.code_scale);
    take(arena, from.code_indptr, slots + 1, to.code_indptr);
  }

  void make_view() {
    const FlatHeadView& first = flat_[0];
    const int slots = first.clusters.num_clusters;
    if (slots > 0) segment_first_.push_back(slots);
    block_segment_.assign(size_t(slots / kClusterBlock), 0);
    for (size_t h = 0; h < heads_.size(); ++h) {
      heads_[h].segments = &segments_[h];
      heads_[h].segment_first = segment_first_.data();
      heads_[h].block_segment = block_segment_.data();
      heads_[h].num_segments = slots > 0 ? 1 : 0;
    }
    view_.heads = heads_.data();
    view_.num_kv_heads = int(heads_.size());
    view_.head_dim = head_dim_;
    view_.num_indexed = first.num_indexed;
    view_.indexed_end = first.indexed_end;
    view_.always = {listed_, first.always.num_listed, first.always.num_known};
    view_.live = live_;
    view_.residual_codes = first.residual_codes;
  }

  int head_dim_;
  std::vector<FlatHeadView> flat_;  // as they lie on the device
  std::vector<ClusterHeadView> heads_;
  std::vector<SegmentView> segments_;
  std::vector<int32_t> segment_first_ = {0}, block_segment_;
  std::vector<std::byte> memory_;
  const int32_t* listed_ = nullptr;
  const uint64_t* live_ = nullptr;
  ClusterIndexView view_;
};

}  // namespace quorum::cuda
