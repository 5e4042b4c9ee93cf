// Dot products of int8 queries with a block of 16 unsigned byte centroids. All paths give the same integers.
#pragma once

#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

#if defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
// Armv8.6 multiplies unsigned by signed bytes, Armv8.2 signed ones by fours, Armv8.0 in pairs of 16 bits. Where bytes must be signed, 128
// is subtracted from each (its highest bit turned) and 128 times the sum of the query added to each dot product.
#if !defined(__ARM_FEATURE_MATMUL_INT8)
inline int32_t sum_of_query(const int8_t* query, int count) {
  int32x4_t sums = vdupq_n_s32(0);
  int c = 0;
  for (; c + 16 <= count; c += 16) sums = vpadalq_s16(sums, vpaddlq_s8(vld1q_s8(query + c)));
  int32_t sum = vaddvq_s32(sums);
  for (; c < count; ++c) sum += query[c];
  return sum;
}
#endif

template <int G>
void neon_dot_block(const uint8_t* block, const int8_t* queries, int query_stride, int head_dim, int32_t* dots) {
#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
  int32x4_t sums[G][4];
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < 4; ++i) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
      sums[g][i] = vdupq_n_s32(0);
#else
      sums[g][i] = i > 0 ? sums[g][0] : vdupq_n_s32(128 * sum_of_query(queries + int64_t(g) * query_stride, head_dim));
#endif
    }
  for (int c = 0; c < head_dim; c += 4) {
    uint8x16_t bytes[4];
    for (int i = 0; i < 4; ++i) bytes[i] = vld1q_u8(block + int64_t(c) * 16 + 16 * i);
    for (int g = 0; g < G; ++g) {
      int32_t four;
      std::memcpy(&four, queries + int64_t(g) * query_stride + c, 4);
      const int8x16_t query = vreinterpretq_s8_s32(vdupq_n_s32(four));
      for (int i = 0; i < 4; ++i) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
        sums[g][i] = vusdotq_s32(sums[g][i], bytes[i], query);
#else
        sums[g][i] = vdotq_s32(sums[g][i], vreinterpretq_s8_u8(veorq_u8(bytes[i], vdupq_n_u8(0x80))), query);
#endif
      }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < 4; ++i) vst1q_s32(dots + g * 16 + 4 * i, sums[g][i]);
#else
  // Products of bytes in 16 bits, added by twos into 32: two sums for a lane. Eight lanes a pass, so that the sums fit the registers.
  for (int half = 0; half < 2; ++half) {
    int32x4_t sums[G][4];
    for (int g = 0; g < G; ++g)
      for (int i = 0; i < 4; ++i) sums[g][i] = vdupq_n_s32(0);
    for (int c = 0; c < head_dim; c += 4) {
      int8x8_t bytes[4];
      for (int i = 0; i < 4; ++i)
        bytes[i] = vreinterpret_s8_u8(veor_u8(vld1_u8(block + int64_t(c) * 16 + 32 * half + 8 * i), vdup_n_u8(0x80)));
      for (int g = 0; g < G; ++g) {
        int32_t four;
        std::memcpy(&four, queries + int64_t(g) * query_stride + c, 4);
        const int8x8_t query = vreinterpret_s8_s32(vdup_n_s32(four));
        for (int i = 0; i < 4; ++i) sums[g][i] = vpadalq_s16(sums[g][i], vmull_s8(bytes[i], query));
      }
    }
    for (int g = 0; g < G; ++g) {
      const int32x4_t rest = vdupq_n_s32(128 * sum_of_query(queries + int64_t(g) * query_stride, head_dim));
      for (int i = 0; i < 2; ++i)
        vst1q_s32(dots + g * 16 + 8 * half + 4 * i, vaddq_s32(rest, vpaddq_s32(sums[g][2 * i], sums[g][2 * i + 1])));
    }
  }
#endif
}
#endif

