#include "quorum/cuda/block/block_team.cuh"

#include <doctest/doctest.h>

#include <vector>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"
#include "tests/cuda/support/team.cuh"

namespace quorum::test {
namespace {

constexpr int kThreads = 96;

struct Seen {
  int rank, size, before, total;
  float total_float;
  int left_by_neighbour;
};

// Every block leaves a number in the next one's shared memory; sums over blocks, of integers and in the order of blocks.
__global__ void team_kernel(Seen* seen) {
  QUORUM_SHARED(int[kThreads], left);
  QUORUM_SHARED(int[cuda::kMaxTeamBlocks], room);
  QUORUM_SHARED(float[cuda::kMaxTeamBlocks], float_room);
  const cuda::BlockTeam team = cuda::BlockTeam::of_launch();
  const int thread = int(threadIdx.x);
  team.barrier();
  cuda::shared_of(&left[0], unsigned((team.rank + 1) % team.size))[thread] = 1000 * int(blockIdx.x) + thread;
  Seen own{team.rank, team.size, 0, 0, 0.0f, 0};
  own.before = team.exclusive_sum(int(blockIdx.x) + 1, own.total, room);
  team.exclusive_sum(team.rank == 1 ? 0x1p-24f : 1.0f, own.total_float, float_room);
  team.barrier();
  own.left_by_neighbour = left[kThreads - 1 - thread];
  seen[int(blockIdx.x) * kThreads + thread] = own;
}

TEST_CASE("block team: ranks, barriers, sums over blocks and their shared memory, for several teams of a grid") {
  for (const int size : {1, 2, 3, 8}) {
    if (size > most_team_blocks()) continue;
    constexpr int kTeams = 3;
    const int blocks = kTeams * size;
    const DeviceArray<Seen> output(static_cast<size_t>(blocks * kThreads));
    REQUIRE(cuda::launch({.grid = {unsigned(blocks), 1, 1}, .threads = kThreads, .team = size}, team_kernel, output.data()) == cudaSuccess);
    const std::vector<Seen> seen = output.values();
    for (int block = 0; block < blocks; ++block) {
      const int first = block / size * size, rank = block - first, neighbour = first + (rank + size - 1) % size;
      int before = 0, total = 0;
      float total_float = 0.0f;
      for (int r = 0; r < size; ++r) {
        if (r < rank) before += first + r + 1;
        total += first + r + 1;
        total_float += r == 1 ? 0x1p-24f : 1.0f;
      }
      for (int thread = 0; thread < kThreads; ++thread) {
        const Seen& own = seen[size_t(block * kThreads + thread)];
        CAPTURE(size);
        CAPTURE(block);
        CHECK(own.rank == rank);
        CHECK(own.size == size);
        CHECK(own.before == before);
        CHECK(own.total == total);
        CHECK(own.total_float == total_float);
        CHECK(own.left_by_neighbour == 1000 * neighbour + kThreads - 1 - thread);
      }
    }
  }
}

__global__ void runs_kernel(int num_clusters, cuda::ClusterRuns* runs) {
  const cuda::BlockTeam team = cuda::BlockTeam::of_launch();
  runs[team.rank * kThreads + int(threadIdx.x)] = cuda::ClusterRuns::of<kThreads>(team, num_clusters);
}

TEST_CASE("block team: every cluster has one thread, in the order of blocks and threads") {
  for (const int size : {1, 3})
    for (const int num_clusters : {0, 1, 95, 96, 97, 288, 289, 1000}) {
      if (size > most_team_blocks()) continue;
      CAPTURE(size);
      CAPTURE(num_clusters);
      const DeviceArray<cuda::ClusterRuns> output(static_cast<size_t>(size * kThreads));
      REQUIRE(cuda::launch({.grid = {unsigned(size), 1, 1}, .threads = kThreads, .team = size}, runs_kernel, num_clusters, output.data()) ==
              cudaSuccess);
      int next = 0, next_of_block = 0;
      const std::vector<cuda::ClusterRuns> all = output.values();
      for (size_t i = 0; i < all.size(); ++i) {
        const cuda::ClusterRuns& runs = all[i];
        if (i % kThreads == 0) {
          CHECK(runs.block_begin == next_of_block);
          next_of_block = runs.block_end;
        }
        CHECK(runs.block_begin <= runs.first);
        CHECK(runs.last <= runs.block_end);
        CHECK(runs.first == next);
        CHECK(runs.last - runs.first <= runs.run);
        next = runs.last;
        // What draws rely on: the thread's place gives its clusters.
        if (runs.last > runs.first) CHECK(runs.first == runs.block_begin + int(i % kThreads) * runs.run);
      }
      CHECK(next == num_clusters);
      CHECK(next_of_block == num_clusters);
    }
}

TEST_CASE("block team: a team that does not divide the grid is refused") {
  const DeviceArray<Seen> output(5 * kThreads);
  if (most_team_blocks() > 1) {
    CHECK(cuda::launch({.grid = {5, 1, 1}, .threads = kThreads, .team = 2}, team_kernel, output.data()) != cudaSuccess);
    cudaGetLastError();
  }
}

}  // namespace
}  // namespace quorum::test
