// Arrays that start on a cache line, so that a 64-byte block never straddles two; large ones on a huge page.
#pragma once

#include <cstdint>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "quorum/core/config.hpp"

namespace quorum {

inline constexpr size_t kHugePage = size_t(2) << 20;

// Asks the system for huge pages where [memory, memory + bytes) holds whole ones. Advice only: never fails, touches nothing, does nothing
// where the system has none or only grants them by itself. Worth giving for a KV cache right after it was allocated and before it is
// written: rows read at random cost an address translation each, and a huge page needs 512 times fewer.
inline void advise_huge_pages(void* memory, size_t bytes) noexcept {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace quorum

namespace quorum::cpu {

inline constexpr size_t kCacheLine = 64;

template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) noexcept {}
  T* allocate(size_t count) {
    void* memory = ::operator new(count * sizeof(T), alignment(count));
    if (count * sizeof(T) >= kLarge) advise_huge_pages(memory, count * sizeof(T));
    return static_cast<T*>(memory);
  }
  void deallocate(T* pointer, size_t count) noexcept { ::operator delete(pointer, alignment(count)); }
  // From here on an array starts on a huge page: the decoder's scratch memory, indexes of long sequences.
  static constexpr size_t kLarge = kHugePage;
  static std::align_val_t alignment(size_t count) { return std::align_val_t(count * sizeof(T) >= kLarge ? kHugePage : kCacheLine); }
  friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) noexcept { return true; }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

// Bytes that a vector's elements take.
template <class T>
int64_t content_bytes(const AlignedVector<T>& v) {
  return int64_t(v.size() * sizeof(T));
}

}  // namespace quorum::cpu
