// When enough has been read (algorithm.md eq. 7).
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// Share of the total weight that has been read, if the rest weighs `rest`. All in the same units; nothing at all counts as everything.
QUORUM_HOST_DEVICE inline float attained_ratio(float read, float rest) { return rest <= 0.0f ? 1.0f : read / (read + rest); }

// True if a head needs to read no further: attained_ratio(read, rest) >= target_ratio without a division. NaN never meets a target.
template <class Real>
QUORUM_HOST_DEVICE constexpr bool meets_target(Real read, Real rest, Real target_ratio) {
  return read >= target_ratio * (read + rest);
}

}  // namespace quorum
