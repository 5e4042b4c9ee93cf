// What scoring should find, in double precision from the host's index (algorithm.md eq. 3 to 5), written independently of both backends.
#pragma once

#include <vector>

#include "tests/cuda/support/host_case.hpp"

namespace quorum::test {

// One query head against all clusters of its KV head.
struct ExpectedScores {
  std::vector<double> scaled;      // [head_dim], q times the softmax scale
  std::vector<double> rotated;     // [head_dim], q'
  double mean_score = 0.0;         // q . mean_key
  double half_variance = 0.0;      // of scores, for a cluster of spread 1
  std::vector<double> log_weight;  // [slots], -inf for clusters without tokens
  std::vector<double> tolerance;   // [slots], what rounding of q' to 127 steps can do to it
};
ExpectedScores expected_scores(const HostCase& host, int sequence, int qo_head, bool shared_variance);

// Sinks and window of a sequence, ascending.
std::vector<int32_t> always_read(const HostCase& host, int sequence);

}  // namespace quorum::test
