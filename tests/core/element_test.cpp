// f16 and bf16 against their definitions.
#include "quorum/core/element.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/reference/attention_reference.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

bool same_value(double a, double b) { return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b); }

// The representable value nearest to x by search over all patterns: ties go to the even pattern, beyond the largest one is infinity.
uint16_t nearest_f16(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(x);
  int low = 0, high = 0x7c00;  // patterns of a sign ascend with the magnitude
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (reference::decode_f16(uint16_t(middle)) <= magnitude)
      low = middle;
    else
      high = middle - 1;
  }
  if (low == 0x7c00) return uint16_t(sign | 0x7c00);
  const double below = reference::decode_f16(uint16_t(low));
  const double above = low == 0x7bff ? 65536.0 : reference::decode_f16(uint16_t(low + 1));
  const double to_below = magnitude - below, to_above = above - magnitude;
  const bool up = to_above < to_below || (to_above == to_below && low % 2 == 1);
  return uint16_t(sign | (up ? low + 1 : low));
}

}  // namespace

TEST_CASE("all 65536 patterns of f16 and bf16 decode to their value") {
  int wrong_f16 = 0, wrong_bf16 = 0;
  for (int bits = 0; bits < 65536; ++bits) {
    wrong_f16 += !same_value(double(to_float(f16{uint16_t(bits)})), reference::decode_f16(uint16_t(bits)));
    wrong_bf16 += !same_value(double(to_float(bf16{uint16_t(bits)})), reference::decode_bf16(uint16_t(bits)));
  }
  CHECK(wrong_f16 == 0);
  CHECK(wrong_bf16 == 0);
}

TEST_CASE("all patterns survive the round trip through float") {
  int wrong_f16 = 0, wrong_bf16 = 0, lost_nan = 0;
  for (int bits = 0; bits < 65536; ++bits) {
    const f16 half{uint16_t(bits)};
    const bf16 brain{uint16_t(bits)};
    const uint16_t half_again = from_float<f16>(to_float(half)).bits, brain_again = from_float<bf16>(to_float(brain)).bits;
    if (std::isnan(to_float(half)))
      lost_nan += !std::isnan(reference::decode_f16(half_again)) || (half_again ^ bits) & 0x8000;
    else
      wrong_f16 += half_again != bits;
    if (std::isnan(to_float(brain)))
      lost_nan += !std::isnan(reference::decode_bf16(brain_again)) || (brain_again ^ bits) & 0x8000;
    else
      wrong_bf16 += brain_again != bits;
  }
  CHECK(wrong_f16 == 0);
  CHECK(wrong_bf16 == 0);
  CHECK(lost_nan == 0);
}

TEST_CASE("f16 rounds to the nearest, ties to even: next to every value and half-way between all neighbours") {
  int wrong = 0;
  for (int bits = 0; bits < 0x7c00; ++bits) {
    const double value = reference::decode_f16(uint16_t(bits));
    const double next = bits == 0x7bff ? 65536.0 : reference::decode_f16(uint16_t(bits + 1));
    const float half_way = float((value + next) / 2);  // 12 significant bits: exact in float
    for (const float sign : {1.0f, -1.0f})
      for (const float x : {half_way, std::nextafter(half_way, 0.0f), std::nextafter(half_way, 1e9f), std::nextafter(float(value), 1e9f)})
        wrong += from_float<f16>(sign * x).bits != nearest_f16(double(sign * x));
  }
  CHECK(wrong == 0);
}

TEST_CASE("f16 of random floats of all sizes") {
  const uint64_t seed = 11;
  CAPTURE(seed);
  test::Random random(seed);
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    const float x = float(random.uniform(-1.0, 1.0) * std::exp2(random.uniform(-30.0, 20.0)));
    wrong += from_float<f16>(x).bits != nearest_f16(double(x));
  }
  CHECK(wrong == 0);
}

TEST_CASE("f16 edges") {
  CHECK(from_float<f16>(65504.0f).bits == 0x7bff);
  CHECK(from_float<f16>(65519.99f).bits == 0x7bff);
  CHECK(from_float<f16>(65520.0f).bits == 0x7c00);
  CHECK(from_float<f16>(-1e30f).bits == 0xfc00);
  CHECK(from_float<f16>(kInfinity).bits == 0x7c00);
  CHECK(from_float<f16>(0x1p-25f).bits == 0);  // half-way to the smallest subnormal, ties to even
  CHECK(from_float<f16>(std::nextafter(0x1p-25f, 1.0f)).bits == 1);
  CHECK(from_float<f16>(-0.0f).bits == 0x8000);
  CHECK(from_float<f16>(1e-45f).bits == 0);
}

