#include "quorum/cuda/block/work_list.cuh"

#include <doctest/doctest.h>

#include <set>
#include <utility>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

TEST_CASE("work list: every tile belongs to one block, and the block is known from the tile") {
  for (const int total : {0, 1, 2, 7, 8, 9, 100, 1000})
    for (const int blocks : {1, 2, 3, 8, 264}) {
      CAPTURE(total);
      CAPTURE(blocks);
      int next = 0;
      for (int block = 0; block < blocks; ++block) {
        const cuda::TileRange range = cuda::tiles_of_block(block, blocks, total);
        CHECK(range.first == next);
        CHECK(range.last - range.first >= total / blocks);
        CHECK(range.last - range.first <= total / blocks + 1);
        for (int tile = range.first; tile < range.last; ++tile) CHECK(cuda::block_of_tile(tile, blocks, total) == block);
        next = range.last;
      }
      CHECK(next == total);
    }
}

struct Segments {
  int num_segments, total;
  int segment_of[64];
  int64_t partial_of[64];
};

__global__ void list_kernel(const __grid_constant__ cuda::StepParams p, Segments* results) {
  QUORUM_SHARED(int32_t[128], indptr);
  cuda::sum_tiles(p, indptr);
  if (threadIdx.x != 0) return;
  const int num_segments = cuda::kSegmentKinds * p.num_rows(), total = indptr[num_segments];
  results->num_segments = num_segments;
  results->total = total;
  for (int tile = 0; tile < total; ++tile) {
    results->segment_of[tile] = cuda::segment_of_tile(indptr, num_segments, tile);
    results->partial_of[tile] = cuda::partial_of(p, p.round, cuda::block_of_tile(tile, p.attend_blocks, total), results->segment_of[tile]);
  }
}

TEST_CASE("work list: segments by their counts, empty ones left out; partial results never meet") {
  cuda::StepParams p;
  p.shape = {4, 2, 64, 0.0f};
  p.num_sequences = 7;
  p.attend_blocks = 5;
  p.round = 1;
  std::vector<int32_t> counts(size_t(cuda::kSegmentKinds * p.num_rows()), 0);
  const std::vector<int> filled{0, 1, 4, 20, 21, 41};  // the last segment of all among them
  for (const int segment : filled) counts[size_t(segment)] = 16 * (segment % 4) + 1;
  const DeviceArray<int32_t> on_device(counts);
  p.workspace.counts = on_device.data();
  const DeviceArray<Segments> output(1);
  REQUIRE(cuda::launch({.threads = 64}, list_kernel, p, output.data()) == cudaSuccess);
  const Segments found = output.values()[0];
  int tile = 0;
  std::set<std::pair<int64_t, int>> seen;  // partial result, segment and block
  for (const int segment : filled)
    for (int i = 0; i <= segment % 4; ++i, ++tile) {
      CHECK(found.segment_of[tile] == segment);
      seen.insert({found.partial_of[tile], segment * 1000 + cuda::block_of_tile(tile, p.attend_blocks, found.total)});
    }
  CHECK(found.total == tile);
  std::set<int64_t> places;
  for (const auto& [place, owner] : seen) {
    CHECK(places.insert(place).second);  // two owners would come to the same place
    CHECK(place >= p.num_partials());
    CHECK(place < 2 * p.num_partials());
  }
}

}  // namespace
}  // namespace quorum::test