// dots[g * 16 + lane] = sum over c of block[c / 4][lane][c % 4] * queries[g][c], exact in int32, for G query heads.
//
// Shapes: block [head_dim / 4][16][4] bytes; queries [G][query_stride], head_dim a multiple of 4. Cost: block read once.
template <int G>
void int8_dot_block(const uint8_t* block, const int8_t* queries, int query_stride, int head_dim, int32_t* dots) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  // vpdpbusd: 64 unsigned times signed products summed by fours into int32, no intermediate saturation.
  __m512i sums[G], odd_sums[G];  // two chains a head: one would wait for itself
  for (int g = 0; g < G; ++g) sums[g] = odd_sums[g] = _mm512_setzero_si512();
  const auto add = [&](int c, __m512i(&to)[G]) {
    const __m512i bytes = _mm512_loadu_si512(block + int64_t(c) * 16);
    for (int g = 0; g < G; ++g) {
      int32_t four;
      std::memcpy(&four, queries + int64_t(g) * query_stride + c, 4);
      to[g] = _mm512_dpbusd_epi32(to[g], bytes, _mm512_set1_epi32(four));
    }
  };
  int c = 0;
  for (; c + 16 <= head_dim; c += 16) {
    add(c, sums);
    add(c + 4, odd_sums);
    add(c + 8, sums);
    add(c + 12, odd_sums);
  }
  for (; c < head_dim; c += 4) add(c, sums);
  for (int g = 0; g < G; ++g) _mm512_storeu_si512(dots + g * 16, _mm512_add_epi32(sums[g], odd_sums[g]));
#elif defined(__AVX2__) && !defined(QUORUM_SCALAR)
  // vpmaddubsw would saturate (2 * 255 * 127 > 2^15), so bytes are widened to 16 bits first: exact, half the rate. Eight lanes a pass:
  // the sums of four heads for all sixteen would not fit the registers.
  for (int half = 0; half < 2; ++half) {
    __m256i sums[G][2];
    for (int g = 0; g < G; ++g) sums[g][0] = sums[g][1] = _mm256_setzero_si256();
    for (int c = 0; c < head_dim; c += 4) {
      const __m128i* p = reinterpret_cast<const __m128i*>(block + int64_t(c) * 16) + 2 * half;
      const __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128(p)), high = _mm256_cvtepu8_epi16(_mm_loadu_si128(p + 1));
      for (int g = 0; g < G; ++g) {
        int32_t four;
        std::memcpy(&four, queries + int64_t(g) * query_stride + c, 4);
        const __m256i query = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
        sums[g][0] = _mm256_add_epi32(sums[g][0], _mm256_madd_epi16(low, query));
        sums[g][1] = _mm256_add_epi32(sums[g][1], _mm256_madd_epi16(high, query));
      }
    }
    // Neighbours are the halves of one lane; hadd works on 128 bits and leaves lanes 0 1 4 5 2 3 6 7.
    for (int g = 0; g < G; ++g) {
      const __m256i lanes = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[g][0], sums[g][1]), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dots + g * 16 + 8 * half), lanes);
    }
  }
#elif defined(__SSE2__) && !defined(QUORUM_SCALAR)
  // As above with four lanes a pass.
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m128i sums[G][2];
    for (int g = 0; g < G; ++g) sums[g][0] = sums[g][1] = _mm_setzero_si128();
    for (int c = 0; c < head_dim; c += 4) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + int64_t(c) * 16) + quarter);
      const __m128i low = _mm_unpacklo_epi8(bytes, _mm_setzero_si128()), high = _mm_unpackhi_epi8(bytes, _mm_setzero_si128());
      for (int g = 0; g < G; ++g) {
        int32_t four;
        std::memcpy(&four, queries + int64_t(g) * query_stride + c, 4);
        const __m128i twice = _mm_set1_epi32(four), query = _mm_srai_epi16(_mm_unpacklo_epi8(twice, twice), 8);
        sums[g][0] = _mm_add_epi32(sums[g][0], _mm_madd_epi16(low, query));
        sums[g][1] = _mm_add_epi32(sums[g][1], _mm_madd_epi16(high, query));
      }
    }
    for (int g = 0; g < G; ++g) {
      const __m128 a = _mm_castsi128_ps(sums[g][0]), b = _mm_castsi128_ps(sums[g][1]);
      const __m128i lanes = _mm_add_epi32(_mm_castps_si128(_mm_shuffle_ps(a, b, 0x88)), _mm_castps_si128(_mm_shuffle_ps(a, b, 0xdd)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dots + g * 16 + 4 * quarter), lanes);
    }
  }
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  neon_dot_block<G>(block, queries, query_stride, head_dim, dots);
#else
  for (int i = 0; i < 16 * G; ++i) dots[i] = 0;
  for (int c = 0; c < head_dim; c += 4)
    for (int g = 0; g < G; ++g)
      for (int lane = 0; lane < 16; ++lane) {
        int32_t sum = 0;
        for (int i = 0; i < 4; ++i)
          sum += int32_t(block[int64_t(c) * 16 + lane * 4 + i]) * int32_t(queries[int64_t(g) * query_stride + c + i]);
        dots[g * 16 + lane] += sum;
      }
#endif
}

}  // namespace quorum::simd
