#include "quorum/cuda/dispatch/tuning.cuh"

#include <doctest/doctest.h>

namespace quorum::cuda {
namespace {

TEST_CASE("tuning: the device that runs is asked") {
  const DeviceTuning tuning = DeviceTuning::of_current();
  CHECK(tuning.num_processors >= 1);
  int shared = 0;
  REQUIRE(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
  CHECK(tuning.large_shared_memory == (shared >= 220 * 1024));
  int major = 0;
  REQUIRE(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess);
  CHECK(tuning.has_teams == (major >= 9));
}

TEST_CASE("tuning: attention fills the device") {
  const DeviceTuning tuning{100, true};
  for (const int head_dim : {64, 96, 128}) CHECK(tuning.attend_blocks(head_dim) == 200);
  CHECK(tuning.attend_blocks(256) == 100);
}

TEST_CASE("tuning: scoring has a block for each row, no more than there are clusters for, and its partial sums fit") {
  for (const int processors : {1, 3, 132}) {
    const DeviceTuning tuning{processors, true};
    for (const int slots : {16, 128, 129, 4096, 100000})
      for (int rows = 1; rows <= 600; rows += rows < 20 ? 1 : 37) {
        const int tiles = tuning.score_tiles(rows, slots);
        CHECK(tiles >= 1);
        CHECK((tiles - 1) * kClusterBlock * kScoreWarps < slots);
        CHECK((tiles - 1) * rows < 2 * processors);
        // A plan for 600 rows serves any smaller number of them.
        CHECK(int64_t(tiles) * rows <= tuning.max_score_blocks(600));
      }
  }
  CHECK(DeviceTuning{132, true}.score_tiles(1, 1 << 20) == 264);
  CHECK(DeviceTuning{132, true}.score_tiles(1, 128) == 1);
  CHECK(DeviceTuning{132, true}.score_tiles(0, 4096) >= 1);
}

TEST_CASE("tuning: the scan of codes has as many blocks as fit, no more than there are clusters for, and its sums fit") {
  for (const int processors : {1, 3, 132}) {
    const DeviceTuning tuning{processors, true};
    for (const int slots : {16, 64, 65, 4096, 100000})
      for (int rows = 1; rows <= 600; rows += rows < 20 ? 1 : 37) {
        const int tiles = tuning.scan_tiles(rows, slots);
        CHECK(tiles >= 1);
        CHECK((tiles - 1) * kScanClusters * kScanWarps < slots);
        CHECK(int64_t(tiles) * rows <= tuning.max_scan_blocks(600));
      }
  }
}

TEST_CASE("tuning: several blocks choose for a row where rows are few and clusters many, on devices that have teams") {
  const DeviceTuning tuning{132, true, true};
  CHECK(tuning.select_blocks(1, 16384, 1) == 8);
  CHECK(tuning.select_blocks(8, 16384, 1) == 8);
  CHECK(tuning.select_blocks(64, 16384, 1) == 2);
  CHECK(tuning.select_blocks(67, 16384, 1) == 1);
  CHECK(tuning.select_blocks(67, 16384, 4) == 4);
  CHECK(tuning.select_blocks(8, 2048, 1) == 4);
  CHECK(tuning.select_blocks(8, 1023, 1) == 1);
  CHECK(tuning.select_blocks(0, 16, 1) == 1);
  CHECK(DeviceTuning{132, true, false}.select_blocks(1, 16384, 1) == 1);
  CHECK(DeviceTuning{3, true, true}.select_blocks(1, 16384, 1) == 2);
}

TEST_CASE("tuning: as many blocks choose for a row as its clusters need, up to what a device has") {
  const DeviceTuning teams{132, true, true}, none{132, true, false}, small{108, false, false};
  CHECK(teams.least_select_blocks(4, 4096, true) == 1);
  CHECK(none.least_select_blocks(4, 4096, true) == 1);
  CHECK(small.least_select_blocks(16, 8192, true) == 1);
  const int of_a_million_tokens = (1 << 20) / 8;
  CHECK(teams.least_select_blocks(4, of_a_million_tokens, true) == 8);
  CHECK(none.least_select_blocks(4, of_a_million_tokens, true) == 0);
  CHECK(teams.least_select_blocks(4, 1 << 24, true) == 0);
  for (int slots = 16; slots < 1 << 18; slots = slots * 3 / 2 / 16 * 16 + 16)
    for (const int group : {1, 16}) {
      const int least = teams.least_select_blocks(group, slots, true);
      if (least == 0) continue;
      CHECK(select_shared_bytes(group, slots, least) <= 227 * 1024);
      CHECK(RowCandidates<16>::shared_bytes(group, slots, least) <= 227 * 1024);
      if (least > 1) CHECK(select_shared_bytes(group, slots, least / 2) > 227 * 1024);
    }
}

template <class Tuning, class T, int kHeadDim, int kHeadTiles>
void check_policy(int64_t shared) {
  using Policy = typename Tuning::template Attend<T, kHeadDim, kHeadTiles>;
  CHECK(Policy::kThreads == Policy::kWarps * 32);
  CHECK(Policy::kBlocks == DeviceTuning{1, true}.attend_blocks(kHeadDim));
  // A block's memory and 1 KB that the system takes, for all blocks that are to be there at once.
  CHECK((attend_shared_bytes<T, kHeadDim, kHeadTiles, Policy>(64) + 1024) * Policy::kBlocks <= shared);
}
template <class Tuning, class T>
void check_policies(int64_t shared) {
  check_policy<Tuning, T, 64, 1>(shared);
  check_policy<Tuning, T, 64, 2>(shared);
  check_policy<Tuning, T, 96, 1>(shared);
  check_policy<Tuning, T, 96, 2>(shared);
  check_policy<Tuning, T, 128, 1>(shared);
  check_policy<Tuning, T, 128, 2>(shared);
  check_policy<Tuning, T, 256, 1>(shared);
  check_policy<Tuning, T, 256, 2>(shared);
}

TEST_CASE("tuning: tiles in flight fit into the shared memory, for as many blocks as a policy promises") {
  check_policies<LargeSharedMemory, bf16>(228 * 1024);
  check_policies<SmallSharedMemory, bf16>(164 * 1024);
  check_policies<LargeSharedMemory, fp8_e4m3>(228 * 1024);
  check_policies<SmallSharedMemory, fp8_e4m3>(164 * 1024);
}

}  // namespace
}  // namespace quorum::cuda
