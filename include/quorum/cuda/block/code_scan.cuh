// What the codes of a row's candidates say of their tokens, by one warp: which blocks of codes there are, and what their tokens weigh
// (algorithm.md eq. 13).
#pragma once

#include "quorum/core/coded_rest.hpp"
#include "quorum/core/token_order.hpp"
#include "quorum/cuda/block/adjust_scores.cuh"
#include "quorum/cuda/block/code_block.cuh"

namespace quorum::cuda {

inline constexpr int kScanThreads = 256;
inline constexpr int kScanWarps = kScanThreads / kWarpSize;
inline constexpr int kScanBlocksPerProcessor = 2;
inline constexpr int kScanClusters = 8;  // that a warp goes through together

// Blocks of codes on their way; more would spill where 16 columns fill the registers.
template <int kHeadDim, int kHeadTiles>
inline constexpr int kScanAhead = kHeadTiles == 1   ? 4
                                  : kHeadDim <= 128 ? 2
                                                    : 1;

// The blocks of codes of those of kScanClusters neighbouring clusters that are wanted, in one line. Lane l < kScanClusters knows cluster l.
struct ScanUnit {
  int cluster = 0, size = 0;
  int first_block = 0, num_blocks = 0;  // of the index
  int end = 0;                          // blocks of this cluster and those before
  int total = 0;                        // of all

  // keys: StepWorkspace::cluster_key of the row. A cluster is wanted if its key is at most `last_key`.
  __device__ __forceinline__ void load(const SegmentView& clusters, const uint16_t* keys, int unit, int last_key) {
    const int lane = int(threadIdx.x) % kWarpSize;
    cluster = min(unit * kScanClusters + lane, clusters.num_clusters - 1);
    const bool wanted = lane < kScanClusters && unit * kScanClusters + lane < clusters.num_clusters && int(keys[cluster]) <= last_key;
    first_block = wanted ? clusters.code_indptr[cluster] : 0;
    size = wanted ? int(clusters.size[cluster]) : 0;
    num_blocks = num_code_blocks(size);
    end = warp_inclusive_sum(num_blocks);
    total = __shfl_sync(kFullMask, end, kWarpSize - 1);
    __syncwarp();  // the scan writes other keys in the place of these
  }

  // The lane that knows the cluster of the i-th block, and that block's place in its cluster.
  struct Place {
    int lane, block;
  };
  __device__ __forceinline__ Place place_of(int i) const {
    const int owner = __popc(__ballot_sync(kFullMask, end <= i));
    return {owner, i - __shfl_sync(kFullMask, end - num_blocks, owner)};
  }
  __device__ __forceinline__ int block_of(const Place& place) const {
    return __shfl_sync(kFullMask, first_block, place.lane) + place.block;
  }
};

// The warp's units of a row: `first`, then every `step` further, below `count`.
struct ScanUnits {
  int first, step, count;

  __device__ __forceinline__ ScanUnits(const StepParams& p, int tile, int num_clusters)
      : first(tile * kScanWarps + int(threadIdx.x) / kWarpSize),
        step(p.scan_tiles * kScanWarps),
        count((num_clusters + kScanClusters - 1) / kScanClusters) {}
};

// What a row's columns are to the scan; a lane has columns 8 t + 2 (lane % 4) + j.
template <int kHeadDim, int kHeadTiles>
struct CodeScan {
  const StepParams& p;
  const FlatHeadView& head;
  const RowPlan& plan;
  const float* log_weight;          // of the row, not soft-capped
  const QueryConstants* constants;  // of the row
  CodeQueries<kHeadDim> queries[kHeadTiles];
  float step[kHeadTiles][2];         // value of one step of a sum of signs, in units of log2(e), the gain included
  int32_t query_sum[kHeadTiles][2];  // of the int8 query

