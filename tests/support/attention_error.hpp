// How far the outputs of a batch lie from what the reference says of them.
#pragma once

#include <cmath>
#include <vector>

#include "tests/support/decode_batch.hpp"

namespace quorum::test {

// Relative error of one head's output; infinite where the reference is NaN and the output is not, or the other way round, also of lse.
// Elements that are equal, infinities among them, count as no error.
inline double head_error(const Batch& batch, const DecodeResult& result, int sequence, int qo_head) {
  const auto d = size_t(batch.shape().head_dim), row = size_t(sequence * batch.shape().num_qo_heads + qo_head);
  const auto want = batch.attention(sequence, qo_head);
  std::vector<double> got_finite, want_finite;
  for (size_t c = 0; c < d; ++c) {
    const double got = double(result.output[row * d + c]);
    if (std::isnan(got) != std::isnan(want.output[c])) return double(kInfinity);
    if (std::isnan(got) || got == want.output[c]) continue;
    got_finite.push_back(got);
    want_finite.push_back(want.output[c]);
  }
  if (std::isnan(result.lse[row]) != std::isnan(want.lse)) return double(kInfinity);
  return got_finite.empty() ? 0.0 : relative_error(got_finite.data(), want_finite.data(), int64_t(got_finite.size()));
}

// The largest of them all; infinite if the call failed.
inline double worst_error(const Batch& batch, const DecodeResult& result) {
  double worst = result.status == DecodeStatus::ok ? 0.0 : double(kInfinity);
  for (int s = 0; s < batch.num_sequences(); ++s)
    for (int h = 0; h < batch.shape().num_qo_heads; ++h) worst = larger_error(worst, head_error(batch, result, s, h));
  return worst;
}

}  // namespace quorum::test
