// What every header needs to know about the compiler: host/device marking and forced inlining.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define QUORUM_HOST_DEVICE __host__ __device__
#else
#define QUORUM_HOST_DEVICE
#endif

#if defined(_MSC_VER)
#define QUORUM_ALWAYS_INLINE __forceinline
#else
#define QUORUM_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace quorum {

// Namespace-scope constants: nvcc rejects std::numeric_limits calls inside host-device functions under -Werror all-warnings.
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kLog2e = 1.44269504f;  // from natural to binary logarithms
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Number of padded elements in rows of float scratch memory: one cache line.
inline constexpr int kRowAlignment = 16;

QUORUM_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
QUORUM_HOST_DEVICE constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace quorum
