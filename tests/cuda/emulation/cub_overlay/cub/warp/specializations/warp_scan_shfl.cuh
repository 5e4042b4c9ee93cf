// In the emulation: CUB's scan by shuffles is inline PTX, its scan through shared memory plain C++.
#pragma once

#include <cub/config.cuh>
#include <cub/util_ptx.cuh>
#include <cub/warp/specializations/warp_scan_smem.cuh>

CUB_NAMESPACE_BEGIN
namespace detail {
template <class T, int kThreads>
struct WarpScanShfl : WarpScanSmem<T, kThreads> {
  using WarpScanSmem<T, kThreads>::WarpScanSmem;
};
}  // namespace detail
CUB_NAMESPACE_END
