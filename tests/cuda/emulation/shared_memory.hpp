// Shared memory of the block that runs. Every variable is an allocation of its own, exactly as large as asked for, so that the address
// sanitizer sees its bounds; filled with bytes 0xff (NaN as a float of any width, -1 as an integer) when the block starts.
#pragma once

#include <cstddef>
#include <type_traits>

namespace quorum::emulation {

void take_shared_memory(size_t dynamic_bytes);
void give_back_shared_memory();

// The static variable of the block that `key` stands for.
void* static_shared(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();

}  // namespace quorum::emulation

#define QUORUM_SHARED(type, name)                                                            \
  static const char quorum_shared_key_##name = 0;                                            \
  auto& name = *static_cast<std::type_identity_t<type>*>(::quorum::emulation::static_shared( \
      &quorum_shared_key_##name, sizeof(std::type_identity_t<type>), alignof(std::type_identity_t<type>)))

namespace quorum::cuda {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulation::dynamic_shared());
}

}  // namespace quorum::cuda
