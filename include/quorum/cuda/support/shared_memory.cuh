// The only two ways to shared memory, so that tests can run kernels on the host and see its bounds.
#pragma once

#include "quorum/core/config.hpp"

// The host build of the kernels (tests) brings its own two and is included before everything else.
#if !defined(QUORUM_CUDA_EMULATION)

// QUORUM_SHARED(float[32], sums): static shared memory of a block, named `sums`.
// Raw memory: shared variables cannot be initialised, and types with initialisers of their own would be refused.
#define QUORUM_SHARED(type, name)                                                                                                    \
  __shared__ __align__(alignof(::quorum::cuda::SameType<type>)) unsigned char name##_memory[sizeof(::quorum::cuda::SameType<type>)]; \
  ::quorum::cuda::SameType<type>& name = *reinterpret_cast<::quorum::cuda::SameType<type>*>(name##_memory)

namespace quorum::cuda {

template <class T>
struct SameTypeOf {
  using type = T;
};
template <class T>
using SameType = typename SameTypeOf<T>::type;

// The dynamic shared memory of the launch, aligned to 128 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char quorum_dynamic_shared[];
  return reinterpret_cast<T*>(quorum_dynamic_shared);
}

}  // namespace quorum::cuda

#endif
