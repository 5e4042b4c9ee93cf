// Where the draws of a stratified sample fall (algorithm.md eq. 8).
#pragma once

#include "quorum/core/random.hpp"

namespace quorum {

// The random points of a sample: stratum s of n takes one point of [s, s + 1) / n of the cumulative distribution.
struct SamplePoints {
  uint64_t stream = 0;
  int num_samples = 0;

  QUORUM_HOST_DEVICE double point(int stratum) const {
    return (double(stratum) + double(uniform_unit(stream, uint64_t(2 * stratum)))) / double(num_samples);
  }
  // Which of a cluster's tokens the stratum's draw is.
  QUORUM_HOST_DEVICE int token_of(int stratum, int size) const {
    const int token = int(uniform_unit(stream, uint64_t(2 * stratum + 1)) * float(size));
    return token < size ? token : size - 1;
  }

  // The points of one set of query heads. The place in the batch is no part of the key: a sequence draws the same tokens wherever it
  // stands.
  QUORUM_HOST_DEVICE static SamplePoints of(uint64_t seed, int first_qo_head, int num_tokens, int num_sampled, int num_samples) {
    const uint64_t place = (uint64_t(first_qo_head) << 32) ^ uint64_t(num_tokens);
    return {mix_bits(seed ^ place) + uint64_t(num_sampled), num_samples};
  }
};

}  // namespace quorum
