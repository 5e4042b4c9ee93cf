// Fifth stage where tokens are chosen by code: the chosen tokens are listed, and what the others of their clusters weigh is added up anew
// (algorithm.md eq. 17).
#pragma once

#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/block/code_scan.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

struct ListShared {
  int32_t warp_sums[kScanWarps];
};

// Adds up what is not listed of clusters of which something is, and counts what is. Taking the listed tokens away from the sum that
// scanning left would leave its rounding, which is more than the rest where a code flatters its token by orders of magnitude.
template <int kHeadDim, int kHeadTiles>
struct RestVisit {
  const CodeScan<kHeadDim, kHeadTiles>& scan;
  const uint16_t* buckets;  // of the row
  float* tail_weight;       // of the row
  typename CodeScan<kHeadDim, kHeadTiles>::Centroid centroid;
  ClusterMass<kHeadTiles> mass;
  int num_listed;

  __device__ __forceinline__ void enter(int cluster) {
    scan.enter(cluster, centroid);
    mass.clear();
  }
  __device__ __forceinline__ void take(const CodeFragment<kHeadDim>& codes, int block, int num_tokens) {
    const int token = int(threadIdx.x) % kWarpSize / 4;
    float share[kHeadTiles][4], key[2];
    scan.weigh(codes, centroid, num_tokens, share, key);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = token + 8 * i < num_tokens;
      const int bucket = there ? buckets[int64_t(block) * kCodeBlock + token + 8 * i] : kNumKeyBuckets;
      const bool unread = bucket > scan.plan.token_bucket;
      num_listed += __popc(__ballot_sync(kFullMask, !unread && bucket > scan.plan.bucket_before)) / 4;
#pragma unroll
      for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) mass.share[t][j] += unread ? share[t][2 * i + j] : 0.0f;
    }
  }
  __device__ __forceinline__ void leave(int cluster, int size) { mass.store(scan, size, tail_weight + int64_t(cluster) * scan.p.group); }
};

// Bits of a block's tokens that are listed in this round. buckets: aligned to 32 bytes.
__device__ __forceinline__ uint32_t listed_bits(const uint16_t* buckets, int num_tokens, const RowPlan& plan) {
  const int before = plan.bucket_before, last = plan.token_bucket;
  const auto listed = [&](uint32_t bucket) { return int(bucket) > before && int(bucket) <= last; };
  uint32_t bits = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 raw = reinterpret_cast<const uint4*>(buckets)[half];
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      bits |= listed(words[w] & 0xffffu) ? 1u << (half * 8 + 2 * w) : 0u;
      bits |= listed(words[w] >> 16) ? 2u << (half * 8 + 2 * w) : 0u;
    }
  }
  return bits & ((1u << num_tokens) - 1u);
}

// Writes the listed tokens of a unit to `list`, 32 blocks of codes at a time; returns their number. By one warp.
__device__ __forceinline__ int list_unit(const SegmentView& clusters, const ScanUnit& unit, const uint16_t* buckets, const RowPlan& plan,
                                         int32_t* list) {
  const int lane = int(threadIdx.x) % kWarpSize;
  int num_listed = 0;
#pragma unroll 1
  for (int first = 0; first < unit.total; first += kWarpSize) {
    const int i = min(first + lane, unit.total - 1);  // the lane's block
    int owner = 0, before = 0;
#pragma unroll
    for (int c = 0; c < kScanClusters; ++c) {
      const int end = __shfl_sync(kFullMask, unit.end, c);
      if (end <= i) owner = c + 1, before = end;
    }
    const int cluster = __shfl_sync(kFullMask, unit.cluster, owner), size = __shfl_sync(kFullMask, unit.size, owner);
    const int block = __shfl_sync(kFullMask, unit.first_block, owner) + i - before;
    const int place = clusters.cluster_indptr[cluster] + (i - before) * kCodeBlock;
    const int num_tokens = min(kCodeBlock, size - (i - before) * kCodeBlock);
    const uint32_t bits = first + lane < unit.total ? listed_bits(buckets + int64_t(block) * kCodeBlock, num_tokens, plan) : 0u;
    const int through = warp_inclusive_sum(int(__popc(bits))), start = num_listed + through - int(__popc(bits));
#pragma unroll 4
    for (int pair = 0; pair < kWarpSize; pair += 2) {  // half a warp a block
      const int from = pair + lane / kCodeBlock, bit = lane % kCodeBlock;
      const uint32_t own = __shfl_sync(kFullMask, bits, from);
      const int at = __shfl_sync(kFullMask, start, from), token = __shfl_sync(kFullMask, place, from) + bit;
      if (own >> bit & 1u) list[at + int(__popc(own & ((1u << bit) - 1u)))] = clusters.cluster_tokens[token];
    }
    num_listed += __shfl_sync(kFullMask, through, kWarpSize - 1);
  }
  return num_listed;
}

