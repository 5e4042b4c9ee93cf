// The query's way into the index's coordinates: a matrix product, sums over coordinates, and rounding to int8.
#pragma once

#include <cmath>

#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// out[g][0..16) = sum over c of factors[c][0..16) * queries[g][c], for G query heads.
//
// Shapes: factors [head_dim][16] f16. Cost: factors read once for all heads, asked for a few cache lines ahead.
template <int G>
void transform_block(const f16* factors, int head_dim, const float* queries, int query_stride, float* out, int out_stride) {
  constexpr int kParts = 16 / kVectorSize, kAhead = 64;
  Vector even[G][kParts], odd[G][kParts];  // two chains of sums: a multiply-add takes four cycles
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < kParts; ++i) even[g][i] = odd[g][i] = Vector(0.0f);
  const auto step = [&](int c, Vector(&sums)[G][kParts]) {
    for (int i = 0; i < kParts; ++i) {
      const Vector factor = load_as_float(factors + int64_t(c) * 16 + i * kVectorSize);
      for (int g = 0; g < G; ++g) sums[g][i] = multiply_add(factor, Vector(queries[int64_t(g) * query_stride + c]), sums[g][i]);
    }
  };
  for (int c = 0; c < head_dim; c += 2) {
    prefetch(factors + int64_t(c + kAhead) * 16);
    step(c, even);
    step(c + 1, odd);
  }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < kParts; ++i) store(out + int64_t(g) * out_stride + i * kVectorSize, even[g][i] + odd[g][i]);
}

// Sum of a[i] * b[i]; count a multiple of kVectorSize.
inline float dot(const float* a, const float* b, int count) {
  Vector sum(0.0f);
  for (int i = 0; i < count; i += kVectorSize) sum = multiply_add(load(a + i), load(b + i), sum);
  return reduce_add(sum);
}

// Sum of a[i] * a[i] * b[i]; count a multiple of kVectorSize.
inline float weighted_square_sum(const float* a, const float* b, int count) {
  Vector sum(0.0f);
  for (int i = 0; i < count; i += kVectorSize) sum = multiply_add(load(a + i) * load(a + i), load(b + i), sum);
  return reduce_add(sum);
}

// Largest magnitude; count a multiple of kVectorSize. NaN elements do not count.
inline float largest_magnitude(const float* x, int count) {
  Vector largest(0.0f);
  for (int i = 0; i < count; i += kVectorSize) {
    const Vector v = load(x + i);
    largest = maximum(maximum(v, Vector(0.0f) - v), largest);
  }
  return reduce_max(largest);
}

// True if no element is NaN or Inf; count a multiple of kVectorSize. Differences of equal finite numbers are 0, of others NaN.
inline bool all_finite(const float* x, int count) {
  Vector sum(0.0f);
  for (int i = 0; i < count; i += kVectorSize) sum = sum + (load(x + i) - load(x + i));
  return reduce_add(sum) == 0.0f;
}

// out[i] = x[i] / step rounded to nearest even, clamped to [-127, 127]; NaN becomes 0. Returns the sum of out. count a multiple of 16.
inline int32_t quantise(const float* x, float step, int count, int8_t* out) {
  const float inverse = 1.0f / step;
  int32_t sum = 0;
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  __m512i sums = _mm512_setzero_si512();
  for (int i = 0; i < count; i += 16) {
    __m512 steps = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
    steps = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(steps, steps, _CMP_ORD_Q), steps);
    steps = _mm512_min_ps(_mm512_max_ps(steps, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f));
    const __m512i rounded = _mm512_cvtps_epi32(steps);
    sums = _mm512_add_epi32(sums, rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(rounded));
  }
  sum = _mm512_reduce_add_epi32(sums);
#elif defined(__SSE2__) && !defined(QUORUM_SCALAR)
  __m128i sums = _mm_setzero_si128();
  for (int i = 0; i < count; i += 16) {
    __m128i rounded[4];
    for (int j = 0; j < 4; ++j) {
      __m128 steps = _mm_mul_ps(_mm_loadu_ps(x + i + 4 * j), _mm_set1_ps(inverse));
      steps = _mm_and_ps(steps, _mm_cmpord_ps(steps, steps));
      rounded[j] = _mm_cvtps_epi32(_mm_min_ps(_mm_max_ps(steps, _mm_set1_ps(-127.0f)), _mm_set1_ps(127.0f)));
      sums = _mm_add_epi32(sums, rounded[j]);
    }
    const __m128i low = _mm_packs_epi32(rounded[0], rounded[1]), high = _mm_packs_epi32(rounded[2], rounded[3]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm_packs_epi16(low, high));
  }
  alignas(16) int32_t lanes[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes), sums);
  sum = lanes[0] + lanes[1] + lanes[2] + lanes[3];
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  // NaN stays NaN through fmax and fmin, and converts to 0.
  int32x4_t sums = vdupq_n_s32(0);
  for (int i = 0; i < count; i += 16) {
    int16x4_t narrow[4];
    for (int j = 0; j < 4; ++j) {
      const float32x4_t steps = vmulq_n_f32(vld1q_f32(x + i + 4 * j), inverse);
      const int32x4_t rounded = vcvtnq_s32_f32(vminq_f32(vmaxq_f32(steps, vdupq_n_f32(-127.0f)), vdupq_n_f32(127.0f)));
      sums = vaddq_s32(sums, rounded);
      narrow[j] = vmovn_s32(rounded);
    }
    vst1_s8(out + i, vmovn_s16(vcombine_s16(narrow[0], narrow[1])));
    vst1_s8(out + i + 8, vmovn_s16(vcombine_s16(narrow[2], narrow[3])));
  }
  sum = vaddvq_s32(sums);
#else
  for (int i = 0; i < count; ++i) {
    const float steps = x[i] * inverse;
    const float clamped = steps < -127.0f ? -127.0f : steps > 127.0f ? 127.0f : steps;
    out[i] = clamped == clamped ? int8_t(std::nearbyint(clamped)) : int8_t(0);
    sum += out[i];
  }
#endif
  return sum;
}

}  // namespace quorum::simd
