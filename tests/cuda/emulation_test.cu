// Pieces of CUDA that kernels may use, against plain loops: natively this shows what the GPU does, on the host that the emulation agrees.
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

using namespace quorum::cuda;
using quorum::test::DeviceArray;

namespace {

constexpr int kThreads = 128;

// Sums, prefix sums and a sort of the block's values, one after another in the same storage.
__global__ void cub_kernel(const int* values, int* total, int* prefix, int* sorted, int* places) {
  using Reduce = cub::BlockReduce<int, kThreads>;
  using Scan = cub::BlockScan<int, kThreads>;
  using Sort = cub::BlockRadixSort<int, kThreads, 2, int>;
  union Storage {
    Reduce::TempStorage reduce;
    Scan::TempStorage scan;
    Sort::TempStorage sort;
  };
  QUORUM_SHARED(Storage, storage);
  const int thread = int(threadIdx.x);
  const int sum = Reduce(storage.reduce).Sum(values[thread]);
  if (thread == 0) *total = sum;
  __syncthreads();
  Scan(storage.scan).ExclusiveSum(values[thread], prefix[thread]);
  __syncthreads();
  int keys[2] = {values[2 * thread], values[2 * thread + 1]}, owners[2] = {2 * thread, 2 * thread + 1};
  Sort(storage.sort).SortDescending(keys, owners);
  for (int i = 0; i < 2; ++i) {
    sorted[2 * thread + i] = keys[i];
    places[2 * thread + i] = owners[i];
  }
}

// The last block to finish adds up what the others left, as a reduction over the grid does.
__global__ void last_block_kernel(float* partial, unsigned* finished, float* total) {
  QUORUM_SHARED(bool, is_last);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = float(blockIdx.x + 1);
    __threadfence();
    is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last || threadIdx.x != 0) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  *total = sum;
}

struct Votes {
  unsigned ballot, odd_match;
  int any, all, count, down, up, broadcast, largest;
};

__global__ void votes_kernel(Votes* votes, int* atomics) {
  const int thread = int(threadIdx.x), lane = thread % 32;
  Votes own;
  own.ballot = __ballot_sync(0xffffffffu, lane % 3 == 0);
  own.odd_match = __match_any_sync(0xffffffffu, lane % 2);
  own.any = __any_sync(0xffffffffu, lane == 31);
  own.all = __all_sync(0xffffffffu, lane < 31);
  own.count = __syncthreads_count(thread % 5 == 0);
  own.down = __shfl_down_sync(0xffffffffu, lane, 3);
  own.up = __shfl_up_sync(0xffffffffu, lane, 3, 8);
  own.broadcast = __shfl_sync(0xffffffffu, lane, 5, 16);
  own.largest = __reduce_max_sync(0xffffffffu, lane - 40);
  votes[thread] = own;
  atomicAdd(&atomics[0], 1);
  atomicMax(&atomics[1], thread);
  atomicMin(&atomics[2], -thread);
  atomicOr(&atomics[3], 1 << (thread % 31));
  atomicCAS(&atomics[4], 0, thread + 1);
}

}  // namespace

TEST_CASE("CUB: reduce, scan and radix sort of a block") {
  std::vector<int> values(2 * kThreads);
  for (size_t i = 0; i < values.size(); ++i) values[i] = int(i * 7919 % 61) - 30;
  const DeviceArray<int> input(values), total(1), prefix(kThreads), sorted(values.size()), places(values.size());
  REQUIRE(launch({.threads = kThreads}, cub_kernel, static_cast<const int*>(input.data()), total.data(), prefix.data(), sorted.data(),
                 places.data()) == cudaSuccess);
  CHECK(total.values()[0] == std::accumulate(values.begin(), values.begin() + kThreads, 0));
  const std::vector<int> got = prefix.values(), keys = sorted.values(), owners = places.values();
  for (int thread = 0, sum = 0; thread < kThreads; ++thread) {
    CHECK(got[size_t(thread)] == sum);
    sum += values[size_t(thread)];
  }
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[size_t(a)] > values[size_t(b)]; });
  CHECK(owners == order);
  CHECK(std::is_sorted(keys.begin(), keys.end(), std::greater<>()));
}

TEST_CASE("the last block sees what the others wrote") {
  const DeviceArray<float> partial(6), total(1);
  const DeviceArray<unsigned> finished(std::vector<unsigned>(1));
  REQUIRE(launch({.grid = {6, 1, 1}, .threads = 64}, last_block_kernel, partial.data(), finished.data(), total.data()) == cudaSuccess);
  CHECK(total.values()[0] == 21);
}

TEST_CASE("votes, shuffles and atomics") {
  const DeviceArray<Votes> votes(kThreads);
  const DeviceArray<int> atomics(std::vector<int>(5));
  REQUIRE(launch({.threads = kThreads}, votes_kernel, votes.data(), atomics.data()) == cudaSuccess);
  const std::vector<Votes> got = votes.values();
  for (int thread = 0; thread < kThreads; ++thread) {
    const Votes& own = got[size_t(thread)];
    const int lane = thread % 32;
    CAPTURE(thread);
    CHECK(own.ballot == 0x49249249u);
    CHECK(own.odd_match == (lane % 2 == 1 ? 0xaaaaaaaau : 0x55555555u));
    CHECK(own.any == 1);
    CHECK(own.all == 0);
    CHECK(own.count == 26);
    CHECK(own.down == (lane + 3 < 32 ? lane + 3 : lane));
    CHECK(own.up == (lane % 8 >= 3 ? lane - 3 : lane));
    CHECK(own.broadcast == lane / 16 * 16 + 5);
    CHECK(own.largest == -9);
  }
  const std::vector<int> results = atomics.values();
  CHECK(results[0] == kThreads);
  CHECK(results[1] == kThreads - 1);
  CHECK(results[2] == 1 - kThreads);
  CHECK(results[3] == 0x7fffffff);
  CHECK(results[4] != 0);
}
