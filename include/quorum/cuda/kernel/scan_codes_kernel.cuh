// Third stage where tokens are chosen by code: what every token of the candidates weighs by its code, added up by key bucket
// (algorithm.md eq. 13 and 15).
#pragma once

#include "quorum/cuda/block/code_scan.cuh"
#include "quorum/cuda/block/key_histogram.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// Bytes of a block's shared memory: expected weights of each column, then counts.
inline int64_t scan_shared_bytes(int group) { return KeyHistogram<uint32_t>::bytes(group + 1); }

struct ScanShared {
  float expected[kScanWarps][kMaxGroupSize];
};

// Adds to a sum of the block; one that leaves its word goes on in the row's own, which have 64 bits.
__device__ __forceinline__ void add_steps(const KeyHistogram<uint32_t>& sums, unsigned long long* histogram, int column, int bucket,
                                          unsigned long long steps) {
  const uint32_t low = uint32_t(steps), before = atomicAdd(sums.column(column) + bucket, low);
  const unsigned long long high = (steps >> 32) + (before + low < low ? 1u : 0u);
  if (high > 0) atomicAdd(histogram + column * kNumKeyBuckets + bucket, high << 32);
}

// What a warp does with the blocks it scans.
template <int kHeadDim, int kHeadTiles>
struct ScanVisit {
  const CodeScan<kHeadDim, kHeadTiles>& scan;
  KeyHistogram<uint32_t> sums;    // of the block, in shared memory
  unsigned long long* histogram;  // of the row
  uint16_t* buckets;              // of the row
  uint16_t* cluster_key;          // of the row
  float* tail_weight;             // of the row
  typename CodeScan<kHeadDim, kHeadTiles>::Centroid centroid;
  ClusterMass<kHeadTiles> mass;
  float expected[kHeadTiles][2];  // shares of all tokens so far, with the variance that codes lost
  int best;

  __device__ __forceinline__ void enter(int cluster) {
    scan.enter(cluster, centroid);
    mass.clear();
    best = kNumKeyBuckets - 1;
  }
  __device__ __forceinline__ void take(const CodeFragment<kHeadDim>& codes, int block, int num_tokens) {
    const int lane = int(threadIdx.x) % kWarpSize, group = scan.p.group;
    const bool by_square = scan.p.options.target_error > 0.0f;
    float share[kHeadTiles][4], key[2];
    scan.weigh(codes, centroid, num_tokens, share, key);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int bucket = key_bucket(key[i]), token = lane / 4 + 8 * i;
      best = min(best, bucket);
      if (lane % 4 == 0) buckets[int64_t(block) * kCodeBlock + token] = uint16_t(bucket);
      if (token >= num_tokens) continue;
      if (lane % 4 == 0) atomicAdd(sums.column(group) + bucket, 1u);
#pragma unroll
      for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float own = share[t][2 * i + j], with_lost = own * centroid.expected[t][j];
          mass.share[t][j] += own;
          expected[t][j] += with_lost;
          const unsigned long long steps = share_steps(by_square ? own * own : with_lost, by_square ? kSquareUnit : kShareUnit);
          if (steps > 0) add_steps(sums, histogram, scan.column_of(t, j), bucket, steps);
        }
    }
  }
  __device__ __forceinline__ void leave(int cluster, int size) {
    mass.store(scan, size, tail_weight + int64_t(cluster) * scan.p.group);
#pragma unroll
    for (int lanes = 4; lanes < kWarpSize; lanes *= 2) best = min(best, __shfl_xor_sync(kFullMask, best, lanes));
    if (int(threadIdx.x) % kWarpSize == 0) cluster_key[cluster] = uint16_t(best);
  }
};

// What the block expects its candidates to weigh, as shares by column; floats, but always in the same order.
template <int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void sum_expected(const ScanVisit<kHeadDim, kHeadTiles>& visit, ScanShared& s, int group, float* out) {
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float sum = warp_sum<4>(visit.expected[t][j]);
      if (lane < 4) s.expected[warp][visit.scan.column_of(t, j)] = sum;
    }
  __syncthreads();
  if (int(threadIdx.x) >= group) return;
  float sum = 0.0f;
  for (int w = 0; w < kScanWarps; ++w) sum += s.expected[w][threadIdx.x];
  out[threadIdx.x] = sum;
}

// Grid: (scan_tiles, num_kv_heads, sets). Shared: scan_shared_bytes().
// Leaves: in unread_weight what the candidates are expected to weigh; token_bucket, and cluster_key and tail_weight of candidates, with
// nothing listed yet; token_histogram and tile_counts.
template <int kHeadDim, int kHeadTiles>
__global__ void __launch_bounds__(kScanThreads, kScanBlocksPerProcessor) scan_codes_kernel(const __grid_constant__ StepParams p) {
  QUORUM_SHARED(ScanShared, s);
  const KeyHistogram<uint32_t> sums{dynamic_shared<uint32_t>()};
  const int tile = int(blockIdx.x), row = int(blockIdx.z) * p.shape.num_kv_heads + int(blockIdx.y), group = p.group;
  let_next_kernel_start();
  for (int i = int(threadIdx.x); i < (group + 1) * kNumKeyBuckets; i += kScanThreads) sums.sums[i] = 0;
  wait_for_previous_kernel();
  if (p.workspace.plan[row].path != DecodePath::sparse_tokens) return;
  __syncthreads();
  const CodeScan<kHeadDim, kHeadTiles> scan(p, row);
  unsigned long long* histogram = p.workspace.token_histogram + int64_t(row) * (group + 1) * kNumKeyBuckets;
  uint16_t* keys = p.workspace.cluster_key + int64_t(row) * p.max_slots;
  ScanVisit<kHeadDim, kHeadTiles> visit{.scan = scan,
                                        .sums = sums,
                                        .histogram = histogram,
                                        .buckets = p.workspace.token_bucket + int64_t(row) * p.max_code_blocks() * kCodeBlock,
                                        .cluster_key = keys,
                                        .tail_weight = p.workspace.tail_weight + int64_t(row) * p.max_slots * group,
                                        .centroid = {},
                                        .mass = {},
                                        .expected = {},
                                        .best = 0};
  const ScanUnits units(p, tile, scan.head.clusters.num_clusters);
#pragma unroll 1
  for (int i = units.first; i < units.count; i += units.step) {
    ScanUnit unit;
    unit.load(scan.head.clusters, keys, i, kNumKeyBuckets - 1);
    scan.for_each_block(unit, visit);
  }
  const int64_t at = int64_t(row) * p.scan_tiles + tile;
  sum_expected(visit, s, group, p.workspace.unread_weight + at * group);
  __syncthreads();
  uint32_t* counts = p.workspace.tile_counts + at * kNumKeyBuckets;
  for (int i = int(threadIdx.x); i < (group + 1) * kNumKeyBuckets; i += kScanThreads) {
    const uint32_t sum = sums.sums[i];
    if (sum > 0) atomicAdd(histogram + i, static_cast<unsigned long long>(sum));
    if (i >= group * kNumKeyBuckets) counts[i - group * kNumKeyBuckets] = sum;
  }
}

}  // namespace quorum::cuda
