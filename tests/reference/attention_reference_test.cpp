// The reference against numbers worked out by hand.
#include "tests/reference/attention_reference.hpp"

#include <doctest/doctest.h>

namespace {

bool close(double a, double b) { return std::fabs(a - b) <= 1e-12; }

// Two coordinates; scores of the query (1, 2) are ln 1, ln 2, ln 5 at scale 1.
struct Case {
  reference::Matrix keys{3, 2}, values{3, 2};
  double query[2] = {1.0, 2.0};
  Case() {
    keys.data = {0.0, 0.0, std::log(2.0), 0.0, 0.0, std::log(5.0) / 2.0};
    values.data = {8.0, 0.0, 0.0, 8.0, 16.0, -8.0};
  }
};

}  // namespace

TEST_CASE("three tokens of weight 1, 2 and 5") {
  const Case c;
  const auto result = reference::attention(c.query, c.keys, c.values, 1.0);
  // (1 * (8, 0) + 2 * (0, 8) + 5 * (16, -8)) / 8 = (11, -3)
  CHECK(close(result.output[0], 11.0));
  CHECK(close(result.output[1], -3.0));
  CHECK(close(result.lse, std::log(8.0)));
}

TEST_CASE("a list of tokens attends to these alone") {
  const Case c;
  const auto result = reference::attention(c.query, c.keys, c.values, 1.0, {2, 0});
  CHECK(close(result.output[0], 88.0 / 6.0));
  CHECK(close(result.output[1], -40.0 / 6.0));
  CHECK(close(result.lse, std::log(6.0)));
  CHECK(close(reference::attained_ratio(c.query, c.keys, 1.0, {2, 0}), 6.0 / 8.0));
  CHECK(close(reference::attained_ratio(c.query, c.keys, 1.0, {}), 0.0));
  CHECK(close(reference::attained_ratio(c.query, c.keys, 1.0, {0, 1, 2}), 1.0));
}

TEST_CASE("the scale multiplies scores") {
  const Case c;
  // Scale 2 squares the weights: 1, 4, 25.
  CHECK(close(reference::attention(c.query, c.keys, c.values, 2.0).lse, std::log(30.0)));
  CHECK(close(reference::attained_ratio(c.query, c.keys, 2.0, {2}), 25.0 / 30.0));
}

TEST_CASE("no tokens: zeros and -inf") {
  const double query[2] = {1.0, 1.0};
  const reference::Matrix nothing(0, 2);
  const auto result = reference::attention(query, nothing, nothing, 1.0);
  CHECK(result.output == std::vector<double>{0.0, 0.0});
  CHECK(result.lse == -std::numeric_limits<double>::infinity());
  CHECK(reference::attained_ratio(query, nothing, 1.0, {}) == 1.0);
}

TEST_CASE("scores of thousands do not overflow") {
  reference::Matrix keys(2, 1), values(2, 1);
  keys.data = {5000.0, 5000.0 + std::log(3.0)};
  values.data = {4.0, 8.0};
  const double query[1] = {1.0};
  const auto result = reference::attention(query, keys, values, 1.0);
  CHECK(std::fabs(result.output[0] - 7.0) <= 1e-9);
  CHECK(std::fabs(result.lse - (5000.0 + std::log(4.0))) <= 1e-9);
}

TEST_CASE("NaN and infinite scores") {
  reference::Matrix keys(2, 1), values(2, 1);
  values.data = {4.0, 8.0};
  const double query[1] = {1.0};
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  keys.data = {nan, 0.0};
  CHECK(std::isnan(reference::attention(query, keys, values, 1.0).output[0]));
  CHECK(std::isnan(reference::attention(query, keys, values, 1.0).lse));
  keys.data = {infinity, 0.0};
  CHECK(std::isnan(reference::attention(query, keys, values, 1.0).output[0]));
  keys.data = {-infinity, 0.0};  // masked: weight 0
  CHECK(close(reference::attention(query, keys, values, 1.0).output[0], 8.0));
  keys.data = {-infinity, -infinity};
  CHECK(reference::attention(query, keys, values, 1.0).output[0] == 0.0);
  CHECK(reference::attention(query, keys, values, 1.0).lse == -infinity);
}

