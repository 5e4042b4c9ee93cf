// Element types of keys, values and queries: f32, f16 and bf16, stored as raw bits so that no compiler support is needed.
#pragma once

#include <bit>

#include "quorum/core/config.hpp"

namespace quorum {

// IEEE 754 half precision, raw bits.
struct f16 {
  uint16_t bits = 0;
};
// Upper half of an IEEE 754 single, raw bits.
struct bf16 {
  uint16_t bits = 0;
};

enum class ElementType : uint8_t { f32, f16, bf16 };

constexpr int element_bytes(ElementType type) { return type == ElementType::f32 ? 4 : 2; }
constexpr const char* element_name(ElementType type) {
  return type == ElementType::f32 ? "f32" : type == ElementType::f16 ? "f16" : "bf16";
}

template <class T>
struct ElementTypeOf;
template <>
struct ElementTypeOf<float> {
  static constexpr ElementType value = ElementType::f32;
};
template <>
struct ElementTypeOf<f16> {
  static constexpr ElementType value = ElementType::f16;
};
template <>
struct ElementTypeOf<bf16> {
  static constexpr ElementType value = ElementType::bf16;
};

constexpr float to_float(float x) { return x; }
constexpr float to_float(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
// Exact, subnormals, infinities and NaN included.
constexpr float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits & 0x7c00, mantissa = x.bits & 0x03ff;
  if (exponent == 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((uint32_t(exponent) << 13) + (mantissa << 13) + (112u << 23)));
  const float magnitude = float(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

template <class T>
constexpr T from_float(float x);
template <>
constexpr float from_float<float>(float x) {
  return x;
}
// Round to nearest even; NaN stays NaN.
template <>
constexpr bf16 from_float<bf16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
// Round to nearest even; overflow becomes infinity, NaN stays NaN.
template <>
constexpr f16 from_float<f16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {                                   // below 2^-14: subnormal, adding 0.5 rounds at 2^-24
    const uint32_t rounded = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f);
    return {uint16_t(sign | (rounded - 0x3f000000))};
  }
  const uint32_t rebased = magnitude - (112u << 23);
  return {uint16_t(sign | ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13))};
}

}  // namespace quorum
