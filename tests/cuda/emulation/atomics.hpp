// Atomic operations on shared and global memory. Relaxed, as on the GPU: they order nothing else. Each may let other threads run first.
#pragma once

#include <algorithm>
#include <type_traits>

#include "tests/cuda/emulation/scheduler.hpp"

namespace quorum::emulation {

// Replaces *address by change(*address); returns what was there.
template <class T, class Change>
T atomic_update(T* address, Change change) {
  maybe_let_others_run();
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do {
    after = change(before);
  } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

template <class T>
using Same = std::type_identity_t<T>;

}  // namespace quorum::emulation

template <class T>
T atomicAdd(T* address, quorum::emulation::Same<T> value) {
  return quorum::emulation::atomic_update(address, [value](T old) { return T(old + value); });
}
template <class T>
T atomicSub(T* address, quorum::emulation::Same<T> value) {
  return quorum::emulation::atomic_update(address, [value](T old) { return T(old - value); });
}
template <class T>
T atomicMax(T* address, quorum::emulation::Same<T> value) {
  static_assert(std::is_integral_v<T>);
  return quorum::emulation::atomic_update(address, [value](T old) { return std::max(old, value); });
}
template <class T>
T atomicMin(T* address, quorum::emulation::Same<T> value) {
  static_assert(std::is_integral_v<T>);
  return quorum::emulation::atomic_update(address, [value](T old) { return std::min(old, value); });
}
template <class T>
T atomicOr(T* address, quorum::emulation::Same<T> value) {
  return quorum::emulation::atomic_update(address, [value](T old) { return T(old | value); });
}
template <class T>
T atomicAnd(T* address, quorum::emulation::Same<T> value) {
  return quorum::emulation::atomic_update(address, [value](T old) { return T(old & value); });
}
template <class T>
T atomicXor(T* address, quorum::emulation::Same<T> value) {
  return quorum::emulation::atomic_update(address, [value](T old) { return T(old ^ value); });
}
template <class T>
T atomicExch(T* address, quorum::emulation::Same<T> value) {
  return quorum::emulation::atomic_update(address, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* address, quorum::emulation::Same<T> expected, quorum::emulation::Same<T> value) {
  return quorum::emulation::atomic_update(address, [expected, value](T old) { return old == expected ? value : old; });
}
// Counts up to `last` and starts again at 0.
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return quorum::emulation::atomic_update(address, [last](unsigned old) { return old >= last ? 0u : old + 1; });
}
