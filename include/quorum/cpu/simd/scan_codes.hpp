// Dot products of queries with the signs of residual codes, by look-ups in tables of sums of four. All paths give the same integers.
#pragma once

#include <type_traits>
#include <utility>

#include "quorum/core/residual_code.hpp"
#include "quorum/cpu/simd/transform.hpp"

namespace quorum::simd {

// Fills the tables of one head from q' [head_dim] and returns their step. tables: [code_table_bytes(head_dim)].
//
// An entry is off by half a step at most, so a token's sum by head_dim / 8 steps; a step is 1/127 of the largest sum of magnitudes of four
// coordinates (docs/numerics.md).
inline float fill_code_tables(const float* query, int head_dim, uint8_t* tables) {
  float largest = 1e-20f;
  for (int c = 0; c < head_dim; c += 4) {
    const float sum = std::fabs(query[c]) + std::fabs(query[c + 1]) + std::fabs(query[c + 2]) + std::fabs(query[c + 3]);
    largest = sum > largest ? sum : largest;
  }
  const float step = largest / 127.0f;
  for (int line = 0; line < code_lines(head_dim); ++line) {
    float sums[kCodeLineDim / 4][kCodeTableEntries];
    for (int part = 0; part < kCodeLineDim / 4; ++part) {
      const int c = line * kCodeLineDim + part * 4;
      const float none[4] = {}, *q = c < head_dim ? query + c : none;
      const float low[4] = {-q[0] - q[1], q[0] - q[1], q[1] - q[0], q[0] + q[1]},
                  high[4] = {-q[2] - q[3], q[2] - q[3], q[3] - q[2], q[2] + q[3]};
      for (int pattern = 0; pattern < kCodeTableEntries; ++pattern) sums[part][pattern] = low[pattern % 4] + high[pattern / 4];
    }
    uint8_t* bytes = tables + line * int(sizeof(sums) / sizeof(float));
    quantise(&sums[0][0], step, int(sizeof(sums) / sizeof(float)), reinterpret_cast<int8_t*>(bytes));
    for (size_t i = 0; i < sizeof(sums) / sizeof(float); ++i) bytes[i] ^= uint8_t(kCodeTableZero);
  }
  return step;
}

#if defined(__AVX2__) && !defined(QUORUM_SCALAR)
// Four bytes of each of 16 tokens become two registers of 16 tokens a half: bytes 0 and 2, bytes 1 and 3.
QUORUM_ALWAYS_INLINE void gather_code_bytes(const uint8_t* line, __m256i& even, __m256i& odd) {
  const __m256i by_byte =
      _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m256i pair_up = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const auto arrange = [&](const uint8_t* p) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(bytes, by_byte), pair_up);
  };
  const __m256i first = arrange(line), second = arrange(line + 32);  // eight tokens each: bytes 0, 1 | 2, 3
  even = _mm256_unpacklo_epi64(first, second);
  odd = _mm256_unpackhi_epi64(first, second);
}

// Tables of two bytes' half in the halves of a register.
QUORUM_ALWAYS_INLINE __m256i two_tables(const uint8_t* tables, int first, int second) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tables) + first);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128(reinterpret_cast<const __m128i*>(tables) + second), 1);
}
#endif

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && !defined(QUORUM_SCALAR)
// One line of codes for all heads. vpermb looks 64 bytes up in a table of 64: the byte's place in its four chooses one of four tables.
// vpdpbusd with ones adds the four.
template <int G>
QUORUM_ALWAYS_INLINE void scan_code_line(const uint8_t* codes, int line, const uint8_t* tables, int table_stride, __m512i (&low_sums)[G],
                                         __m512i (&high_sums)[G]) {
  const __m512i half = _mm512_set1_epi8(0x0f), table = _mm512_set1_epi32(0x30201000), ones = _mm512_set1_epi8(1);
  const __m512i bytes = _mm512_loadu_si512(codes + line * kCodeLineBytes);
  const __m512i low = _mm512_ternarylogic_epi32(bytes, half, table, 0xea);  // (bytes & half) | table
  const __m512i high = _mm512_ternarylogic_epi32(_mm512_srli_epi32(bytes, 4), half, table, 0xea);
  for (int g = 0; g < G; ++g) {
    const uint8_t* own = tables + int64_t(g) * table_stride + line * 128;
    low_sums[g] = _mm512_dpbusd_epi32(low_sums[g], _mm512_permutexvar_epi8(low, _mm512_loadu_si512(own)), ones);
    high_sums[g] = _mm512_dpbusd_epi32(high_sums[g], _mm512_permutexvar_epi8(high, _mm512_loadu_si512(own + 64)), ones);
  }
}
#endif

// Calls f(std::integral_constant<int, lines>) where the number of lines is a usual one, else f with 0: known to the compiler, a block's
// loop over them vanishes, which halves its time.
template <class F>
QUORUM_ALWAYS_INLINE void for_code_lines(int lines, F&& f) {
  switch (lines) {
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 8:
      return f(std::integral_constant<int, 8>{});
    default:
      return f(std::integral_constant<int, 0>{});
  }
}