TEST_CASE("fp8_e4m3: all patterns by their definition, there and back, and as f16") {
  int wrong = 0, lost = 0, wrong_f16 = 0;
  for (int bits = 0; bits < 256; ++bits) {
    const fp8_e4m3 x{uint8_t(bits)};
    const double value = reference::decode_e4m3(x.bits);
    wrong += !same_value(double(to_float(x)), value);
    lost += from_float<fp8_e4m3>(to_float(x)).bits != bits;  // NaN keeps its sign too
    for (const int other : {0, 1, 8, 0x7e, 0x7f, 0x80, 0xfe, 0xff}) {
      const uint32_t two = fp8_as_f16(uint32_t(bits) | uint32_t(other) << 16);
      wrong_f16 += !same_value(reference::decode_f16(uint16_t(two)), value * 0x1p-8);
      wrong_f16 += !same_value(reference::decode_f16(uint16_t(two >> 16)), reference::decode_e4m3(uint8_t(other)) * 0x1p-8);
    }
  }
  CHECK(wrong == 0);
  CHECK(lost == 0);
  CHECK(wrong_f16 == 0);
  CHECK(to_float(fp8_e4m3{0x7e}) == 448.0f);
  CHECK(to_float(fp8_e4m3{0x01}) == 0x1p-9f);
}

TEST_CASE("fp8_e4m3 rounds to the nearest, ties to even: next to every value and half-way between all neighbours; then it is cut") {
  int wrong = 0;
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float value = float(reference::decode_e4m3(uint8_t(bits))), next = float(reference::decode_e4m3(uint8_t(bits + 1)));
    const float half_way = (value + next) / 2.0f;
    const int even = bits % 2 == 0 ? bits : bits + 1;
    for (const int sign : {0, 0x80}) {
      const auto bits_of = [&](float x) { return int(from_float<fp8_e4m3>(sign != 0 ? -x : x).bits); };
      wrong += bits_of(half_way) != sign + even;
      wrong += bits_of(std::nextafter(half_way, 0.0f)) != sign + bits;
      wrong += bits_of(std::nextafter(half_way, 1e9f)) != sign + bits + 1;
    }
  }
  CHECK(wrong == 0);
  CHECK(from_float<fp8_e4m3>(449.0f).bits == 0x7e);
  CHECK(from_float<fp8_e4m3>(-1e30f).bits == 0xfe);
  CHECK(from_float<fp8_e4m3>(kInfinity).bits == 0x7f);
  CHECK(from_float<fp8_e4m3>(-kInfinity).bits == 0xff);
  CHECK(from_float<fp8_e4m3>(kNan).bits == 0x7f);
  CHECK(from_float<fp8_e4m3>(-0.0f).bits == 0x80);
  CHECK(from_float<fp8_e4m3>(1e-45f).bits == 0);
}

TEST_CASE("bf16 rounds to the nearest, ties to even") {
  CHECK(from_float<bf16>(1.0f).bits == 0x3f80);
  CHECK(from_float<bf16>(1.0f + 0x1p-8f).bits == 0x3f80);      // half-way, even below
  CHECK(from_float<bf16>(1.0f + 3 * 0x1p-8f).bits == 0x3f82);  // half-way, even above
  CHECK(from_float<bf16>(1.0f + 0x1p-8f + 0x1p-20f).bits == 0x3f81);
  CHECK(from_float<bf16>(3.4028235e38f).bits == 0x7f80);  // overflow becomes infinity
  CHECK(from_float<bf16>(-kInfinity).bits == 0xff80);
  CHECK(from_float<bf16>(-0.0f).bits == 0x8000);
  const float nan_with_low_payload = std::bit_cast<float>(0x7f800001u);  // a plain cut would make it infinite
  CHECK(std::isnan(to_float(from_float<bf16>(nan_with_low_payload))));
}

TEST_CASE("bf16 of random floats is the nearer neighbour") {
  const uint64_t seed = 12;
  CAPTURE(seed);
  test::Random random(seed);
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    const float x = float(random.uniform(-1.0, 1.0) * std::exp2(random.uniform(-100.0, 100.0)));
    const double got = reference::decode_bf16(from_float<bf16>(x).bits);
    const uint16_t down = uint16_t(std::bit_cast<uint32_t>(x) >> 16), up = uint16_t(down + 1);
    const double best = std::fmin(std::fabs(double(x) - reference::decode_bf16(down)), std::fabs(double(x) - reference::decode_bf16(up)));
    wrong += std::fabs(double(x) - got) != best;
  }
  CHECK(wrong == 0);
}

TEST_CASE("conversions are constant expressions, f32 passes through") {
  static_assert(to_float(from_float<f16>(1.5f)) == 1.5f);
  static_assert(to_float(from_float<bf16>(-0.25f)) == -0.25f);
  static_assert(to_float(from_float<float>(0.1f)) == 0.1f);
  static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2);
}

