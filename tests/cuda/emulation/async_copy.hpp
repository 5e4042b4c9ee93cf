// Copies from global to shared memory in the background. On the GPU such a copy happens at some time between its issue and the wait for
// its group; here it happens at one end or the other (Settings::async_copies), so that what reads too early meets what was there before
// and what overwrites too early destroys what others still read.
#pragma once

#include <vector_types.h>

#include <source_location>

namespace quorum::emulation {

struct AsyncCopy {
  void* shared = nullptr;
  const void* global = nullptr;
  bool valid = true;  // else zeros, and nothing is read
};

// True when the copy is to be done at once; else it is kept until its time has come.
bool issue_async_copy(const AsyncCopy& copy, std::source_location site);
void commit_async_copies();
// Takes the next copy that must be done so that at most `pending` groups of the calling thread are under way. False when there is none.
bool take_due_async_copy(int pending, AsyncCopy& copy);
// Forgets the copies of a thread of the block.
void drop_async_copies(unsigned thread);

// In a header, so that the sanitizers see the accesses as those of the kernel.
inline void perform(const AsyncCopy& copy) {
  *static_cast<uint4*>(copy.shared) = copy.valid ? *static_cast<const uint4*>(copy.global) : uint4{0, 0, 0, 0};
}

}  // namespace quorum::emulation
