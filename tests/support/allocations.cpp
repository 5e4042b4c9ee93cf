// Replaces the global operator new by one that counts, for the whole program that this file is linked into.
#include "tests/support/allocations.hpp"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> allocations{0};

void* counted(std::size_t size, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const std::size_t whole = (size + alignment - 1) / alignment * alignment;
  void* pointer = std::aligned_alloc(alignment, whole == 0 ? alignment : whole);
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}

}  // namespace

int64_t quorum::test::num_allocations() { return allocations.load(); }

// Not inlined: GCC 12 would take the pair of aligned_alloc and operator delete for a mistake.
#define COUNTED [[gnu::noinline]]
COUNTED void* operator new(std::size_t size) { return counted(size, alignof(std::max_align_t)); }
COUNTED void* operator new[](std::size_t size) { return counted(size, alignof(std::max_align_t)); }
// The standard's own nothrow form need not end in the one above: the address sanitizer's does not, and std::stable_sort asks for it.
COUNTED void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return counted(size, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
COUNTED void* operator new[](std::size_t size, const std::nothrow_t& tag) noexcept { return operator new(size, tag); }
COUNTED void* operator new(std::size_t size, std::align_val_t alignment) { return counted(size, std::size_t(alignment)); }
COUNTED void* operator new[](std::size_t size, std::align_val_t alignment) { return counted(size, std::size_t(alignment)); }
COUNTED void operator delete(void* pointer) noexcept { std::free(pointer); }
COUNTED void operator delete[](void* pointer) noexcept { std::free(pointer); }
COUNTED void operator delete(void* pointer, std::size_t) noexcept { std::free(pointer); }
COUNTED void operator delete[](void* pointer, std::size_t) noexcept { std::free(pointer); }
COUNTED void operator delete(void* pointer, std::align_val_t) noexcept { std::free(pointer); }
COUNTED void operator delete[](void* pointer, std::align_val_t) noexcept { std::free(pointer); }
COUNTED void operator delete(void* pointer, std::size_t, std::align_val_t) noexcept { std::free(pointer); }
COUNTED void operator delete[](void* pointer, std::size_t, std::align_val_t) noexcept { std::free(pointer); }
