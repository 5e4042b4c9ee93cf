// Replaces malloc for the whole program that this file is linked into. The standard library takes memory by operator new, Eigen by malloc:
// both end here.
#include "tests/support/held_memory.hpp"

#include <atomic>
#include <cerrno>
#include <cstdlib>

// Sanitizers bring their own malloc, and other C libraries than glibc have no second name for theirs.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QUORUM_COUNT_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define QUORUM_COUNT_MALLOC 0
#endif
#endif
#if !defined(QUORUM_COUNT_MALLOC)
#if defined(__GLIBC__)
#define QUORUM_COUNT_MALLOC 1
#else
#define QUORUM_COUNT_MALLOC 0
#endif
#endif

namespace {

std::atomic<int64_t> held{0}, most{0};

}  // namespace

namespace quorum::test {

bool counts_held_memory() { return QUORUM_COUNT_MALLOC == 1; }
int64_t held_memory() { return held.load(); }
int64_t most_held_memory() { return most.load(); }
void forget_most_held_memory() { most.store(held.load()); }

}  // namespace quorum::test

#if QUORUM_COUNT_MALLOC
#include <malloc.h>

extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* pointer, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* pointer);
}

namespace {

void* taken(void* pointer) noexcept {
  if (pointer == nullptr) return nullptr;
  const int64_t bytes = int64_t(malloc_usable_size(pointer));
  const int64_t now = held.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t largest = most.load(std::memory_order_relaxed);
  while (now > largest && !most.compare_exchange_weak(largest, now, std::memory_order_relaxed)) {
  }
  return pointer;
}
void given_back(void* pointer) noexcept {
  if (pointer != nullptr) held.fetch_sub(int64_t(malloc_usable_size(pointer)), std::memory_order_relaxed);
}

}  // namespace

extern "C" {
void* malloc(size_t size) noexcept { return taken(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) noexcept { return taken(__libc_calloc(count, size)); }
void* realloc(void* pointer, size_t size) noexcept {
  given_back(pointer);
  void* moved = __libc_realloc(pointer, size);
  if (moved == nullptr && size > 0) taken(pointer);  // what it was is still there
  return taken(moved);
}
void* memalign(size_t alignment, size_t size) noexcept { return taken(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) noexcept { return taken(__libc_memalign(alignment, size)); }
int posix_memalign(void** out, size_t alignment, size_t size) noexcept {
  void* pointer = taken(__libc_memalign(alignment, size));
  if (pointer == nullptr) return ENOMEM;
  *out = pointer;
  return 0;
}
void free(void* pointer) noexcept {
  given_back(pointer);
  __libc_free(pointer);
}
}
#endif
