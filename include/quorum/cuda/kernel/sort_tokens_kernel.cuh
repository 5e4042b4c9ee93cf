// One round of k-means, second part: the tokens of a segment by cluster, ascending inside each. A counting sort by one block.
#pragma once

#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/block/build.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

inline constexpr int kSortThreads = 512;

// Each warp has counters of its own, so that tokens keep their order; segments have fewer than 2^16 tokens.
constexpr int64_t sort_shared_bytes(int num_slots) { return int64_t(kSortThreads / kWarpSize) * num_slots * int64_t(sizeof(uint16_t)); }

// Calls take(row, number of rows of the same cluster before it in the warp's part) for the warp's rows in order; counts: the warp's.
template <int kWarps, class Take>
__device__ __forceinline__ void count_rows(const int32_t* assignment, int num_rows, uint16_t* counts, Take&& take) {
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const int part = int(round_up(ceil_div(num_rows, kWarps), kWarpSize));
#pragma unroll 1
  for (int i = warp * part; i < (warp + 1) * part && i < num_rows; i += kWarpSize) {
    const int row = i + lane, cluster = row < num_rows ? assignment[row] : -1;
    const unsigned peers = __match_any_sync(kFullMask, cluster), before = peers & ((1u << lane) - 1u);
    const int count = cluster >= 0 ? counts[cluster] : 0;
    __syncwarp();
    if (cluster >= 0) take(row, count + __popc(before));
    if (cluster >= 0 && before == 0) counts[cluster] = uint16_t(count + __popc(peers));
    __syncwarp();
  }
}

// Grid: (num_segments, 1, num_kv_heads). Post: size, cluster_indptr, cluster_tokens, empty_rank, num_empty of the segment.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) sort_tokens_kernel(const __grid_constant__ BuildParams p) {
  constexpr int kWarps = kThreads / kWarpSize;
  auto* counts = dynamic_shared<uint16_t>();  // [kWarps][num_slots]
  QUORUM_SHARED(int64_t[kWarps], warp_sums);
  const int s = int(blockIdx.x), head = int(blockIdx.z), warp = int(threadIdx.x) / kWarpSize;
  if (p.changed(p.round, s, head) == 0) return;  // sorted already
  const BuildSegment segment = p.segment(s);
  const int num_slots = segment.num_slots;
  const int32_t* assignment = p.workspace.assignment + p.tokens_of(head) + segment.first_row;
  for (int i = int(threadIdx.x); i < kWarps * num_slots; i += kThreads) counts[i] = 0;
  __syncthreads();
  uint16_t* own = counts + warp * num_slots;
  count_rows<kWarps>(assignment, segment.num_rows, own, [](int, int) {});
  __syncthreads();

  // Counts become the places of each warp's first token in each cluster. Sizes and empty clusters are summed together.
  const int64_t slot = p.slots_of(head) + segment.first_slot;
  int32_t* indptr = p.index.cluster_indptr + p.indptr_of(head) + segment.first_slot;
  int64_t before = 0;
#pragma unroll 1
  for (int first = 0; first < num_slots; first += kThreads) {
    const int j = first + int(threadIdx.x);
    int size = 0;
    for (int w = 0; w < kWarps && j < num_slots; ++w) size += counts[w * num_slots + j];
    const bool empty = j < segment.num_clusters && size == 0;
    int64_t total;
    const int64_t sums = before + block_exclusive_sum<kThreads>(int64_t(size) + (int64_t(empty) << 32), total, warp_sums);
    before += total;
    if (j >= num_slots) continue;  // no barrier follows in this turn
    int place = int(sums & 0xffffffff);
    indptr[j] = segment.first_row + place;
    p.index.size[slot + j] = float(size);
    p.workspace.empty_rank[slot + j] = empty ? int(sums >> 32) : -1;
    for (int w = 0; w < kWarps; ++w) {
      const int count = counts[w * num_slots + j];
      counts[w * num_slots + j] = uint16_t(place);
      place += count;
    }
  }
  if (threadIdx.x == 0) {
    p.workspace.num_empty[head * p.num_segments + s] = int(before >> 32);
    if (s + 1 == p.num_segments) indptr[num_slots] = p.tokens.count;
  }
  __syncthreads();
  int32_t* sorted = p.index.cluster_tokens + p.tokens_of(head) + segment.first_row;
  count_rows<kWarps>(assignment, segment.num_rows, own,
                     [&](int row, int place) { sorted[place] = p.tokens.first + segment.first_row + row; });
}

}  // namespace quorum::cuda