// sums[g * 16 + lane] = sum over all half bytes of the token's code of the table's entry, exact in int32, for G query heads.
//
// Shapes: codes [lines][16][4] bytes; tables [G][table_stride], see code_table_bytes(); kLines: `lines` if it is known, else 0. Cost: codes
// read once for all heads; a block that is needed later is asked for line by line.
template <int G, int kLines = 0>
QUORUM_ALWAYS_INLINE void scan_code_block(const uint8_t* codes, int lines, const uint8_t* tables, int table_stride, int32_t* sums,
                                          const uint8_t* later) {
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && !defined(QUORUM_SCALAR)
  __m512i low_sums[G], high_sums[G];
  for (int g = 0; g < G; ++g) low_sums[g] = high_sums[g] = _mm512_setzero_si512();
  const auto scan_line = [&](int line) {
    prefetch(later + line * kCodeLineBytes);
    scan_code_line<G>(codes, line, tables, table_stride, low_sums, high_sums);
  };
  if constexpr (kLines > 0) [&]<int... kLine>(std::integer_sequence<int, kLine...>) {
      (scan_line(kLine), ...);
    }
  (std::make_integer_sequence<int, kLines>{});
  else for (int line = 0; line < lines; ++line) scan_line(line);
  for (int g = 0; g < G; ++g) _mm512_storeu_si512(sums + g * 16, _mm512_add_epi32(low_sums[g], high_sums[g]));
#elif defined(__AVX2__) && !defined(QUORUM_SCALAR)
  // vpshufb looks 16 bytes up in a table of 16. Bytes are added as 16-bit words: `all` has 256 times the odd tokens' sums too many, which
  // `odd` takes away again at the end; 128 look-ups of at most 255 fit.
  __m256i all[G], odd[G];
  for (int g = 0; g < G; ++g) all[g] = odd[g] = _mm256_setzero_si256();
  const __m256i half = _mm256_set1_epi8(0x0f);
  for (int line = 0; line < lines; ++line) {
    prefetch(later + line * kCodeLineBytes);
    __m256i bytes[2];
    gather_code_bytes(codes + line * kCodeLineBytes, bytes[0], bytes[1]);
    for (int i = 0; i < 2; ++i) {
      const __m256i low = _mm256_and_si256(bytes[i], half), high = _mm256_and_si256(_mm256_srli_epi16(bytes[i], 4), half);
      for (int g = 0; g < G; ++g) {
        const uint8_t* own = tables + int64_t(g) * table_stride + line * 128;
        const __m256i a = _mm256_shuffle_epi8(two_tables(own, i, i + 2), low), b = _mm256_shuffle_epi8(two_tables(own, i + 4, i + 6), high);
        all[g] = _mm256_add_epi16(all[g], _mm256_add_epi16(a, b));
        odd[g] = _mm256_add_epi16(odd[g], _mm256_add_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)));
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    const __m256i even = _mm256_sub_epi16(all[g], _mm256_slli_epi16(odd[g], 8));
    const __m128i even_sums = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    const __m128i odd_sums = _mm_add_epi16(_mm256_castsi256_si128(odd[g]), _mm256_extracti128_si256(odd[g], 1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + g * 16), _mm256_cvtepu16_epi32(_mm_unpacklo_epi16(even_sums, odd_sums)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + g * 16 + 8), _mm256_cvtepu16_epi32(_mm_unpackhi_epi16(even_sums, odd_sums)));
  }
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  // tbl looks 16 bytes up in a table of 64, four tokens at a time.
  const uint8x16_t half = vdupq_n_u8(0x0f), table = vreinterpretq_u8_u32(vdupq_n_u32(0x30201000u));
  uint32x4_t totals[G][4];
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < 4; ++i) totals[g][i] = vdupq_n_u32(0);
  for (int line = 0; line < lines; ++line) {
    prefetch(later + line * kCodeLineBytes);
    for (int g = 0; g < G; ++g) {
      const uint8_t* own = tables + int64_t(g) * table_stride + line * 128;
      const uint8x16x4_t low_table = vld1q_u8_x4(own), high_table = vld1q_u8_x4(own + 64);
      for (int i = 0; i < 4; ++i) {
        const uint8x16_t bytes = vld1q_u8(codes + line * kCodeLineBytes + 16 * i);
        const uint8x16_t low = vqtbl4q_u8(low_table, vorrq_u8(vandq_u8(bytes, half), table));
        const uint8x16_t high = vqtbl4q_u8(high_table, vorrq_u8(vshrq_n_u8(bytes, 4), table));
        totals[g][i] = vpadalq_u16(totals[g][i], vpadalq_u8(vpaddlq_u8(low), high));
      }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < 4; ++i) vst1q_s32(sums + g * 16 + 4 * i, vreinterpretq_s32_u32(totals[g][i]));
#else
  for (int line = 0; line < lines; ++line) prefetch(later + line * kCodeLineBytes);
  for (int g = 0; g < G; ++g)
    for (int lane = 0; lane < kCodeBlock; ++lane) {
      int32_t sum = 0;
      for (int line = 0; line < lines; ++line)
        for (int i = 0; i < 4; ++i) {
          const uint8_t* own = tables + int64_t(g) * table_stride + line * 128 + i * kCodeTableEntries;
          const uint8_t byte = codes[line * kCodeLineBytes + lane * 4 + i];
          sum += own[byte & 15] + own[64 + (byte >> 4)];
        }
      sums[g * 16 + lane] = sum;
    }
#endif
}

}  // namespace quorum::simd
