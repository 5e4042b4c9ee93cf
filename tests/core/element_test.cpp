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
  static_assert(ElementTypeOf<float>::value == ElementType::f32);
  static_assert(ElementTypeOf<f16>::value == ElementType::f16);
  static_assert(ElementTypeOf<bf16>::value == ElementType::bf16);
}