// Weight of one column's candidates of a tile by code, of what is not listed; brings the weights of clusters outside that enter to the size
// that they stand for. By one warp; every lane gets the sum.
__device__ __forceinline__ float sum_unread(const StepParams& p, int row, int tile, int g) {
  const RowPlan& plan = p.workspace.plan[row];
  const SegmentView& clusters = p.head(row).clusters;
  const uint16_t* keys = p.workspace.cluster_key + int64_t(row) * p.max_slots;
  const float* log_weight = p.workspace.log_weight + int64_t(row) * p.max_slots * p.group;
  float* tail_weight = p.workspace.tail_weight + int64_t(row) * p.max_slots * p.group;
  const int first = tile * kScanWarps * kScanClusters, of_tile = kScanWarps * kScanClusters, step = p.scan_tiles * of_tile;
  float sum = 0.0f;
#pragma unroll 1
  for (int begin = first; begin < clusters.num_clusters; begin += step)
#pragma unroll 2
    for (int i = int(threadIdx.x) % kWarpSize; i < min(of_tile, clusters.num_clusters - begin); i += kWarpSize) {
      const int cluster = begin + i, key = keys[cluster];
      if (key == kNoCandidate) continue;
      float* own = tail_weight + int64_t(cluster) * p.group + g;
      if (key == kEntersOutside) {
        const float weight = log_weight[int64_t(cluster) * p.group + g], cap = p.shape.logit_softcap;
        *own = (cap > 0.0f ? soft_cap(weight, cap) : weight) + plan.log_outside_scale[g];
      } else {
        sum += cluster_weight(clusters.size[cluster], __expf(*own - plan.reference[g]));
      }
    }
  return warp_sum(sum);
}

// What the candidates of a tile have left to draw from, by the whole block: a thread a cluster.
__device__ __forceinline__ void count_unread(const StepParams& p, int row, int tile) {
  const RowPlan& plan = p.workspace.plan[row];
  const SegmentView& clusters = p.head(row).clusters;
  const int64_t first_cluster = int64_t(row) * p.max_slots, first_block = int64_t(row) * p.max_code_blocks();
  const int of_tile = kScanWarps * kScanClusters, step = p.scan_tiles * of_tile;
#pragma unroll 1
  for (int begin = tile * of_tile; begin < clusters.num_clusters; begin += step)
#pragma unroll 1
    for (int cluster = begin + int(threadIdx.x); cluster < min(begin + of_tile, clusters.num_clusters); cluster += kScanThreads) {
      if (p.workspace.cluster_key[first_cluster + cluster] >= kEntersOutside) continue;
      const uint16_t* buckets = p.workspace.token_bucket + (first_block + clusters.code_indptr[cluster]) * kCodeBlock;
      const int size = int(clusters.size[cluster]);
      float share = 0.0f;
      int count = 0;
#pragma unroll 4
      for (int i = 0; i < size; ++i) {
        const int bucket = buckets[i];
        if (bucket <= plan.token_bucket) continue;
        share += bucket_key(bucket);
        ++count;
      }
      p.workspace.unread_share[first_cluster + cluster] = share;
      p.workspace.unread_tokens[first_cluster + cluster] = count;
    }
}

// Grid: (scan_tiles, num_kv_heads, sets), tiles as in scan_codes_kernel.
// Leaves: the row's list, tail_weight and unread_weight; unread_share and unread_tokens with a certificate.
template <int kHeadDim, int kHeadTiles>
__global__ void __launch_bounds__(kScanThreads, kScanBlocksPerProcessor) list_tokens_kernel(const __grid_constant__ StepParams p) {
  QUORUM_SHARED(ListShared, s);
  const int tile = int(blockIdx.x), row = int(blockIdx.z) * p.shape.num_kv_heads + int(blockIdx.y), group = p.group;
  const int warp = int(threadIdx.x) / kWarpSize;
  let_next_kernel_start();
  wait_for_previous_kernel();
  const RowPlan& plan = p.workspace.plan[row];
  if (plan.path != DecodePath::sparse_tokens || (p.round > 0 && !plan.widens)) return;
  const uint16_t* keys = p.workspace.cluster_key + int64_t(row) * p.max_slots;
  const uint16_t* buckets = p.workspace.token_bucket + int64_t(row) * p.max_code_blocks() * kCodeBlock;
  const SegmentView& clusters = p.head(row).clusters;
  const ScanUnits units(p, tile, clusters.num_clusters);
  int listed = 0;
  {
    const CodeScan<kHeadDim, kHeadTiles> scan(p, row);
    RestVisit<kHeadDim, kHeadTiles> visit{scan, buckets, p.workspace.tail_weight + int64_t(row) * p.max_slots * group, {}, {}, 0};
#pragma unroll 1
    for (int i = units.first; i < units.count; i += units.step) {
      ScanUnit unit;
      unit.load(clusters, keys, i, plan.token_bucket);
      scan.for_each_block(unit, visit);
    }
    listed = visit.num_listed;
  }
  int total;
  const int before = block_exclusive_sum<kScanThreads>(int(threadIdx.x) % kWarpSize == 0 ? listed : 0, total, s.warp_sums);
  const int64_t at = int64_t(row) * p.scan_tiles + tile;
  int32_t* list = p.workspace.tokens + int64_t(row) * p.max_tokens + p.workspace.tile_start[at] + __shfl_sync(kFullMask, before, 0);
#pragma unroll 1
  for (int i = units.first; i < units.count; i += units.step) {
    ScanUnit unit;
    unit.load(clusters, keys, i, plan.token_bucket);
    list += list_unit(clusters, unit, buckets, plan, list);
  }
  if (p.samples_coded()) count_unread(p, row, tile);
#pragma unroll 1
  for (int g = warp; g < group; g += kScanWarps) {
    const float sum = sum_unread(p, row, tile, g);
    if (int(threadIdx.x) % kWarpSize == 0) p.workspace.unread_weight[at * group + g] = sum;
  }
}

}  // namespace quorum::cuda
