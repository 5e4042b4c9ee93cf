// What many samples of the same rest come to.
#pragma once

#include <cstdint>

namespace quorum::test {

// Of two heads, over the seeds 1 to trials.
struct SampleMoments {
  double mean[2] = {};             // of the sampled weights
  double true_variance[2] = {};    // of the sampled weights
  double stated_variance[2] = {};  // mean square of the standard errors that came with them
};

// sampler.sample(seed): SampledRest of both heads.
template <class Sampler>
SampleMoments sample_moments(Sampler& sampler, int trials) {
  SampleMoments moments;
  double square[2] = {};
  for (uint64_t seed = 1; seed <= uint64_t(trials); ++seed) {
    const auto rest = sampler.sample(seed);
    for (size_t g = 0; g < 2; ++g) {
      moments.mean[g] += double(rest[g].weight) / trials;
      square[g] += double(rest[g].weight) * double(rest[g].weight) / trials;
      moments.stated_variance[g] += double(rest[g].standard_error) * double(rest[g].standard_error) / trials;
    }
  }
  for (size_t g = 0; g < 2; ++g) moments.true_variance[g] = square[g] - moments.mean[g] * moments.mean[g];
  return moments;
}

}  // namespace quorum::test
