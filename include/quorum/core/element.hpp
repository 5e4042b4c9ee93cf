// Element types of keys, values and queries: f32, f16 and bf16, stored as raw bits so that no compiler support is needed, and ggml's q8_0.
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

// A block of 32 neighbouring elements of a row as ggml keeps it (block_q8_0): element i = scale * q[i], exact in a float.
struct q8_0 {
  static constexpr int kElements = 32;
  f16 scale;
  int8_t q[kElements] = {};
};
static_assert(sizeof(q8_0) == 34 && alignof(q8_0) == 2, "rows are read as they lie in the caller's memory");

enum class ElementType : uint8_t { f32, f16, bf16, q8_0 };

// Elements that are stored together: head_dim must be a multiple.
constexpr int block_elements(ElementType type) { return type == ElementType::q8_0 ? q8_0::kElements : 1; }
// Of one element, where each lies by itself; 0 for q8_0. The size of a row is row_bytes().
constexpr int element_bytes(ElementType type) { return type == ElementType::f32 ? 4 : type == ElementType::q8_0 ? 0 : 2; }
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
