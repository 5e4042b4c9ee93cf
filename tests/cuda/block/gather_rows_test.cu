#include "quorum/cuda/block/gather_rows.cuh"

#include <doctest/doctest.h>

#include <algorithm>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

constexpr int kHeadDim = 96, kElements = cuda::kTileElements<bf16, kHeadDim>;

__global__ void gather_kernel(const __grid_constant__ PagedKvView kv, int sequence, int kv_head, const int* tokens, int count,
                              bf16* result) {
  QUORUM_SHARED(bf16[2 * kElements], tile);
  const int lane = int(threadIdx.x);
  const cuda::HeadRows head(kv, sequence, kv_head);
  cuda::TileRows rows;
  rows.find(head, tokens[min(lane % cuda::kTileTokens, count - 1)]);
  cuda::gather_rows<kHeadDim>(rows.key, count, tile);
  cuda::gather_rows<kHeadDim>(rows.value, count, tile + kElements);
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
  __syncwarp();
  for (int i = lane; i < 2 * cuda::kTileTokens * kHeadDim; i += cuda::kWarpSize) {
    const int plane = i / (cuda::kTileTokens * kHeadDim), in_plane = i % (cuda::kTileTokens * kHeadDim);
    result[i] = tile[plane * kElements + in_plane / kHeadDim * cuda::kTileStride<bf16, kHeadDim> + in_plane % kHeadDim];
  }
}

// Rows of four pages of eight tokens and two heads, numbered; sequence 1 has the pages 3, 0, 2.
struct PagedRows {
  static constexpr int kPages = 4, kPageSize = 8, kHeads = 2;
  std::vector<bf16> keys, values;
  PagedRows() {
    for (int row = 0; row < kPages * kPageSize * kHeads; ++row)
      for (int c = 0; c < kHeadDim; ++c) {
        keys.push_back({uint16_t(row * kHeadDim + c)});
        values.push_back({uint16_t(0x8000 + row * kHeadDim + c)});
      }
  }
  uint16_t key_bits(int page, int in_page, int head, int c) const {
    return uint16_t(((page * kPageSize + in_page) * kHeads + head) * kHeadDim + c);
  }
};

void check_gather(const PagedKvView& kv, const PagedRows& rows, const std::vector<int>& pages, const std::vector<int>& tokens) {
  const DeviceArray<int> on_device(tokens);
  const DeviceArray<bf16> output(2 * cuda::kTileTokens * kHeadDim);
  const int count = int(tokens.size());
  REQUIRE(cuda::launch({.threads = 32}, gather_kernel, kv, 1, 1, static_cast<const int*>(on_device.data()), count, output.data()) ==
          cudaSuccess);
  const std::vector<bf16> found = output.values();
  for (int i = 0; i < cuda::kTileTokens; ++i)
    for (int c = 0; c < kHeadDim; ++c) {
      const int token = tokens[size_t(std::min(i, count - 1))];
      const uint16_t bits = rows.key_bits(pages[size_t(token / PagedRows::kPageSize)], token % PagedRows::kPageSize, 1, c);
      CHECK(found[size_t(i * kHeadDim + c)].bits == (i < count ? bits : 0));
      CHECK(found[size_t((cuda::kTileTokens + i) * kHeadDim + c)].bits == (i < count ? uint16_t(0x8000 + bits) : 0));
    }
}

TEST_CASE("gather rows: by both forms of page tables and without pages; beyond the count there are zeros") {
  const PagedRows rows;
  const DeviceArray<bf16> keys(rows.keys), values(rows.values);
  const DeviceArray<int32_t> table(std::vector<int32_t>{1, -1, -1, 3, 0, 2}), indices(std::vector<int32_t>{1, 3, 0, 2}),
      indptr(std::vector<int32_t>{0, 1, 4});
  PagedKvView kv = PagedKvView::nhd(keys.data(), values.data(), nullptr, PagedRows::kPageSize, PagedRows::kHeads, kHeadDim);
  const std::vector<int> scattered{17, 0, 23, 8, 9, 16, 1, 22, 15, 7, 2, 3, 4, 5, 6, 10}, few{20, 3, 11};
  check_gather(kv, rows, {1}, {7, 0, 3});  // without pages, sequence 1 is page 1
  kv.page_size = PagedRows::kPageSize;
  kv.page_indices = table.data();
  kv.pages_per_sequence = 3;
  check_gather(kv, rows, {3, 0, 2}, scattered);
  kv.page_indices = indices.data();
  kv.page_indptr = indptr.data();
  check_gather(kv, rows, {3, 0, 2}, few);
}

}  // namespace
}  // namespace quorum::test
