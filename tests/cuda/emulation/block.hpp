// The block's barriers, and fences.
#pragma once

#include "tests/cuda/emulation/scheduler.hpp"

namespace quorum::emulation {

// A barrier at which every thread gives a number and gets the sum, or whether all or any are not zero.
int count_at_barrier(const char* operation, int predicate, Site site);

// A fence of the whole device. Two threads that communicate through an atomic are ordered when both have a fence: the writer before its
// atomic, the reader after its own.
void fence();

}  // namespace quorum::emulation

inline void __syncthreads(std::source_location site = std::source_location::current()) {
  quorum::emulation::meet_block("__syncthreads", nullptr, nullptr, site);
}
inline int __syncthreads_count(int predicate, std::source_location site = std::source_location::current()) {
  return quorum::emulation::count_at_barrier("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, std::source_location site = std::source_location::current()) {
  return quorum::emulation::count_at_barrier("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, std::source_location site = std::source_location::current()) {
  return quorum::emulation::count_at_barrier("__syncthreads_and", predicate == 0, site) == 0;
}

inline void __threadfence() { quorum::emulation::fence(); }
inline void __threadfence_system() { quorum::emulation::fence(); }
inline void __threadfence_block() { quorum::emulation::fence(); }
