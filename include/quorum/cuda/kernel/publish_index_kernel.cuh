// Last: what is known of a head as a whole, and the views that decoding reads.
#pragma once

#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// Sum of value(i) over i in [first, last), in an order of its own that never changes; every thread gets it. warp_sums: shared memory.
template <int kThreads, class T, class Value>
__device__ __forceinline__ T block_total(int first, int last, T* warp_sums, Value&& value) {
  T own = T(0), total;
  for (int i = first + int(threadIdx.x); i < last; i += kThreads) own += value(i);
  block_exclusive_sum<kThreads>(own, total, warp_sums);
  return total;
}

// Moments of a head, segment by segment by its share of the tokens, as the CPU joins them.
template <int kThreads>
__device__ __forceinline__ ValueMoments head_moments(const BuildParams& p, int head, float* warp_sums) {
  ValueMoments moments;
  const float inverse = 1.0f / float(p.tokens.count);
  const ValueSums* sums = p.workspace.value_sums + p.slots_of(head);
  const float* size = p.index.size + p.slots_of(head);
#pragma unroll 1
  for (int s = 0; s < p.num_segments; ++s) {
    const BuildSegment segment = p.segment(s);
    const int first = segment.first_slot, last = first + segment.num_slots;
    const float clusters = block_total<kThreads, float>(first, last, warp_sums, [&](int j) { return size[j] > 0.0f ? 1.0f : 0.0f; });
    const float spread =
        block_total<kThreads, float>(first, last, warp_sums, [&](int j) { return size[j] > 0.0f ? sums[j].spread : 0.0f; });
    moments.spread += spread / clusters * (float(segment.num_rows) * inverse);
  }
  moments.mean_square =
      inverse * block_total<kThreads, float>(0, p.num_slots, warp_sums, [&](int j) { return size[j] > 0.0f ? sums[j].mean_square : 0.0f; });
  const float* squares = p.workspace.code_squares + int64_t(head) * p.max_code_blocks;
  const int num_blocks = p.index.code_indptr[p.indptr_of(head) + p.num_slots];
  moments.code_scale = inverse * block_total<kThreads, float>(0, num_blocks, warp_sums, [&](int b) { return squares[b]; });
  return moments;
}

// The arrays of a head as decoding sees them.
__device__ __forceinline__ FlatHeadView head_view(const BuildParams& p, int head) {
  FlatHeadView view;
  view.always = {p.index.always, p.tokens.num_listed(), p.tokens.num_tokens};
  view.num_indexed = p.tokens.count;
  if (view.empty()) return view;
  const IndexArrays& a = p.index;
  const int64_t row = int64_t(head) * p.head_dim, slot = p.slots_of(head), place = int64_t(head) * p.max_code_blocks;
  view.indexed_end = p.tokens.first + p.tokens.count;
  view.metric = {a.inverse + p.square_of(head), a.signs + row, a.eigenvalues + row, a.mean_key + row};
  SegmentView& clusters = view.clusters;
  clusters.num_clusters = p.num_slots;
  clusters.centroids = a.centroids + slot * p.head_dim;
  clusters.centroid_scale = a.centroid_scale + slot;
  clusters.spread = a.spread + slot;
  clusters.size = a.size + slot;
  clusters.cluster_indptr = a.cluster_indptr + p.indptr_of(head);
  clusters.cluster_tokens = a.cluster_tokens + p.tokens_of(head);
  clusters.value_means = a.value_means + slot * p.head_dim;
  clusters.value_mean_scale = a.value_mean_scale + slot;
  view.residual_codes = p.residual_codes();
  if (!view.residual_codes) return view;
  clusters.codes = a.codes + place * (p.head_dim / kCodeLineDim * kCodeLineBytes);
  clusters.code_scale = a.code_scale + place * kCodeBlock;
  clusters.code_indptr = a.code_indptr + p.indptr_of(head);
  return view;
}

// Grid: (1, 1, num_kv_heads).
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1) publish_index_kernel(const __grid_constant__ BuildParams p) {
  QUORUM_SHARED(int32_t[kThreads / kWarpSize], flag_sums);
  QUORUM_SHARED(float[kThreads / kWarpSize], warp_sums);
  const int head = int(blockIdx.z);
  if (head == 0)
    for (int i = int(threadIdx.x); i < p.tokens.num_listed(); i += kThreads) p.index.always[i] = p.tokens.listed(i);
  FlatHeadView view = head_view(p, head);
  if (!view.empty()) {
    const int32_t* keys = p.workspace.key_flags + int64_t(head) * p.key_tiles();
    const int32_t* values = p.workspace.value_flags + p.slots_of(head);
    view.non_finite = block_total<kThreads, int32_t>(0, p.key_tiles(), flag_sums, [&](int i) { return keys[i]; }) +
                          block_total<kThreads, int32_t>(0, p.num_slots, flag_sums, [&](int i) { return values[i]; }) >
                      0;
    if (p.residual_codes()) view.moments = head_moments<kThreads>(p, head, warp_sums);
  }
  if (threadIdx.x == 0) p.index.heads[head] = view;
}

}  // namespace quorum::cuda
