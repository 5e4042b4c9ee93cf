// What the emulation tells the sanitizers. Nothing in a build without them.
//
// The thread sanitizer sees every CUDA thread as a thread of its own (a fiber that a switch does not synchronise); two threads are ordered
// only by what release() and acquire() say: barriers and fences do, shuffles do not. The emulation's own files are not instrumented, so
// that its bookkeeping orders nothing and is not reported.
#pragma once

#include <cstddef>

#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace quorum::emulation {

#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// What the calling thread did so far comes before what others do after they acquire the same object.
inline void release([[maybe_unused]] void* object) {
#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
  __tsan_release(object);
#endif
}
inline void acquire([[maybe_unused]] void* object) {
#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
  __tsan_acquire(object);
#endif
}

// While one lives, memory the emulation takes, fills and gives back does not count as an access of the CUDA thread that runs.
class IgnoreAccesses {
 public:
  IgnoreAccesses() {
#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  ~IgnoreAccesses() {
#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
  IgnoreAccesses(const IgnoreAccesses&) = delete;
  IgnoreAccesses& operator=(const IgnoreAccesses&) = delete;
};

}  // namespace quorum::emulation
