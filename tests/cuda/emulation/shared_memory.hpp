// Shared memory of the blocks that run. Every variable is an allocation of its own, exactly as large as asked for, so that the address
// sanitizer sees its bounds; filled with bytes 0xff (NaN as a float of any width, -1 as an integer) when the block starts.
#pragma once

#include <cstddef>
#include <source_location>
#include <type_traits>

namespace quorum::emulation {

// Of a block of the team, when it starts and when it has ended.
void take_shared_memory(unsigned block, size_t dynamic_bytes);
void give_back_shared_memory(unsigned block);

// The calling thread's block's static variable that `key` stands for.
void* static_shared(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();
// What an address in the calling thread's block's shared memory is in another block of its team.
void* shared_of_block(void* own, unsigned block, std::source_location site);

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
