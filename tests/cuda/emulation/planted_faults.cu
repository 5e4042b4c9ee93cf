// Kernels with one fault each, and the same kernels without it: shows that each build of the emulation finds the faults it is there for.
//   planted_faults FAULT          prints what was found and returns 1, or dies of the sanitizer's report
//   planted_faults FAULT sound    the same kernel without the fault, in every order of the threads: returns 0
#include <cub/block/block_reduce.cuh>

#include <cstdio>
#include <cstring>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

using namespace quorum;
using namespace quorum::cuda;
using emulation::AsyncCopyTime;
using emulation::ThreadOrder;
using test::DeviceArray;

namespace {

constexpr int kThreads = 128;

template <bool kSound>
__global__ void missing_barrier(float* output) {
  QUORUM_SHARED(float[kThreads], values);
  const int thread = int(threadIdx.x);
  values[thread] = float(thread);
  if constexpr (kSound) __syncthreads();
  output[thread] = values[(thread + 1) % kThreads] - float((thread + 1) % kThreads);
}

template <bool kSound>
__global__ void missing_warp_barrier(float* output) {
  QUORUM_SHARED(float[kThreads], values);
  const int thread = int(threadIdx.x);
  values[thread] = float(thread);
  if constexpr (kSound) __syncwarp();
  output[thread] = values[thread ^ 1] - float(thread ^ 1);
}

// Right in every order of the threads: a shuffle makes the lanes meet. Only, it does not make their writes visible.
template <bool kSound>
__global__ void shuffle_taken_for_a_fence(float* output) {
  QUORUM_SHARED(float[kThreads], values);
  const int thread = int(threadIdx.x);
  values[thread] = float(thread);
  if constexpr (kSound) __syncwarp();
  const int other = __shfl_xor_sync(0xffffffffu, thread, 1);
  output[thread] = values[other] - float(other);
}

template <bool kSound>
__global__ void two_writers(float* output) {
  const int thread = int(threadIdx.x);
  output[kSound ? thread : thread / 2] = 0;
}

template <bool kSound>
__global__ void two_writers_in_two_blocks(float* output) {
  if (threadIdx.x == 0) output[kSound ? blockIdx.x : blockIdx.x / 2] = 0;
}

// The last block to finish adds up what all wrote: right with fences on both sides of the atomic.
template <bool kSound>
__global__ void last_block_without_fence(float* output) {
  QUORUM_SHARED(bool, is_last);
  float* partial = output + kThreads;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = 1;
    if constexpr (kSound) __threadfence();
    is_last = atomicAdd(reinterpret_cast<unsigned*>(output + 2 * kThreads), 1u) == gridDim.x - 1;
    if constexpr (kSound) __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  output[threadIdx.x] = -float(gridDim.x);
  for (unsigned i = 0; i < gridDim.x; ++i) output[threadIdx.x] += partial[i];
}

template <bool kSound>
__global__ void async_copies_waited_for_one_group_short(float* output) {
  float* stages = dynamic_shared<float>();
  const int thread = int(threadIdx.x);
  const auto load = [&](int tile) {
    cp_async_16(stages + (tile % 2) * kThreads * 4 + thread * 4, output + kThreads + (tile * kThreads + thread) * 4, true);
    cp_async_commit();
  };
  load(0);
  load(1);
  cp_async_wait<kSound ? 1 : 2>();
  __syncthreads();
  output[thread] = stages[thread * 4];
}

template <bool kSound>
__global__ void dynamic_shared_out_of_bounds(float* output) {
  float* values = dynamic_shared<float>();
  const int thread = int(threadIdx.x);
  values[kSound ? thread : thread + 1] = 0;  // the last thread writes one element too far
  output[thread] = 0;
}

template <bool kSound>
__global__ void static_shared_out_of_bounds(float* output) {
  QUORUM_SHARED(float[kThreads], values);
  QUORUM_SHARED(float[kThreads], neighbour);
  const int thread = int(threadIdx.x);
  float* first = &values[0];
  first[kSound ? thread : thread + 1] = 0;
  neighbour[thread] = 0;
  output[thread] = neighbour[thread];
}

template <bool kSound>
__global__ void global_out_of_bounds(float* output) {
  const int thread = int(threadIdx.x);
  output[thread] = 0;
  if (thread == 0) output[kThreads * 9 - (kSound ? 1 : 0)] = 0;
}

template <bool kSound>
__global__ void misaligned_load(float* output) {
  const int thread = int(threadIdx.x);
  const auto* words = reinterpret_cast<const uint4*>(output + kThreads + (kSound ? 0 : 1));
  output[thread] = words[thread].x == 1 ? 1.0f : 0.0f;
}

template <bool kSound>
__global__ void divergent_barrier(float* output) {
  if (kSound || threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  output[threadIdx.x] = 0;
}

// Half of the block is gone when the others count on it being there.
template <bool kSound>
__global__ void half_warp_in_a_full_shuffle(float* output) {
  const int thread = int(threadIdx.x);
  output[thread] = 0;
  if (kSound || thread % 32 < 16) output[thread] = __shfl_xor_sync(0xffffffffu, 0.0f, 1);
  __syncthreads();
}

template <bool kSound>
__global__ void half_warp_waits(float* output) {
  const int thread = int(threadIdx.x);
  if (kSound || thread % 32 < 16) __syncwarp();
  __syncthreads();
  output[thread] = 0;
}

template <bool kSound>
__global__ void uninitialised_shared(float* output) {
  QUORUM_SHARED(float[kThreads], values);
  const int thread = int(threadIdx.x);
  if (kSound || thread != 5) values[thread] = 0;
  __syncthreads();
  output[thread] = values[thread];
}

template <bool kSound>
__global__ void storage_of_cub_used_again(float* output) {
  using Reduce = cub::BlockReduce<float, kThreads>;
  QUORUM_SHARED(Reduce::TempStorage, storage);
  const float first = Reduce(storage).Sum(1.0f);
  if constexpr (kSound) __syncthreads();
  const float second = Reduce(storage).Sum(2.0f);
  output[threadIdx.x] = threadIdx.x == 0 ? second - 2 * first : 0;
}

// A block reads what another one of its team has written, which may not have happened yet.
template <bool kSound>
__global__ void neighbour_read_before_the_team_meets(float* output) {
  QUORUM_SHARED(float[kThreads], values);
  const int thread = int(threadIdx.x);
  team_barrier();
  if (team_rank() == 1) values[thread] = float(thread);
  if constexpr (kSound) team_barrier();
  if (team_rank() == 0) output[thread] = shared_of(&values[0], 1)[thread] - float(thread);
  team_barrier();
}

// Shared memory is gone with its block: who is read from may not leave before.
template <bool kSound>
__global__ void left_before_the_team_has_read(float* output) {
  QUORUM_SHARED(float[kThreads], values);
  const int thread = int(threadIdx.x);
  values[thread] = 0;
  team_barrier();
  if (team_rank() == 1) output[thread] = shared_of(&values[0], 0)[thread];
  if constexpr (kSound) team_barrier();
}

using Kernel = void (*)(float*);
struct Fault {
  const char* name;
  Kernel faulty, sound;
};
#define QUORUM_FAULT(name) \
  { #name, name < false>, name < true> }
const Fault kFaults[] = {
    QUORUM_FAULT(missing_barrier),
    QUORUM_FAULT(missing_warp_barrier),
    QUORUM_FAULT(shuffle_taken_for_a_fence),
    QUORUM_FAULT(two_writers),
    QUORUM_FAULT(two_writers_in_two_blocks),
    QUORUM_FAULT(last_block_without_fence),
    QUORUM_FAULT(async_copies_waited_for_one_group_short),
    QUORUM_FAULT(dynamic_shared_out_of_bounds),
    QUORUM_FAULT(static_shared_out_of_bounds),
    QUORUM_FAULT(global_out_of_bounds),
    QUORUM_FAULT(misaligned_load),
    QUORUM_FAULT(divergent_barrier),
    QUORUM_FAULT(half_warp_in_a_full_shuffle),
    QUORUM_FAULT(half_warp_waits),
    QUORUM_FAULT(uninitialised_shared),
    QUORUM_FAULT(storage_of_cub_used_again),
    QUORUM_FAULT(neighbour_read_before_the_team_meets),
    QUORUM_FAULT(left_before_the_team_has_read),
};

// Every kernel leaves zeros in the first kThreads elements when all went well.
int run(const Fault& fault, bool sound) {
  const bool copies = std::strncmp(fault.name, "async", 5) == 0, team = std::strstr(fault.name, "team") != nullptr;
  const unsigned blocks = team || std::strstr(fault.name, "block") != nullptr ? 2 : 1;
  const DeviceArray<float> memory(std::vector<float>(kThreads * 9));
  const LaunchConfig config = {
      .grid = {blocks, 1, 1}, .threads = kThreads, .dynamic_shared = kThreads * (copies ? 32 : 4), .team = team ? 2 : 1};
  try {
    check(launch(config, sound ? fault.sound : fault.faulty, memory.data()), fault.name, "launch");
  } catch (const std::exception& exception) {
    std::printf("reported: %s\n", exception.what());
    return 1;
  }
  const std::vector<float> values = memory.values();
  for (int thread = 0; thread < kThreads; ++thread) {
    if (values[size_t(thread)] == 0) continue;
    std::printf("wrong result: thread %d got %g\n", thread, double(values[size_t(thread)]));
    return 1;
  }
  std::printf("nothing found\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  for (const Fault& fault : kFaults) {
    if (name != fault.name) continue;
    if (argc == 2) return run(fault, false);
    int found = 0;
    for (const auto order : {ThreadOrder::forward, ThreadOrder::reverse, ThreadOrder::random}) {
      for (const auto copies : {AsyncCopyTime::at_wait, AsyncCopyTime::at_issue, AsyncCopyTime::random}) {
        emulation::settings() = {order, copies};
        found += run(fault, true);
      }
    }
    return found == 0 ? 0 : 1;
  }
  std::fprintf(stderr, "planted_faults: the first argument must name a fault, got '%s'\n", name.c_str());
  return 2;
}
