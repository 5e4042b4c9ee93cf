// Element types of keys, values and queries: f32, f16, bf16 and fp8_e4m3, stored as raw bits so that no compiler support is needed, and
// ggml's q8_0.
#pragma once

#include <bit>
#include <cmath>

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
// 8 bits in the form of OCP's and torch's float8_e4m3fn, raw bits: 4 of exponent, 3 of mantissa, magnitudes up to 448, NaN and no infinity.
struct fp8_e4m3 {
  uint8_t bits = 0;
};

// A block of 32 neighbouring elements of a row as ggml keeps it (block_q8_0): element i = scale * q[i], exact in a float.
struct q8_0 {
  static constexpr int kElements = 32;
  f16 scale;
  int8_t q[kElements] = {};
};
static_assert(sizeof(q8_0) == 34 && alignof(q8_0) == 2, "rows are read as they lie in the caller's memory");

enum class ElementType : uint8_t { f32, f16, bf16, q8_0, fp8_e4m3 };

// Elements that are stored together: head_dim must be a multiple.
constexpr int block_elements(ElementType type) { return type == ElementType::q8_0 ? q8_0::kElements : 1; }
// Of one element, where each lies by itself; 0 for q8_0. The size of a row is row_bytes().
constexpr int element_bytes(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return 4;
    case ElementType::q8_0:
      return 0;
    case ElementType::fp8_e4m3:
      return 1;
    case ElementType::f16:
    case ElementType::bf16:
      break;
  }
  return 2;
}
// Of a row of head_dim elements, a multiple of block_elements(type).
constexpr int row_bytes(ElementType type, int head_dim) {
  return type == ElementType::q8_0 ? head_dim / q8_0::kElements * int(sizeof(q8_0)) : head_dim * element_bytes(type);
}
constexpr const char* element_name(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return "f32";
    case ElementType::f16:
      return "f16";
    case ElementType::bf16:
      return "bf16";
    case ElementType::q8_0:
      return "q8_0";
    case ElementType::fp8_e4m3:
      return "fp8_e4m3";
  }
  return "unknown";
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
template <>
struct ElementTypeOf<q8_0> {
  static constexpr ElementType value = ElementType::q8_0;
};
template <>
struct ElementTypeOf<fp8_e4m3> {
  static constexpr ElementType value = ElementType::fp8_e4m3;
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
// Exact, subnormals and NaN included.
constexpr float to_float(fp8_e4m3 x) {
  const uint32_t sign = uint32_t(x.bits & 0x80) << 24, magnitude = x.bits & 0x7f;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000);
  if (magnitude >= 8) return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
  return float(magnitude) * (sign != 0 ? -0x1p-9f : 0x1p-9f);
}

// Two fp8_e4m3, in bytes 0 and 2, as two f16 of 2^-8 the value, exactly: the fields stay, the exponents' biases are 7 and 15. NaN stays
// NaN.
constexpr uint32_t fp8_as_f16(uint32_t two) {
  const uint32_t magnitudes = (two & 0x007f007f) << 7;
  const uint32_t nans = (magnitudes + 0x00800080) & 0x40004000;  // only the largest pattern carries into the exponent's last free bit
  return (two & 0x00800080) << 8 | magnitudes | nans;
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
// Round to nearest even. What is beyond 448 becomes 448; infinity, for which there is no pattern, and NaN become NaN.
template <>
constexpr fp8_e4m3 from_float<fp8_e4m3>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  const uint8_t sign = uint8_t(bits >> 24 & 0x80);
  if (magnitude >= 0x7f800000) return {uint8_t(sign | 0x7f)};
  if (magnitude >= 0x43e00000) return {uint8_t(sign | 0x7e)};  // 448
  if (magnitude < 0x3c800000) {                                // below 2^-6: subnormal, adding 2^14 rounds at 2^-9
    const uint32_t rounded = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f);
    return {uint8_t(sign | (rounded - 0x46800000))};
  }
  const uint32_t rebased = magnitude - (120u << 23);
  return {uint8_t(sign | ((rebased + 0x7ffff + ((rebased >> 20) & 1)) >> 20))};
}

// Quantises a row as ggml's reference does: per block scale = largest magnitude / 127, rounded to f16, and q by the scale before that
// rounding, halves away from zero.
//
// Shapes: x [head_dim], a multiple of 32; out [head_dim / 32]. Edges: a NaN or infinity in a block makes its scale NaN; magnitudes beyond
// 127 * 65504 make it infinite, those below 127 * 2^-25 zero.
inline void quantise_q8_0(const float* x, int head_dim, q8_0* out) {
  constexpr float kSmallestNormal = 0x1p-126f;  // the reciprocal of what is smaller would overflow
  for (const float* end = x + head_dim; x < end; x += q8_0::kElements, ++out) {
    float largest = 0.0f;
    bool finite = true;
    for (int i = 0; i < q8_0::kElements; ++i) {
      largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
      finite = finite && std::isfinite(x[i]);
    }
    const float scale = largest / 127.0f, inverse = finite && scale >= kSmallestNormal ? 1.0f / scale : 0.0f;
    out->scale = from_float<f16>(finite ? scale : kNan);
    for (int i = 0; i < q8_0::kElements; ++i) out->q[i] = finite ? int8_t(std::round(x[i] * inverse)) : int8_t(0);
  }
}

}  // namespace quorum
