// Merging results over disjoint tokens is attention over all of them.
#include "quorum/core/merge_attention.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/reference/attention_reference.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

TEST_CASE("two parts of any sizes, empty ones too, give attention over both") {
  constexpr int kDim = 24;
  for (const int total : {1, 2, 30})
    for (int split = 0; split <= total; split += total > 2 ? 7 : 1) {
      reference::Matrix keys(total, kDim), values(total, kDim);
      test::Random random(uint64_t(100 * total + split));
      for (double& x : keys.data) x = random.gaussian();
      for (double& x : values.data) x = random.gaussian();
      double query[kDim];
      for (double& x : query) x = 3.0 * random.gaussian();
      std::vector<int> tokens[2];
      for (int i = 0; i < total; ++i) tokens[i < split ? 0 : 1].push_back(i);
      std::vector<float> output[2], merged(kDim, -7.0f);
      float lse[2], merged_lse = -7.0f;
      for (int part = 0; part < 2; ++part) {
        const auto attention = reference::attention(query, keys, values, 0.5, tokens[part]);
        output[part].assign(attention.output.begin(), attention.output.end());
        if (tokens[part].empty()) output[part].assign(kDim, kNan);  // never multiplied
        lse[part] = float(attention.lse);
      }
      const auto want = reference::attention(query, keys, values, 0.5);
      merge_attention(output[0].data(), &lse[0], output[1].data(), &lse[1], 1, kDim, merged.data(), &merged_lse);
      CAPTURE(total);
      CAPTURE(split);
      CHECK(test::largest_difference(merged.data(), want.output.data(), kDim) <= 1e-5);
      CHECK(test::near(double(merged_lse), want.lse, 1e-5));
      // In place, without an lse.
      merge_attention(output[0].data(), &lse[0], output[1].data(), &lse[1], 1, kDim, output[1].data(), nullptr);
      CHECK(test::largest_difference(output[1].data(), merged.data(), kDim) == 0.0);
    }
}

TEST_CASE("nothing and nothing is nothing; weights far apart; NaN stays NaN") {
  const float output_a[4] = {kNan, kNan, 1.0f, 5.0f}, output_b[4] = {kNan, kNan, 3.0f, 7.0f};
  const float lse_a[2] = {-kInfinity, 300.0f}, lse_b[2] = {-kInfinity, -300.0f};
  float output[4], lse[2];
  merge_attention(output_a, lse_a, output_b, lse_b, 2, 2, output, lse);
  CHECK(output[0] == 0.0f);
  CHECK(output[1] == 0.0f);
  CHECK(lse[0] == -kInfinity);
  CHECK(output[2] == 1.0f);
  CHECK(output[3] == 5.0f);
  CHECK(lse[1] == 300.0f);
  const float poisoned[2] = {kNan, 0.0f};
  merge_attention(output_a, poisoned, output_b, lse_b, 1, 2, output, lse);
  CHECK(std::isnan(lse[0]));
  CHECK(std::isnan(output[0]));
}
