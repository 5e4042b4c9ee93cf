// How the unread rest enters the output: its direction from value means, its amount from an estimate or a sample (algorithm.md eq. 12).
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

enum class Tail : uint8_t {
  drop,        // the rest is left out, the read tokens are renormalised
  estimated,   // amount from the cluster estimates
  calibrated,  // amount from a stratified sample of unread keys
};

constexpr const char* tail_name(Tail tail) { return tail == Tail::drop ? "drop" : tail == Tail::estimated ? "estimated" : "calibrated"; }

// Share of the estimated rest whose clusters' value means are read; the others take the same direction. Costs no measurable
// accuracy and saves most of the tail's bytes (docs/performance.md).
inline constexpr float kTailCoverage = 0.9f;

// Factor on the used clusters' estimated weights so that together they stand for `amount`; 0 if there is nothing to scale.
QUORUM_HOST_DEVICE constexpr float tail_scale(float amount, float used_estimate) {
  return used_estimate > 0.0f ? amount / used_estimate : 0.0f;
}

}  // namespace quorum
