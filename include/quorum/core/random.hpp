// Counter-based random numbers: a value depends on its key alone, so that threads, backends and repeats agree.
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// 64 well-mixed bits of a key. Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
QUORUM_HOST_DEVICE constexpr uint64_t mix_bits(uint64_t key) {
  key += 0x9e3779b97f4a7c15ull;
  key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9ull;
  key = (key ^ (key >> 27)) * 0x94d049bb133111ebull;
  return key ^ (key >> 31);
}

// Uniform in [0, 1), 24 bits, from a stream and a counter within it.
QUORUM_HOST_DEVICE constexpr float uniform_unit(uint64_t stream, uint64_t counter) {
  return float(mix_bits(mix_bits(stream) ^ counter) >> 40) * 0x1p-24f;
}

}  // namespace quorum
