// The warp's intrinsics: shuffles, votes, __syncwarp.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/cuda/emulation/scheduler.hpp"

namespace quorum::emulation {

// Each lane gives a word and gets that of lane `source`, which must be one of `mask`.
uint64_t shuffle(const char* operation, unsigned mask, uint64_t word, int source, Site site);
// Each lane gives a word; all get what `kind` makes of those of `mask`.
enum class Vote { ballot, match, add, min, max, bit_and, bit_or, bit_xor };
uint64_t vote(const char* operation, Vote kind, unsigned mask, uint64_t word, Site site);

template <class T>
T shuffle_value(const char* operation, unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves up to 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = shuffle(operation, mask, word, source, site);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

// The lane a shuffle reads within segments of `width` lanes; a lane that would read beyond its segment reads itself.
inline int segment_start(int width) { return int(lane_id()) / width * width; }
inline int lane_or_self(int source, int width) {
  const int first = segment_start(width);
  return source >= first && source < first + width ? source : int(lane_id());
}

}  // namespace quorum::emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, std::source_location site = std::source_location::current()) {
  const int lane = quorum::emulation::segment_start(width) + (source & (width - 1));
  return quorum::emulation::shuffle_value("__shfl_sync", mask, value, lane, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, std::source_location site = std::source_location::current()) {
  // Unlike the others a lane may read segments below its own.
  const int source = int(quorum::emulation::lane_id()) ^ bits;
  const int lane = source < quorum::emulation::segment_start(width) + width ? source : int(quorum::emulation::lane_id());
  return quorum::emulation::shuffle_value("__shfl_xor_sync", mask, value, lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, std::source_location site = std::source_location::current()) {
  const int lane = quorum::emulation::lane_or_self(int(quorum::emulation::lane_id() + distance), width);
  return quorum::emulation::shuffle_value("__shfl_down_sync", mask, value, lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, std::source_location site = std::source_location::current()) {
  const int lane = quorum::emulation::lane_or_self(int(quorum::emulation::lane_id()) - int(distance), width);
  return quorum::emulation::shuffle_value("__shfl_up_sync", mask, value, lane, site);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, std::source_location site = std::source_location::current()) {
  quorum::emulation::meet_warp("__syncwarp", mask, nullptr, nullptr, quorum::emulation::Meeting::barrier, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, std::source_location site = std::source_location::current()) {
  return unsigned(quorum::emulation::vote("__ballot_sync", quorum::emulation::Vote::ballot, mask, predicate != 0, site));
}
inline int __any_sync(unsigned mask, int predicate, std::source_location site = std::source_location::current()) {
  return quorum::emulation::vote("__any_sync", quorum::emulation::Vote::bit_or, mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, std::source_location site = std::source_location::current()) {
  return quorum::emulation::vote("__all_sync", quorum::emulation::Vote::bit_and, mask, predicate != 0, site) != 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, std::source_location site = std::source_location::current()) {
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return unsigned(quorum::emulation::vote("__match_any_sync", quorum::emulation::Vote::match, mask, word, site));
}
inline unsigned __activemask() { return 0xffffffffu; }

#define QUORUM_EMULATION_REDUCE(name, kind)                                                                          \
  inline unsigned name(unsigned mask, unsigned value, std::source_location site = std::source_location::current()) { \
    return unsigned(quorum::emulation::vote(#name, quorum::emulation::Vote::kind, mask, value, site));               \
  }
QUORUM_EMULATION_REDUCE(__reduce_and_sync, bit_and)
QUORUM_EMULATION_REDUCE(__reduce_or_sync, bit_or)
QUORUM_EMULATION_REDUCE(__reduce_xor_sync, bit_xor)
QUORUM_EMULATION_REDUCE(__reduce_add_sync, add)
QUORUM_EMULATION_REDUCE(__reduce_min_sync, min)
QUORUM_EMULATION_REDUCE(__reduce_max_sync, max)
#undef QUORUM_EMULATION_REDUCE
// The signed ones, compared after moving the sign out of the way.
inline int __reduce_add_sync(unsigned mask, int value, std::source_location site = std::source_location::current()) {
  return int(__reduce_add_sync(mask, unsigned(value), site));
}
inline int __reduce_min_sync(unsigned mask, int value, std::source_location site = std::source_location::current()) {
  return int(__reduce_min_sync(mask, unsigned(value) ^ 0x80000000u, site) ^ 0x80000000u);
}
inline int __reduce_max_sync(unsigned mask, int value, std::source_location site = std::source_location::current()) {
  return int(__reduce_max_sync(mask, unsigned(value) ^ 0x80000000u, site) ^ 0x80000000u);
}
