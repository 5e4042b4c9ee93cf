// In the emulation: CUB's reduction by shuffles is inline PTX, its reduction through shared memory plain C++.
#pragma once

#include <cub/config.cuh>
#include <cub/util_ptx.cuh>
#include <cub/warp/specializations/warp_reduce_smem.cuh>

CUB_NAMESPACE_BEGIN
namespace detail {
template <class T, int kThreads>
struct WarpReduceShfl : WarpReduceSmem<T, kThreads> {
  using WarpReduceSmem<T, kThreads>::WarpReduceSmem;
};
}  // namespace detail
CUB_NAMESPACE_END
