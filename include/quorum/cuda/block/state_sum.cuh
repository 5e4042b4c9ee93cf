// Attention states (a maximum and a sum) of lanes and warps joined into one.
#pragma once

#include "quorum/core/attention_state.hpp"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// quorum::rescale_factor and merge with the device's own exp.
__device__ __forceinline__ float fast_rescale(float from, float to) { return from == -kInfinity ? 0.0f : __expf(from - to); }
__device__ __forceinline__ AttentionState fast_merge(AttentionState a, AttentionState b) {
  const float max = larger_max(a.max, b.max);
  return {max, a.sum * fast_rescale(a.max, max) + b.sum * fast_rescale(b.max, max)};
}

// Adds `count` times exp(score) to a state. Scores of -inf add nothing; NaN and +inf leave a sum that is NaN.
__device__ __forceinline__ void add_weight(AttentionState& state, float score, float count) {
  if (score == -kInfinity || count == 0.0f) return;
  const float max = larger_max(state.max, score);
  state.sum = state.sum * fast_rescale(state.max, max) + count * __expf(score - max);
  state.max = max;
}

// The union over the lanes that differ in the bits kFrom, 2 kFrom, ... below 32.
template <int kFrom = 1>
__device__ __forceinline__ AttentionState warp_merge(AttentionState state) {
#pragma unroll 1
  for (int bit = kFrom; bit < kWarpSize; bit *= 2) {
    const AttentionState other{__shfl_xor_sync(kFullMask, state.max, bit), __shfl_xor_sync(kFullMask, state.sum, bit)};
    state = fast_merge(state, other);
  }
  return state;
}

// The union of `count` states that lie `stride` apart, by one warp; every lane gets it.
__device__ __forceinline__ AttentionState warp_merge_range(const AttentionState* states, int count, int stride) {
  AttentionState state;
  for (int i = int(threadIdx.x) % kWarpSize; i < count; i += kWarpSize) state = fast_merge(state, states[int64_t(i) * stride]);
  return warp_merge(state);
}

}  // namespace quorum::cuda
