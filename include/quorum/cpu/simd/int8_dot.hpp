// Dot products of int8 queries with a block of 16 unsigned byte centroids. All paths give the same integers.
#pragma once

#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// dots[g * 16 + lane] = sum over c of block[c / 4][lane][c % 4] * queries[g][c], exact in int32, for G query heads.
//
// Shapes: block [head_dim / 4][16][4] bytes; queries [G][query_stride], head_dim a multiple of 4. Cost: block read once.
template <int G>
void int8_dot_block(const uint8_t* block, const int8_t* queries, int query_stride, int head_dim, int32_t* dots) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  // vpdpbusd: 64 unsigned times signed products summed by fours into int32, no intermediate saturation.
  __m512i sums[G];
  for (int g = 0; g < G; ++g) sums[g] = _mm512_setzero_si512();
  for (int c = 0; c < head_dim; c += 4) {
    const __m512i bytes = _mm512_loadu_si512(block + int64_t(c) * 16);
    for (int g = 0; g < G; ++g) {
      int32_t four;
      std::memcpy(&four, queries + int64_t(g) * query_stride + c, 4);
      sums[g] = _mm512_dpbusd_epi32(sums[g], bytes, _mm512_set1_epi32(four));
    }
  }
  for (int g = 0; g < G; ++g) _mm512_storeu_si512(dots + g * 16, sums[g]);
#elif defined(__AVX2__) && !defined(QUORUM_SCALAR)
  // vpmaddubsw would saturate (2 * 255 * 127 > 2^15), so bytes are widened to 16 bits first: exact, half the rate.
  __m256i sums[G][4];
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < 4; ++i) sums[g][i] = _mm256_setzero_si256();
  for (int c = 0; c < head_dim; c += 4) {
    const uint8_t* p = block + int64_t(c) * 16;
    __m256i wide[4];
    for (int i = 0; i < 4; ++i) wide[i] = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i)));
    for (int g = 0; g < G; ++g) {
      int32_t four;
      std::memcpy(&four, queries + int64_t(g) * query_stride + c, 4);
      const __m256i query = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
      for (int i = 0; i < 4; ++i) sums[g][i] = _mm256_add_epi32(sums[g][i], _mm256_madd_epi16(wide[i], query));
    }
  }
  for (int g = 0; g < G; ++g) {
    alignas(32) int32_t halves[32];
    for (int i = 0; i < 4; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(halves + 8 * i), sums[g][i]);
    for (int lane = 0; lane < 16; ++lane) dots[g * 16 + lane] = halves[2 * lane] + halves[2 * lane + 1];
  }
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
