// Soft-capping of scores: cap * tanh(score / cap).
#pragma once

#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// tanh(x), relative error below 4e-7; +-1 for infinities, NaN stays NaN.
//
// Below 0.625 a polynomial, because 1 - exp(-2 x) would cancel. Source of its coefficients: Cephes, tanhf (S. L. Moshier).
QUORUM_ALWAYS_INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector size = maximum(x, Vector(0.0f) - x), square = size * size;
  Vector p(-5.70498872745e-3f);
  p = multiply_add(p, square, Vector(2.06390887954e-2f));
  p = multiply_add(p, square, Vector(-5.37397155531e-2f));
  p = multiply_add(p, square, Vector(1.33314422036e-1f));
  p = multiply_add(p, square, Vector(-3.33332819422e-1f));
  const Vector small = multiply_add(p * square, size, size), e = exponential(size * Vector(-2.0f));
  const Vector result = where_at_least(size, Vector(0.625f), (Vector(1.0f) - e) / (Vector(1.0f) + e), small);
  return where_positive(x, result, Vector(0.0f) - result);
}

QUORUM_ALWAYS_INLINE Vector soft_cap(Vector score, float cap) { return Vector(cap) * hyperbolic_tangent(score * Vector(1.0f / cap)); }
QUORUM_ALWAYS_INLINE float soft_cap(float score, float cap) {
  float lanes[kVectorSize];
  store(lanes, soft_cap(Vector(score), cap));
  return lanes[0];
}

// The same for `count` scores in their place; nothing beyond is touched.
inline void soft_cap_scores(float* scores, int count, float cap) {
  int i = 0;
  for (; i + kVectorSize <= count; i += kVectorSize) store(scores + i, soft_cap(load(scores + i), cap));
  if (i == count) return;
  float lanes[kVectorSize];
  store(lanes, soft_cap(load_partial(scores + i, count - i), cap));
  std::copy_n(lanes, count - i, scores + i);
}

}  // namespace quorum::simd
