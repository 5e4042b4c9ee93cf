// Rows of 16 tokens from anywhere in the cache into a tile of shared memory, in the background.
#pragma once

#include "quorum/core/paged_kv_view.hpp"
#include "quorum/cuda/block/attend_tile.cuh"

namespace quorum::cuda {

// Where one KV head of one sequence lies.
struct HeadRows {
  const std::byte* keys;
  const std::byte* values;
  const int32_t* page_indices;  // of the sequence, or null
  int64_t key_page_stride, key_token_stride, value_page_stride, value_token_stride;
  int page_size;

  __device__ __forceinline__ HeadRows(const PagedKvView& kv, int sequence, int kv_head)
      : page_indices(kv.page_indices == nullptr ? nullptr : kv.pages_of(sequence)),
        key_page_stride(kv.key_page_stride),
        key_token_stride(kv.key_token_stride),
        value_page_stride(kv.value_page_stride),
        value_token_stride(kv.value_token_stride),
        page_size(kv.page_size) {
    const PagedKvView::Place first{page_indices == nullptr ? sequence : 0, 0};
    keys = kv.key_row(first, kv_head);
    values = kv.value_row(first, kv_head);
  }
};

// Where the rows of a tile are: lane l < 16 knows those of token l.
struct TileRows {
  const std::byte* key = nullptr;
  const std::byte* value = nullptr;

  __device__ __forceinline__ void find(const HeadRows& head, int token) {
    int64_t page = 0;
    if (head.page_indices != nullptr) {  // at run time, so that caches without pages cost no division
      page = head.page_indices[token / head.page_size];
      token = token % head.page_size;
    }
    key = head.keys + page * head.key_page_stride + token * head.key_token_stride;
    value = head.values + page * head.value_page_stride + token * head.value_token_stride;
  }
};

__device__ __forceinline__ const std::byte* shuffle_pointer(const std::byte* pointer, int lane) {
  return reinterpret_cast<const std::byte*>(__shfl_sync(kFullMask, reinterpret_cast<unsigned long long>(pointer), lane));
}

// Asks for the rows; `row` is TileRows::key or value. Rows from `count` on become zeros, but must be readable. 128-bit copies, neighbouring
// lanes in one row.
template <int kHeadDim, class T>
__device__ __forceinline__ void gather_rows(const std::byte* row, int count, T* tile) {
  constexpr int kPieces = kHeadDim / kPieceElements<T>;
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < kTileTokens * kPieces / kWarpSize; ++i) {
    const int piece = i * kWarpSize + lane, token = piece / kPieces, at = piece % kPieces;
    const std::byte* source = shuffle_pointer(row, token);
    cp_async_16(tile + token * kTileStride<T, kHeadDim> + at * kPieceElements<T>, source + at * 16, token < count);
  }
}

}  // namespace quorum::cuda
