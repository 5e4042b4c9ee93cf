// Rows of 16 tokens from anywhere in the cache into a tile of shared memory, in the background.
#pragma once

#include "quorum/core/paged_kv_view.hpp"
#include "quorum/cuda/block/attend_tile.cuh"

namespace quorum::cuda {

// Where the rows of a tile are: lane l < 16 knows those of token l.
struct TileRows {
  const std::byte* key = nullptr;
  const std::byte* value = nullptr;

  __device__ __forceinline__ void find(const PagedKvView& kv, int sequence, int kv_head, int token) {
    const PagedKvView::Place place = kv.place(sequence, token);
    key = kv.key_row(place, kv_head);
    value = kv.value_row(place, kv_head);
  }
};

__device__ __forceinline__ const std::byte* shuffle_pointer(const std::byte* pointer, int lane) {
  return reinterpret_cast<const std::byte*>(__shfl_sync(kFullMask, reinterpret_cast<unsigned long long>(pointer), lane));
}

// Asks for the rows; `row` is TileRows::key or value. Rows from `count` on become zeros, but must be readable. 128-bit copies, neighbouring lanes in one row.
template <int kHeadDim, class T>
__device__ __forceinline__ void gather_rows(const std::byte* row, int count, T* tile) {
  constexpr int kPieces = kHeadDim / 8;  // of 16 bytes
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < kTileTokens * kPieces / kWarpSize; ++i) {
    const int piece = i * kWarpSize + lane, token = piece / kPieces, at = piece % kPieces;
    const std::byte* source = shuffle_pointer(row, token);
    cp_async_16(tile + token * kTileStride<kHeadDim> + at * 8, source + at * 16, token < count);
  }
}

}  // namespace quorum::cuda