TEST_CASE("half precision by its definition") {
  CHECK(reference::decode_f16(0x3c00) == 1.0);
  CHECK(reference::decode_f16(0xc000) == -2.0);
  CHECK(reference::decode_f16(0x3555) == 0.333251953125);
  CHECK(reference::decode_f16(0x7bff) == 65504.0);
  CHECK(reference::decode_f16(0x0400) == 0x1p-14);
  CHECK(reference::decode_f16(0x0001) == 0x1p-24);
  CHECK(std::signbit(reference::decode_f16(0x8000)));
  CHECK(reference::decode_f16(0x7c00) == std::numeric_limits<double>::infinity());
  CHECK(reference::decode_f16(0xfc00) == -std::numeric_limits<double>::infinity());
  CHECK(std::isnan(reference::decode_f16(0x7c01)));
}

TEST_CASE("bfloat16 by its definition") {
  CHECK(reference::decode_bf16(0x3f80) == 1.0);
  CHECK(reference::decode_bf16(0xc000) == -2.0);
  CHECK(reference::decode_bf16(0x4049) == 3.140625);
  CHECK(reference::decode_bf16(0x0001) == 0x1p-133);
  CHECK(reference::decode_bf16(0x7f80) == std::numeric_limits<double>::infinity());
  CHECK(std::isnan(reference::decode_bf16(0xffc0)));
}

TEST_CASE("elements of every format") {
  const float f32[2] = {1.5f, -0.25f};
  const std::uint16_t f16[2] = {0x3e00, 0xb400}, bf16[2] = {0x3fc0, 0xbe80};
  CHECK(reference::element(f32, reference::Format::f32, 0) == 1.5);
  CHECK(reference::element(f32, reference::Format::f32, 1) == -0.25);
  CHECK(reference::element(f16, reference::Format::f16, 0) == 1.5);
  CHECK(reference::element(f16, reference::Format::f16, 1) == -0.25);
  CHECK(reference::element(bf16, reference::Format::bf16, 0) == 1.5);
  CHECK(reference::element(bf16, reference::Format::bf16, 1) == -0.25);
}

TEST_CASE("what a row sees: causal, window, mask") {
  using reference::visible_tokens;
  CHECK(visible_tokens(4, 1, 0, true, 0, {}) == std::vector<int>{0, 1, 2, 3});
  CHECK(visible_tokens(4, 3, 0, true, 0, {}) == std::vector<int>{0, 1});
  CHECK(visible_tokens(4, 3, 2, true, 2, {}) == std::vector<int>{2, 3});
  CHECK(visible_tokens(4, 3, 0, false, 3, {}) == std::vector<int>{1, 2, 3});
  CHECK(visible_tokens(4, 1, 0, true, 0, {false, true, false, true}) == std::vector<int>{1, 3});
  CHECK(visible_tokens(2, 5, 1, true, 0, {}).empty());
}

TEST_CASE("a soft-capped layer, and one with a sink") {
  const Case c;
  const double cap = 1.5, none = -std::numeric_limits<double>::infinity();
  const auto capped = reference::attention(c.query, c.keys, c.values, {1.0, cap, none}, {0, 2});
  const double score = cap * std::tanh(std::log(5.0) / cap);
  CHECK(close(capped.lse, std::log(1.0 + std::exp(score))));
  CHECK(close(capped.output[0], (8.0 + std::exp(score) * 16.0) / (1.0 + std::exp(score))));
  // A sink of weight 8 halves what tokens of weight 1, 2 and 5 give.
  const auto sunk = reference::attention(c.query, c.keys, c.values, {1.0, 0.0, std::log(8.0)}, {0, 1, 2});
  CHECK(close(sunk.output[0], 5.5));
  CHECK(close(sunk.lse, std::log(16.0)));
  CHECK(close(reference::attention(c.query, c.keys, c.values, {1.0, 0.0, 3.0}, {}).lse, 3.0));
  CHECK(close(reference::attention(c.query, c.keys, c.values, {1.0, 0.0, none}, {0, 1, 2}).lse, std::log(8.0)));
}
