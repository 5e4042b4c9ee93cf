// Blocks that share a row: a cluster of thread blocks in CUDA's words, a team here, where clusters are of keys. They run at the same time,
// meet at barriers and reach into one another's shared memory.
#pragma once

#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

inline constexpr int kMaxTeamBlocks = 8;  // more are not promised on any device

struct BlockTeam {
  int rank = 0, size = 1;

  // The team of the launch, one block where LaunchConfig::team is 1.
  static __device__ __forceinline__ BlockTeam of_launch() { return {int(team_rank()), int(team_size())}; }

  __device__ __forceinline__ bool leads() const { return rank == 0 && threadIdx.x == 0; }
  // All threads of all blocks; what they wrote before, to global memory too, is seen by all after it.
  __device__ __forceinline__ void barrier() const {
    if (size == 1)
      __syncthreads();
    else
      team_barrier();
  }

  // Sum of the values of the blocks before this one; `total` gets that of all, in the order of ranks. value: the same for all threads of a
  // block. room: shared memory of every block, used once in a launch, after a first barrier of the team.
  template <class T>
  __device__ __forceinline__ T exclusive_sum(T value, T& total, T (&room)[kMaxTeamBlocks]) const {
    total = value;
    if (size == 1) return T(0);
    if (int(threadIdx.x) < size) shared_of(&room[0], threadIdx.x)[rank] = value;
    barrier();
    T before = T(0);
    total = T(0);
#pragma unroll 1
    for (int r = 0; r < size; ++r) {
      if (r == rank) before = total;
      total += room[r];
    }
    return before;
  }

  // Adds up what the blocks have in the same array of shared memory; all of them get the sums. Each sums its part over the team and hands
  // it on. Begins and ends with a barrier.
  template <class T>
  __device__ __forceinline__ void add_up(T* values, int count) const {
    barrier();
    if (size == 1) return;
    const int end = count * (rank + 1) / size;
#pragma unroll 1
    for (int i = count * rank / size + int(threadIdx.x); i < end; i += int(blockDim.x)) {
      T sum = T(0);
#pragma unroll 4
      for (int r = 0; r < size; ++r) sum += shared_of(values, unsigned(r))[i];
#pragma unroll 4
      for (int r = 0; r < size; ++r) shared_of(values, unsigned(r))[i] = sum;
    }
    barrier();
  }
};

// What a team's blocks and their threads look after of a row's clusters: runs of neighbours, so that sums in the order of blocks and
// threads are sums by cluster id.
struct ClusterRuns {
  BlockTeam team;
  int run = 0;                         // clusters of a thread
  int block_begin = 0, block_end = 0;  // those of the block
  int first = 0, last = 0;             // those of the thread

  template <int kThreads>
  static __device__ __forceinline__ ClusterRuns of(const BlockTeam& team, int num_clusters) {
    ClusterRuns runs{team, int(ceil_div(num_clusters, team.size * kThreads))};
    runs.block_begin = min(num_clusters, team.rank * kThreads * runs.run);
    runs.block_end = min(num_clusters, runs.block_begin + kThreads * runs.run);
    runs.first = min(num_clusters, runs.block_begin + int(threadIdx.x) * runs.run);
    runs.last = min(num_clusters, runs.first + runs.run);
    return runs;
  }
};

}  // namespace quorum::cuda
