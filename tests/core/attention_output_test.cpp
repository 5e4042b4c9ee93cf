// Addressing of outputs.
#include "quorum/core/attention_output.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace quorum;

TEST_CASE("rows are [sequence][qo_head][head_dim]") {
  const AttentionShape shape{6, 2, 16, 0.0f};
  std::vector<float> output(3 * 6 * 16), lse(3 * 6);
  const AttentionOutput out{output.data(), lse.data()};
  CHECK(out.row(shape, 0, 0) == output.data());
  CHECK(out.row(shape, 0, 5) == output.data() + 5 * 16);
  CHECK(out.row(shape, 2, 3) == output.data() + (2 * 6 + 3) * 16);
  out.set_lse(shape, 1, 4, 2.5f);
  CHECK(lse[1 * 6 + 4] == 2.5f);
  lse[10] = 0.0f;
  CHECK(lse == std::vector<float>(3 * 6, 0.0f));
}

TEST_CASE("lse may be left out") {
  const AttentionShape shape{2, 1, 8, 0.0f};
  float output[16];
  AttentionOutput{output, nullptr}.set_lse(shape, 0, 1, 1.0f);
}

TEST_CASE("offsets beyond 2^31 elements") {
  const AttentionShape shape{128, 8, 256, 0.0f};
  float element = 0.0f;
  const AttentionOutput out{&element, nullptr};
  const auto bytes = reinterpret_cast<uintptr_t>(out.row(shape, 100000, 0)) - reinterpret_cast<uintptr_t>(&element);
  CHECK(bytes == uintptr_t(100000) * 128 * 256 * 4);
}
