// CUDA on the host, for tests: included before everything else (g++ -x c++ -include) where QUORUM_CUDA_EMULATION is defined, so that the
// same kernels that nvcc compiles for the GPU run as host code, each CUDA thread on a fiber. What it cannot see: weak memory order,
// timing, bank conflicts, the PTX itself; blocks that wait for one another hang.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

// The words of the language. `__shared__` is for CUB alone, whose fallbacks of this kind never run; kernels use QUORUM_SHARED.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

extern "C" {
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
}
inline constexpr int warpSize = 32;

#include "tests/cuda/emulation/atomics.hpp"
#include "tests/cuda/emulation/block.hpp"
#include "tests/cuda/emulation/intrinsics.hpp"
#include "tests/cuda/emulation/ptx.hpp"
#include "tests/cuda/emulation/runtime.hpp"
#include "tests/cuda/emulation/shared_memory.hpp"
#include "tests/cuda/emulation/warp.hpp"
