// In the emulation this file is found instead of CUB's file of the same name, which is inline PTX: the same names in plain C++.
#pragma once

#include <cub/config.cuh>
#include <cub/util_arch.cuh>
#include <cub/util_debug.cuh>
#include <cub/util_namespace.cuh>
#include <cub/util_type.cuh>
#include <cuda/ptx>

// What CUB's block primitives read of the special registers.
namespace cuda::ptx {
inline unsigned get_sreg_laneid() { return quorum::emulation::lane_id(); }
inline unsigned get_sreg_lanemask_lt() { return (1u << quorum::emulation::lane_id()) - 1; }
inline unsigned get_sreg_lanemask_le() { return (2u << quorum::emulation::lane_id()) - 1; }
inline unsigned get_sreg_lanemask_ge() { return ~get_sreg_lanemask_lt(); }
inline unsigned get_sreg_lanemask_gt() { return ~get_sreg_lanemask_le(); }
}  // namespace cuda::ptx

CUB_NAMESPACE_BEGIN

template <class Bits>
unsigned BFE(Bits source, unsigned start, unsigned count) {
  const unsigned long long shifted = (unsigned long long)(source) >> start;
  return unsigned(count >= 64 ? shifted : shifted & ((1ull << count) - 1));
}

inline int RowMajorTid(int x, int y, int) { return int((threadIdx.z * unsigned(y) + threadIdx.y) * unsigned(x) + threadIdx.x); }

template <int kWidth>
unsigned WarpMask(unsigned warp) {
  const unsigned mask = 0xffffffffu >> (32 - kWidth);
  return kWidth < 32 && (kWidth & (kWidth - 1)) == 0 ? mask << (warp * kWidth) : mask;
}

template <int kWidth, class T>
T ShuffleIndex(T value, int source, unsigned mask) {
  return __shfl_sync(mask, value, source, kWidth);
}
// `first`: the lowest lane of the segment that is read, itself in units of the segment.
template <int kWidth, class T>
T ShuffleUp(T value, int distance, int first, unsigned mask) {
  const int lane = int(quorum::emulation::lane_id()) % kWidth;
  return __shfl_sync(mask, value, lane - distance >= first ? lane - distance : lane, kWidth);
}
template <int kWidth, class T>
T ShuffleDown(T value, int distance, int last, unsigned mask) {
  const int lane = int(quorum::emulation::lane_id()) % kWidth;
  return __shfl_sync(mask, value, lane + distance <= last ? lane + distance : lane, kWidth);
}

template <int kBits, int kThreads = 32>
unsigned MatchAny(unsigned label) {
  return __match_any_sync(0xffffffffu, label);
}

namespace detail {
inline uint32_t LogicShiftLeft(uint32_t value, uint32_t bits) { return bits > 31 ? 0 : value << bits; }
inline uint32_t LogicShiftRight(uint32_t value, uint32_t bits) { return bits > 31 ? 0 : value >> bits; }
}  // namespace detail

CUB_NAMESPACE_END
