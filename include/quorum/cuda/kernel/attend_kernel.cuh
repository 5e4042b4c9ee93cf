// Third stage: attention over the lists of all rows, value means and draws beside it, in equal runs of tiles. Leaves one partial result for
// each segment that a block has a part of.
#pragma once

#include "quorum/cuda/block/attend_segment.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// kWarps warps a block, each with kStages tiles of keys and values of its own in flight.
template <int kWarpsPerBlock, int kTileStages, int kBlocksPerProcessor>
struct AttendPolicy {
  static constexpr int kWarps = kWarpsPerBlock;
  static constexpr int kStages = kTileStages;
  static constexpr int kBlocks = kBlocksPerProcessor;
  static constexpr int kThreads = kWarps * kWarpSize;
};

// Elements of a warp's tiles: keys and values of every stage.
template <class T, int kHeadDim, class Policy>
inline constexpr int kWarpTileElements = Policy::kStages * 2 * kTileElements<T, kHeadDim>;

template <class T, int kHeadDim, int kHeadTiles, class Policy>
int64_t attend_shared_bytes(int num_rows) {
  return int64_t(Policy::kWarps) * kWarpTileElements<T, kHeadDim, Policy> * int64_t(sizeof(T)) +
         8 * kHeadTiles * (kTileStride<Operand<T>, kHeadDim> * 2 + int64_t(sizeof(ColumnRange))) +
         (kSegmentKinds * int64_t(num_rows) + 1) * 4;
}

// Joins the warps' states and writes the block's part of a segment, its output times `scale`. `scratch`: the tiles' memory, which
// no one uses any more.
template <int kHeadDim, int kHeadTiles, class Policy>
__device__ __forceinline__ void write_partial(const StepParams& p, int64_t partial, OutputPlaces places, float scale,
                                              TileState<kHeadDim, kHeadTiles>& state, float* scratch) {
  constexpr int kHeads = 8 * kHeadTiles, kStride = kHeadDim + 4;  // the padding keeps a warp's stores in different banks
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize, group = p.group;
  float* output = scratch + warp * kHeads * kStride;
  auto* states = reinterpret_cast<AttentionState*>(scratch + Policy::kWarps * kHeads * kStride);
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int head = t * 8 + lane % 4 * 2 + j;
      const float sum = warp_sum<4>(state.sum[t][j]);
      if (lane < 4) states[warp * kHeads + head] = {state.max[t][j], sum};
#pragma unroll
      for (int m = 0; m < kHeadDim / 16; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) output[head * kStride + m * 16 + places.first + places.step * i] = state.output[m][t][2 * i + j];
    }
  __syncthreads();
  for (int i = int(threadIdx.x); i < group * kHeadDim; i += Policy::kThreads) {
    const int head = i / kHeadDim, c = i % kHeadDim;
    float max = -kInfinity, sum = 0.0f, value = 0.0f;
#pragma unroll
    for (int w = 0; w < Policy::kWarps; ++w) max = larger_max(max, states[w * kHeads + head].max);
#pragma unroll
    for (int w = 0; w < Policy::kWarps; ++w) {
      const AttentionState own = states[w * kHeads + head];
      const float factor = own.max == -kInfinity && own.sum == 0.0f ? 0.0f : exp2_approx(own.max - max);
      sum += own.sum * factor;
      value += scratch[(w * kHeads + head) * kStride + c] * factor;
    }
    p.workspace.partial_output[(partial * group + head) * kHeadDim + c] = value * scale;
    if (c == 0) p.workspace.partial_state[partial * group + head] = {max / kLog2e, sum};
  }
  __syncthreads();
}

// Grid: (attend_blocks). Shared: attend_shared_bytes().
template <class T, int kHeadDim, int kHeadTiles, class Policy>
__global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks) attend_kernel(const __grid_constant__ StepParams p) {
  constexpr int kWarpElements = kWarpTileElements<T, kHeadDim, Policy>;
  static_assert(kWarpElements * sizeof(T) >= kTileElements<bf16, kHeadDim> * sizeof(bf16), "the tail's tile lies in their place");
  static_assert(
      Policy::kWarps * kWarpElements * sizeof(T) >= Policy::kWarps * 8 * kHeadTiles * ((kHeadDim + 4) * 4 + sizeof(AttentionState)),
      "so does what warps hand over");
  T* memory = dynamic_shared<T>();
  auto* queries = reinterpret_cast<Operand<T>*>(memory + Policy::kWarps * kWarpElements);
  auto* ranges = reinterpret_cast<ColumnRange*>(queries + 8 * kHeadTiles * kTileStride<Operand<T>, kHeadDim>);
  int32_t* indptr = reinterpret_cast<int32_t*>(ranges + 8 * kHeadTiles);
  // The same for all lanes, which the compiler sees only so.
  const int warp = __shfl_sync(kFullMask, int(threadIdx.x) / kWarpSize, 0);
  const int block = int(blockIdx.x), num_segments = kSegmentKinds * p.num_rows();
  T* tiles = memory + warp * kWarpElements;
  let_next_kernel_start();
  wait_for_previous_kernel();
  sum_tiles(p, indptr);
  const int total = indptr[num_segments];
  if (block == 0)
    for (int i = int(threadIdx.x); i <= num_segments; i += Policy::kThreads)
      p.workspace.tile_indptr[int64_t(p.round) * (num_segments + 1) + i] = indptr[i];
  const TileRange range = tiles_of_block(block, p.attend_blocks, total);
  for (int tile = range.first, segment; tile < range.last; tile = min(range.last, indptr[segment + 1])) {
    segment = segment_of_tile(indptr, num_segments, tile);
    const int row = segment / kSegmentKinds, begin = indptr[segment], end = min(range.last, indptr[segment + 1]);
    const WarpTiles own{tile - begin + warp, end - begin, Policy::kWarps};
    const bool is_tail = segment % kSegmentKinds == int(SegmentKind::tail);
    if (!is_tail) load_tile_queries<T, kHeadDim, kHeadTiles>(p, row, queries);
    if (!is_tail) load_column_ranges(p, row, 8 * kHeadTiles, ranges);
    if (segment % kSegmentKinds == int(SegmentKind::draws)) {
      score_draws<T, kHeadDim, kHeadTiles>(p, row, own, queries, tiles);
      __syncthreads();
      continue;
    }
    TileState<kHeadDim, kHeadTiles> state;
    state.clear();
    if (is_tail)
      attend_tail<kHeadDim, kHeadTiles>(p, row, own, reinterpret_cast<bf16*>(tiles), state);
    else
      attend_listed<T, kHeadDim, kHeadTiles, Policy::kStages>(p, row, own, queries, ranges, tiles, state);
    __syncthreads();
    const OutputPlaces places = is_tail ? OutputPlaces::of<bf16>() : OutputPlaces::of<T>();
    write_partial<kHeadDim, kHeadTiles, Policy>(p, partial_of(p, p.round, block, segment), places, is_tail ? 1.0f : value_scale<T>(p, row),
                                                state, reinterpret_cast<float*>(memory));
  }
}

}  // namespace quorum::cuda
