// Sums over a block's threads in thread order.
#pragma once

#include <cub/block/block_scan.cuh>

namespace quorum::cuda {

template <class T, int kThreads>
using BlockScan = cub::BlockScan<T, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;

// Sum of the threads before this one; `total` gets that of all. Ends with a barrier, so that the storage may be used again.
template <int kThreads, class T>
__device__ __forceinline__ T block_exclusive_sum(T value, T& total, typename BlockScan<T, kThreads>::TempStorage& storage) {
  T before;
  BlockScan<T, kThreads>(storage).ExclusiveSum(value, before, total);
  __syncthreads();
  return before;
}

}  // namespace quorum::cuda
