// Arrays that start on a cache line, so that a 64-byte block never straddles two.
#pragma once

#include <new>
#include <vector>

#include "quorum/core/config.hpp"

namespace quorum::cpu {

inline constexpr size_t kCacheLine = 64;

template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) noexcept {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(kCacheLine))); }
  void deallocate(T* pointer, size_t) noexcept { ::operator delete(pointer, std::align_val_t(kCacheLine)); }
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