  __device__ __forceinline__ CodeScan(const StepParams& params, int row)
      : p(params),
        head(params.head(row)),
        plan(params.workspace.plan[row]),
        log_weight(params.workspace.log_weight + int64_t(row) * params.max_slots * params.group),
        constants(params.workspace.constants + row * kMaxGroupSize) {
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) {
      queries[t].load(p.workspace.quantised + int64_t(row) * kMaxGroupSize * kHeadDim, t * 8);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const QueryConstants& own = constants[there(t, j)];
        step[t][j] = own.step * (kCodeGain * kLog2e);
        query_sum[t][j] = own.zero_dot / kCentroidZero;
      }
    }
  }
  static __device__ __forceinline__ int column_of(int tile, int j) { return tile * 8 + int(threadIdx.x) % 4 * 2 + j; }
  // The same, or the last column that is there.
  __device__ __forceinline__ int there(int tile, int j) const { return min(column_of(tile, j), p.group - 1); }
  // Log of the weight that is expected in all.
  __device__ __forceinline__ float log_total(int tile, int j) const { return plan.log_total[there(tile, j)]; }

  // What a cluster's centroid says of its tokens.
  struct Centroid {
    float log_share[kHeadTiles][2];  // of a token, without the second-order term: codes stand for that. Base 2
    float expected[kHeadTiles][2];   // factor from a coded to an expected weight
  };
  __device__ __forceinline__ void enter(int cluster, Centroid& centroid) const {
    const float spread = head.clusters.spread[cluster];
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const QueryConstants& own = constants[there(t, j)];
        const float half_variance = p.options.variance == VarianceModel::none ? 0.0f : own.half_variance;
        const float estimate = limited_token_log_weight(log_total(t, j), spread, half_variance);
        centroid.log_share[t][j] = (log_weight[int64_t(cluster) * p.group + there(t, j)] - estimate) * kLog2e;
        centroid.expected[t][j] = __expf(limited_half_variance(spread * half_lost_variance(p.options.variance, own.square, kHeadDim)));
      }
  }

  // Shares of the total that the tokens of a block weigh by code: share[t][2 i + j] is that of token lane / 4 + 8 i and column (t, j); 0
  // for columns that are not there and from num_tokens on. key[i]: the largest over all columns.
  __device__ __forceinline__ void weigh(const CodeFragment<kHeadDim>& codes, const Centroid& centroid, int num_tokens,
                                        float (&share)[kHeadTiles][4], float (&key)[2]) const {
    int32_t dot[kHeadTiles][4];
    code_dots<kHeadDim, kHeadTiles>(codes, queries, dot);
    const int token = int(threadIdx.x) % kWarpSize / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float scale = unpack_f16(codes.scale[i]).x;
      key[i] = 0.0f;
#pragma unroll
      for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float sign_dot = float(2 * dot[t][2 * i + j] - query_sum[t][j]) * step[t][j];
          float log_share = coded_score(centroid.log_share[t][j], scale, sign_dot);
          if (p.shape.logit_softcap > 0.0f)
            log_share = (soft_cap(log_share / kLog2e + log_total(t, j), p.shape.logit_softcap) - log_total(t, j)) * kLog2e;
          const bool weighs = token + 8 * i < num_tokens && column_of(t, j) < p.group;
          share[t][2 * i + j] = weighs ? exp2_approx(fminf(log_share, kLargestLogShare)) : 0.0f;
          key[i] = fmaxf(key[i], share[t][2 * i + j]);
        }
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) key[i] = fmaxf(key[i], __shfl_xor_sync(kFullMask, key[i], lanes));
    }
  }

  // Goes through the blocks of a unit's clusters: visit.enter(cluster), visit.take(codes, block, tokens of it) for each of its blocks,
  // visit.leave(cluster, size).
  template <class Visit>
  __device__ __forceinline__ void for_each_block(const ScanUnit& unit, Visit&& visit) const {
    constexpr int kAhead = kScanAhead<kHeadDim, kHeadTiles>;
    CodeFragment<kHeadDim> ahead[kAhead];
    const auto fetch = [&](int i, CodeFragment<kHeadDim>& codes) {
      if (i < unit.total) codes.load(head.clusters, unit.block_of(unit.place_of(i)));
    };
#pragma unroll
    for (int k = 0; k < kAhead; ++k) fetch(k, ahead[k]);
#pragma unroll 1
    for (int first = 0; first < unit.total; first += kAhead)
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (first + k >= unit.total) break;
        const ScanUnit::Place place = unit.place_of(first + k);
        const int cluster = __shfl_sync(kFullMask, unit.cluster, place.lane), size = __shfl_sync(kFullMask, unit.size, place.lane);
        if (place.block == 0) visit.enter(cluster);
        visit.take(ahead[k], unit.block_of(place), min(kCodeBlock, size - place.block * kCodeBlock));
        fetch(first + k + kAhead, ahead[k]);
        if ((place.block + 1) * kCodeBlock >= size) visit.leave(cluster, size);
      }
  }
};

// Sums of a cluster's shares over its tokens, and what they come to per token, as a log.
template <int kHeadTiles>
struct ClusterMass {
  float share[kHeadTiles][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) share[t][0] = share[t][1] = 0.0f;
  }
  // out: [group] of the cluster. Post: -inf where nothing weighs anything.
  template <int kHeadDim>
  __device__ __forceinline__ void store(const CodeScan<kHeadDim, kHeadTiles>& scan, int size, float* out) const {
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float sum = warp_sum<4>(share[t][j]);
        const int column = scan.column_of(t, j);
        if (int(threadIdx.x) % kWarpSize < 4 && column < scan.p.group)
          out[column] = sum > 0.0f ? __logf(sum / float(size)) + scan.log_total(t, j) : -kInfinity;
      }
  }
};

}  // namespace quorum::cuda
