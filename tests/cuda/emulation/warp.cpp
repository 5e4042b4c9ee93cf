#include "tests/cuda/emulation/warp.hpp"

#include <algorithm>

namespace quorum::emulation {
namespace {

struct Shuffle {
  uint64_t given, got;
  int source;
};

struct Ballot {
  uint64_t given, got;
  Vote kind;
};

void combine_shuffle(void** payloads, int count) {
  for (int lane = 0; lane < count; ++lane) {
    auto* own = static_cast<Shuffle*>(payloads[lane]);
    if (own == nullptr) continue;
    // What comes from a lane that is not there is undefined: poison.
    const auto* source = static_cast<const Shuffle*>(payloads[own->source]);
    own->got = source != nullptr ? source->given : ~uint64_t(0);
  }
}

uint64_t join(Vote kind, uint64_t a, uint64_t b) {
  switch (kind) {
    case Vote::add:
      return a + b;
    case Vote::min:
      return std::min(a, b);
    case Vote::max:
      return std::max(a, b);
    case Vote::bit_and:
      return a & b;
    case Vote::bit_xor:
      return a ^ b;
    default:
      return a | b;
  }
}

void combine_vote(void** payloads, int count) {
  uint64_t all = 0;
  bool first = true;
  const Vote kind =
      (*std::find_if(reinterpret_cast<Ballot**>(payloads), reinterpret_cast<Ballot**>(payloads) + count, [](const Ballot* ballot) {
        return ballot != nullptr;
      }))->kind;
  for (int lane = 0; lane < count; ++lane) {
    const auto* own = static_cast<const Ballot*>(payloads[lane]);
    if (own == nullptr) continue;
    const uint64_t given = kind == Vote::ballot ? own->given << lane : own->given;
    all = first ? given : join(kind, all, given);
    first = false;
  }
  for (int lane = 0; lane < count; ++lane) {
    auto* own = static_cast<Ballot*>(payloads[lane]);
    if (own == nullptr) continue;
    own->got = all;
    if (kind != Vote::match) continue;
    own->got = 0;
    for (int other = 0; other < count; ++other) {
      const auto* ballot = static_cast<const Ballot*>(payloads[other]);
      if (ballot != nullptr && ballot->given == own->given) own->got |= uint64_t(1) << other;
    }
  }
}

}  // namespace

uint64_t shuffle(const char* operation, unsigned mask, uint64_t word, int source, Site site) {
  if ((mask >> source & 1) == 0)
    fail(std::string(operation) + ": reads lane " + std::to_string(source) + ", which is not in the mask", site);
  Shuffle own = {word, 0, source};
  meet_warp(operation, mask, &own, combine_shuffle, Meeting::exchange, site);
  return own.got;
}

uint64_t vote(const char* operation, Vote kind, unsigned mask, uint64_t word, Site site) {
  Ballot own = {word, 0, kind};
  meet_warp(operation, mask, &own, combine_vote, Meeting::exchange, site);
  return own.got;
}

}  // namespace quorum::emulation
