// Residual codes: one bit a coordinate and a scale for every token (algorithm.md eq. 13).
#pragma once

#include "quorum/cuda/block/apply_map.cuh"
#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// Where each cluster's code blocks begin. Grid: (1, 1, num_kv_heads).
template <int kThreads>
__global__ void __launch_bounds__(kThreads) count_code_blocks_kernel(const __grid_constant__ BuildParams p) {
  QUORUM_SHARED(int32_t[kThreads / kWarpSize], warp_sums);
  const int head = int(blockIdx.z);
  int32_t* indptr = p.index.code_indptr + p.indptr_of(head);
  int32_t before = 0;
#pragma unroll 1
  for (int first = 0; first < p.num_slots; first += kThreads) {
    const int j = first + int(threadIdx.x);
    const int32_t own = j < p.num_slots ? num_code_blocks(int(p.index.size[p.slots_of(head) + j])) : 0;
    int32_t total;
    const int32_t place = before + block_exclusive_sum<kThreads>(own, total, warp_sums);
    if (j < p.num_slots) indptr[j] = place;
    before += total;
  }
  if (threadIdx.x == 0) indptr[p.num_slots] = before;
}

// The cluster that a code block belongs to: the last whose blocks begin at or before it. Clusters without tokens have no blocks.
__device__ __forceinline__ int cluster_of_code_block(const int32_t* indptr, int num_slots, int block) {
  int low = 0, high = num_slots - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (indptr[middle] <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Grid: (max_code_blocks, 1, num_kv_heads): a code block each, those beyond the last do nothing. Cost: head_dim^2 multiply-adds a slot.
template <int kHeadDim>
__global__ void __launch_bounds__(kBuildThreads, kBuildBlocks<kHeadDim>) encode_residuals_kernel(const __grid_constant__ BuildParams p) {
  QUORUM_SHARED(MappedRows<kHeadDim>, s);
  QUORUM_SHARED(float[kCodeBlock], squares);
  static_assert(kBuildRows == kCodeBlock && kHeadDim % kCodeLineDim == 0);
  constexpr int kBytes = int(code_block_bytes(kHeadDim));
  const int head = int(blockIdx.z), block = int(blockIdx.x), warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const int32_t* code_indptr = p.index.code_indptr + p.indptr_of(head);
  if (block >= code_indptr[p.num_slots]) return;
  const int slot = cluster_of_code_block(code_indptr, p.num_slots, block), first = (block - code_indptr[slot]) * kCodeBlock;
  const int left = int(p.index.size[p.slots_of(head) + slot]) - first, count = left < kCodeBlock ? left : kCodeBlock;
  const int32_t* tokens = p.index.cluster_tokens + p.tokens_of(head) + p.index.cluster_indptr[p.indptr_of(head) + slot] + first;
  const float* mean = p.workspace.means + (p.slots_of(head) + slot) * kHeadDim;
  for (int i = int(threadIdx.x); i < kCodeBlock * kHeadDim; i += kBuildThreads) {
    const int token = i / kHeadDim, c = i % kHeadDim;
    float residual = 0.0f;
    if (token < count) {
      const int64_t row = head * p.padded_rows() + tokens[token] - p.tokens.first;
      residual = p.workspace.constants[row].scale * float(p.workspace.rows[row * kHeadDim + c]) - mean[c];
    }
    s.from[token][c] = residual;
  }
  __syncthreads();
  apply_map<kHeadDim>(p.workspace.to_index + p.square_of(head), s);

  const int64_t place = int64_t(head) * p.max_code_blocks + block;
  for (int i = int(threadIdx.x); i < kBytes; i += kBuildThreads) {
    const float* x = s.to[i / 4 % kCodeBlock];
    unsigned bits = 0;
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < 4; ++k) bits |= unsigned(x[code_coordinate(i, half) + k] > 0.0f) << (half * 4 + k);
    p.index.codes[place * kBytes + i] = uint8_t(bits);
  }
  for (int token = warp; token < kCodeBlock; token += kBuildThreads / kWarpSize) {
    float sum = 0.0f;
    for (int c = lane; c < kHeadDim; c += kWarpSize) sum += fabsf(s.to[token][c]);
    const f16 scale = code_scale(warp_sum(sum), kHeadDim);
    if (lane != 0) continue;
    p.index.code_scale[place * kCodeBlock + token] = scale;
    squares[token] = to_float(scale) * to_float(scale);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  float sum = 0.0f;
  for (int token = 0; token < kCodeBlock; ++token) sum += squares[token];
  p.workspace.code_squares[place] = sum;
}

}  // namespace quorum::cuda
