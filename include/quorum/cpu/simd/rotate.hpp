// The fixed orthogonal mixing of coordinates: signs, then Hadamard transforms. It makes every coordinate alike, so that int8 rows and
// short codes lose little, and costs d log d additions where a random rotation would cost d^2.
#pragma once

#include <cmath>

#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// The transform inside one vector.
QUORUM_ALWAYS_INLINE Vector hadamard_lanes(Vector v) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  // Each step adds a permuted copy; the lanes of a pair's second half take the difference.
  __m512 x = v, swapped = _mm512_shuffle_f32x4(x, x, 0x4e);
  x = _mm512_mask_sub_ps(_mm512_add_ps(x, swapped), 0xff00, swapped, x);
  swapped = _mm512_shuffle_f32x4(x, x, 0xb1);
  x = _mm512_mask_sub_ps(_mm512_add_ps(x, swapped), 0xf0f0, swapped, x);
  swapped = _mm512_permute_ps(x, 0x4e);
  x = _mm512_mask_sub_ps(_mm512_add_ps(x, swapped), 0xcccc, swapped, x);
  swapped = _mm512_permute_ps(x, 0xb1);
  return _mm512_mask_sub_ps(_mm512_add_ps(x, swapped), 0xaaaa, swapped, x);
#elif defined(__AVX__) && !defined(QUORUM_SCALAR)
  // Adding and subtracting, the lanes of a pair's second half blended in.
  __m256 x = v, swapped = _mm256_permute2f128_ps(x, x, 0x01);
  x = _mm256_blend_ps(_mm256_add_ps(x, swapped), _mm256_sub_ps(swapped, x), 0xf0);
  swapped = _mm256_permute_ps(x, 0x4e);
  x = _mm256_blend_ps(_mm256_add_ps(x, swapped), _mm256_sub_ps(swapped, x), 0xcc);
  swapped = _mm256_permute_ps(x, 0xb1);
  return _mm256_blend_ps(_mm256_add_ps(x, swapped), _mm256_sub_ps(swapped, x), 0xaa);
#elif defined(__SSE2__) && !defined(QUORUM_SCALAR)
  // The sign of a pair's second half is turned before the addition: there is no blend yet.
  __m128 x = v, swapped = _mm_shuffle_ps(x, x, 0x4e);
  x = _mm_add_ps(swapped, _mm_xor_ps(x, _mm_set_ps(-0.0f, -0.0f, 0.0f, 0.0f)));
  swapped = _mm_shuffle_ps(x, x, 0xb1);
  return _mm_add_ps(swapped, _mm_xor_ps(x, _mm_set_ps(-0.0f, 0.0f, -0.0f, 0.0f)));
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  // A product with 1 or -1 is exact, so the multiply-add gives the plain sums and differences.
  const float32x4_t halves = {1.0f, 1.0f, -1.0f, -1.0f}, pairs = {1.0f, -1.0f, 1.0f, -1.0f};
  float32x4_t x = v;
  x = vfmaq_f32(vextq_f32(x, x, 2), x, halves);
  return vfmaq_f32(vrev64q_f32(x), x, pairs);
#else
  float lanes[kVectorSize];
  store(lanes, v);
  for (int half = kVectorSize / 2; half >= 1; half /= 2)
    for (int i = 0; i < kVectorSize; ++i)
      if ((i & half) == 0) {
        const float a = lanes[i], b = lanes[i + half];
        lanes[i] = a + b;
        lanes[i + half] = a - b;
      }
  return load(lanes);
#endif
}

// Unnormalised Walsh-Hadamard transform of x[0, n), n a power of two. Cost: n log2 n additions.
inline void hadamard(float* x, int n) {
  int half = n / 2;
  for (; half >= kVectorSize; half /= 2)
    for (int block = 0; block < n; block += 2 * half)
      for (int i = block; i < block + half; i += kVectorSize) {
        const Vector a = load(x + i), b = load(x + i + half);
        store(x + i, a + b);
        store(x + i + half, a - b);
      }
  if (n >= kVectorSize) {
    for (int i = 0; i < n; i += kVectorSize) store(x + i, hadamard_lanes(load(x + i)));
    return;
  }
  for (; half >= 1; half /= 2)
    for (int block = 0; block < n; block += 2 * half)
      for (int i = block; i < block + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
}

// x = rotation(signs * x), orthogonal, in place. For dimensions that are no power of two, two transforms of the largest power of two
// overlap: first over the front, then, with the signs once more but shifted, over the back. Without signs in between, the second
// transform would undo the first where they overlap.
inline void rotate(float* x, const float* signs, int head_dim) {
  int power = 8;
  while (2 * power <= head_dim) power *= 2;
  const float norm = 1.0f / std::sqrt(float(power));
  for (int c = 0; c < head_dim; ++c) x[c] *= signs[c] * (c < power ? norm : 1.0f);
  hadamard(x, power);
  if (power == head_dim) return;
  float* back = x + head_dim - power;
  for (int c = 0; c < power; ++c) back[c] *= norm * signs[c];
  hadamard(back, power);
}

}  // namespace quorum::simd