TEST_CASE("sizes and names of element types") {
  CHECK(element_bytes(ElementType::f32) == 4);
  CHECK(element_bytes(ElementType::f16) == 2);
  CHECK(element_bytes(ElementType::bf16) == 2);
  CHECK(std::string(element_name(ElementType::f32)) == "f32");
  CHECK(std::string(element_name(ElementType::f16)) == "f16");
  CHECK(std::string(element_name(ElementType::bf16)) == "bf16");
  CHECK(std::string(element_name(ElementType::q8_0)) == "q8_0");
  CHECK(element_bytes(ElementType::q8_0) == 0);
  CHECK(row_bytes(ElementType::f32, 72) == 288);
  CHECK(row_bytes(ElementType::f16, 72) == 144);
  CHECK(row_bytes(ElementType::bf16, 72) == 144);
  CHECK(row_bytes(ElementType::q8_0, 96) == 102);
  CHECK(block_elements(ElementType::f16) == 1);
  CHECK(block_elements(ElementType::q8_0) == 32);
  static_assert(ElementTypeOf<float>::value == ElementType::f32);
  static_assert(ElementTypeOf<f16>::value == ElementType::f16);
  static_assert(ElementTypeOf<bf16>::value == ElementType::bf16);
  static_assert(ElementTypeOf<q8_0>::value == ElementType::q8_0);
}

TEST_CASE("q8_0: the scale takes the largest magnitude to 127, halves are rounded away from zero") {
  float x[64] = {};
  for (int i = 0; i < 32; ++i) x[i] = float(i) - 16.5f;
  x[0] = -127.0f;  // scale 1
  for (int i = 32; i < 64; ++i) x[i] = i % 2 == 0 ? 0.5f : -0.25f;
  q8_0 blocks[3];
  blocks[2].q[0] = 99;
  quantise_q8_0(x, 64, blocks);
  CHECK(to_float(blocks[0].scale) == 1.0f);
  CHECK(blocks[0].q[0] == -127);
  CHECK(blocks[0].q[1] == -16);  // -15.5
  CHECK(blocks[0].q[16] == -1);  // -0.5
  CHECK(blocks[0].q[17] == 1);
  CHECK(blocks[0].q[31] == 15);  // 14.5
  CHECK(blocks[1].scale.bits == from_float<f16>(0.5f / 127.0f).bits);
  CHECK(blocks[1].q[0] == 127);
  CHECK(blocks[1].q[1] == -64);  // -63.5
  CHECK(blocks[2].q[0] == 99);
}

TEST_CASE("q8_0 of random rows: off by half a step and the rounding of the scale") {
  const uint64_t seed = 13;
  CAPTURE(seed);
  test::Random random(seed);
  int wrong = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    float x[32];
    const double size = std::exp2(random.uniform(-10.0, 15.0));
    for (float& e : x) e = float(size * random.gaussian());
    q8_0 block;
    quantise_q8_0(x, 32, &block);
    int largest = 0;
    for (int i = 0; i < 32; ++i) {
      const double got = reference::decode_f16(block.scale.bits) * block.q[i], scale = reference::decode_f16(block.scale.bits);
      // In f16 the scale is off by 2^-11, or 2^-25 where it is subnormal, times up to 127.
      wrong += !(std::fabs(got - double(x[i])) <= 0.5001 * scale + 127.0 * std::max(scale * 0x1p-11, 0x1p-25) + scale * 0x1p-11);
      largest = std::max(largest, std::abs(int(block.q[i])));
    }
    wrong += largest != 127;
  }
  CHECK(wrong == 0);
}

TEST_CASE("q8_0 edges: zeros, values too small and too large for an f16 scale, NaN and infinity") {
  float x[32] = {};
  q8_0 block;
  const auto quantise = [&](float first, float second) {
    x[0] = first;
    x[1] = second;
    quantise_q8_0(x, 32, &block);
    return to_float(block.scale);
  };
  CHECK(quantise(0.0f, -0.0f) == 0.0f);
  CHECK(block.q[0] == 0);
  CHECK(quantise(127.0f * 65504.0f, 1.0f) == 65504.0f);
  CHECK(quantise(127.0f * 65520.0f, 1.0f) == kInfinity);
  CHECK(quantise(127.0f * 0x1p-24f, 64.0f * 0x1p-24f) == 0x1p-24f);
  CHECK(block.q[1] == 64);
  CHECK(quantise(127.0f * 0x1p-25f, 0.0f) == 0.0f);
  CHECK(quantise(1e-45f, -1e-45f) == 0.0f);  // its reciprocal would be infinite
  for (const float element : {kNan, kInfinity, -kInfinity})
    for (const bool first : {true, false}) {
      CHECK(std::isnan(quantise(first ? element : 1.0f, first ? 1.0f : element)));
      CHECK(block.q[0] == 0);
    }
}
