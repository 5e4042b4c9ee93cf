// Buckets of keys for a block of 16 entries at once: their numbers, sums by bucket, and which entries lie above one.
#pragma once

#include "quorum/core/token_order.hpp"
#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// Heads of a row of bucket sums: one register of four.
inline constexpr int kBucketHeads = 4;

// buckets[i] = key_bucket(keys[i]), 16 of them; the same integers as the scalar rule for every key >= 0 or NaN.
inline void key_buckets(const float* keys, uint16_t* buckets) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  const __m512i below = _mm512_sub_epi32(_mm512_set1_epi32(int(kTopKeyBits)), _mm512_srli_epi32(_mm512_loadu_si512(keys), kKeyBucketBits));
  const __m512i bounded = _mm512_min_epi32(_mm512_max_epi32(below, _mm512_setzero_si512()), _mm512_set1_epi32(kNumKeyBuckets - 1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(buckets), _mm512_cvtepi32_epi16(bounded));
#else
  for (int i = 0; i < 16; ++i) buckets[i] = uint16_t(key_bucket(keys[i]));
#endif
}

// sums[buckets[i]][g] += weights[g][i] for the first `count` of 16 entries and G <= 4 heads; weights beyond must be 0.
//
// Shapes: weights [G][16]; sums [kNumKeyBuckets][row_stride].
template <int G>
QUORUM_ALWAYS_INLINE void add_to_buckets(const uint16_t* buckets, const float* weights, int count, float* sums, int row_stride) {
#if defined(__SSE2__) && !defined(QUORUM_SCALAR)
  for (int i = 0; i < count; i += 4) {
    __m128 rows[4];
    for (int g = 0; g < 4; ++g) rows[g] = g < G ? _mm_loadu_ps(weights + g * 16 + i) : _mm_setzero_ps();
    _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
    for (int j = 0; j < 4; ++j) {
      float* row = sums + int64_t(buckets[i + j]) * row_stride;
      _mm_storeu_ps(row, _mm_add_ps(_mm_loadu_ps(row), rows[j]));
    }
  }
#else
  for (int i = 0; i < count; ++i)
    for (int g = 0; g < G; ++g) sums[int64_t(buckets[i]) * row_stride + g] += weights[g * 16 + i];
#endif
}

// Bit i is set where buckets[i] <= bucket, 16 of them.
QUORUM_ALWAYS_INLINE uint32_t lanes_up_to(const uint16_t* buckets, int bucket) {
#if defined(__SSE2__) && !defined(QUORUM_SCALAR)
  const __m128i* p = reinterpret_cast<const __m128i*>(buckets);
  const __m128i limit = _mm_set1_epi16(int16_t(bucket + 1));
  const __m128i low = _mm_cmpgt_epi16(limit, _mm_loadu_si128(p)), high = _mm_cmpgt_epi16(limit, _mm_loadu_si128(p + 1));
  return uint32_t(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
#else
  uint32_t lanes = 0;
  for (int i = 0; i < 16; ++i) lanes |= uint32_t(int(buckets[i]) <= bucket) << i;
  return lanes;
#endif
}

// Bit i is set where keys[i] >= threshold, 16 of them.
QUORUM_ALWAYS_INLINE uint32_t lanes_at_least(const float* keys, float threshold) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(keys), _mm512_set1_ps(threshold), _CMP_GE_OQ);
#else
  uint32_t lanes = 0;
  for (int i = 0; i < 16; ++i) lanes |= uint32_t(keys[i] >= threshold) << i;
  return lanes;
#endif
}

// Writes first + i for every bit i of `lanes`, ascending, and returns their number. Memory: out may be written up to 16 entries far.
QUORUM_ALWAYS_INLINE int list_lanes(uint32_t lanes, int first, int32_t* out) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(lanes), _mm512_add_epi32(index, _mm512_set1_epi32(first))));
  return std::popcount(lanes);
#else
  int count = 0;
  for (int i = 0; i < 16; ++i) {  // without a branch, which would be a coin toss
    out[count] = first + i;
    count += int(lanes >> i & 1);
  }
  return count;
#endif
}

// sums[g] += values[g][i] over the lanes i of 16 whose bit is set, for G heads; the sum of a vector's lanes is what counts.
template <int G>
QUORUM_ALWAYS_INLINE void add_lanes(const f16* values, uint32_t lanes, Vector (&sums)[G]) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  for (int g = 0; g < G; ++g) sums[g] = _mm512_mask_add_ps(sums[g], __mmask16(lanes), sums[g], load_as_float(values + g * 16));
#else
  float wanted[16];
  for (int i = 0; i < 16; ++i) wanted[i] = float(lanes >> i & 1);
  for (int lane = 0; lane < 16; lane += kVectorSize)
    for (int g = 0; g < G; ++g)
      sums[g] = sums[g] + where_positive(load(wanted + lane), load_as_float(values + g * 16 + lane), Vector(0.0f));
#endif
}

}  // namespace quorum::simd
