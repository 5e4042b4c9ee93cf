// What was tuned, by architecture, and how wide a step spreads. Measured: docs/performance.md.
#pragma once

#include <algorithm>

#include "quorum/cuda/kernel/attend_kernel.cuh"
#include "quorum/cuda/kernel/choose_candidates_kernel.cuh"
#include "quorum/cuda/kernel/scan_codes_kernel.cuh"
#include "quorum/cuda/kernel/score_clusters_kernel.cuh"
#include "quorum/cuda/support/device_buffer.cuh"

namespace quorum::cuda {

// Blocks of the attend kernel that a multiprocessor holds: sums of long vectors take the registers of two.
constexpr int attend_blocks_per_processor(int head_dim) { return head_dim <= 128 ? 2 : 1; }

// Tiles in flight, 16 tokens of keys and values for every warp and stage: they fill the shared memory where elements have 2 bytes. Four
// tiles of bytes are as much as two of these, and more than memory's latency asks for.
template <class T, int kWideStages>
inline constexpr int kAttendStages = sizeof(T) == 1 ? 4 : kWideStages;

struct LargeSharedMemory {  // compute capability 9.0 and 10.0: 227 KB a block
  template <class T, int kHeadDim, int kHeadTiles>
  using Attend = AttendPolicy<4, kAttendStages<T, (kHeadDim * kHeadTiles <= 256 ? 3 : 2)>,  // a third would spill
                              attend_blocks_per_processor(kHeadDim)>;
};
struct SmallSharedMemory {  // 8.0: 163 KB
  template <class T, int kHeadDim, int kHeadTiles>
  using Attend = AttendPolicy<4, kAttendStages<T, 2>, attend_blocks_per_processor(kHeadDim)>;
};

// What a plan needs to know of its device.
struct DeviceTuning {
  int num_processors = 0;
  bool large_shared_memory = false;
  bool has_teams = false;  // LaunchConfig::team may be more than 1

  // Errors: Error(cuda_failure).
  static DeviceTuning of_current() {
    DeviceTuning tuning;
    int device = 0, shared = 0, teams = 0;
    check(cudaGetDevice(&device), "DeviceTuning", "cudaGetDevice");
    check(cudaDeviceGetAttribute(&tuning.num_processors, cudaDevAttrMultiProcessorCount, device), "DeviceTuning", "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "DeviceTuning", "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&teams, cudaDevAttrClusterLaunch, device), "DeviceTuning", "cudaDeviceGetAttribute");
    tuning.large_shared_memory = shared >= 220 * 1024;
    tuning.has_teams = teams != 0;
    return tuning;
  }

  int attend_blocks(int head_dim) const { return num_processors * attend_blocks_per_processor(head_dim); }
  // Enough blocks to fill the device, no more than there are clusters for: every block loads the queries once more.
  int score_tiles(int num_rows, int max_slots) const {
    const int64_t by_device = ceil_div(int64_t(2) * num_processors, std::max(1, num_rows));
    const int64_t by_clusters = ceil_div(max_slots, int64_t(kClusterBlock) * kScoreWarps);
    return int(std::max<int64_t>(1, std::min(by_device, by_clusters)));
  }
  // Fewest blocks of a team whose shared memory holds what choosing keeps of a row's clusters; 0: not even the largest does.
  int least_select_blocks(int group, int max_slots, bool by_tokens) const {
    const int64_t most_shared = (large_shared_memory ? 227 : 163) * 1024;
    for (int blocks = 1; blocks <= (has_teams ? kMaxTeamBlocks : 1); blocks *= 2) {
      const int64_t candidates = by_tokens ? RowCandidates<kMaxGroupSize>::shared_bytes(group, max_slots, blocks) : 0;
      if (std::max(select_shared_bytes(group, max_slots, blocks), candidates) <= most_shared) return blocks;
    }
    return 0;
  }
  // Blocks of a team that chooses for a row: the fewest, or what few rows leave idle, as long as every thread has a cluster. Powers of two.
  int select_blocks(int num_rows, int max_slots, int least) const {
    int blocks = least;
    while (has_teams && 2 * blocks <= kMaxTeamBlocks && 2 * blocks * num_rows <= num_processors && 2 * blocks * kSelectThreads <= max_slots)
      blocks *= 2;
    return blocks;
  }
  // Most blocks of scoring for any number of rows up to max_rows.
  int max_score_blocks(int max_rows) const { return 2 * num_processors + max_rows; }
  // The same for the scan of codes, whose blocks are smaller.
  int scan_tiles(int num_rows, int max_slots) const {
    const int64_t by_device = ceil_div(int64_t(kScanBlocksPerProcessor) * num_processors, std::max(1, num_rows));
    const int64_t by_clusters = ceil_div(max_slots, int64_t(kScanClusters) * kScanWarps);
    return int(std::max<int64_t>(1, std::min(by_device, by_clusters)));
  }
  int max_scan_blocks(int max_rows) const { return kScanBlocksPerProcessor * num_processors + max_rows; }
};

}  // namespace quorum::cuda
