// Scores of rows of keys against all query heads of a group: each row is read once.
#pragma once

#include <type_traits>

#include "quorum/cpu/simd/load_rows.hpp"

namespace quorum::simd {

// Query heads whose sums stay in registers together; larger groups go through the rows (then in L1) again.
inline constexpr int kHeadBlock = 4;
// Rows whose sums stay in registers together: rows * heads accumulators, plus one vector of each row, must fit the register file.
inline constexpr int kRowBlock = kVectorSize >= 16 ? 4 : 2;
// Rows handed to a row kernel at most: a tile of keys or values stays in L1 between its passes.
inline constexpr int kTileRows = 32;

// Calls f(std::integral_constant<int, G>, first_head) for blocks of G <= kHeadBlock heads: the way from a group size to compiled loops.
template <class F>
QUORUM_ALWAYS_INLINE void for_head_blocks(int num_heads, F&& f) {
  for (int first = 0; first < num_heads; first += kHeadBlock) {
    switch (num_heads - first < kHeadBlock ? num_heads - first : kHeadBlock) {
      case 1:
        f(std::integral_constant<int, 1>{}, first);
        break;
      case 2:
        f(std::integral_constant<int, 2>{}, first);
        break;
      case 3:
        f(std::integral_constant<int, 3>{}, first);
        break;
      default:
        f(std::integral_constant<int, 4>{}, first);
        break;
    }
  }
}

// What a row kernel works on. Rows may lie anywhere.
struct RowTile {
  const std::byte* const* rows = nullptr;      // [num_rows]
  const std::byte* const* prefetch = nullptr;  // [num_prefetch] rows that are needed next, or null
  int num_rows = 0;
  int num_prefetch = 0;
  int head_dim = 0;
  float scale = 1.0f;  // in fp8_e4m3 elements are multiplied by it
};

// Horizontal sums of kRowBlock * G accumulators, written to sums[].
template <int N>
QUORUM_ALWAYS_INLINE void reduce_accumulators(const Vector* accumulators, float* sums) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  if constexpr (N == 16) {
    // A transposing tree: 16 sums in 15 additions and 30 shuffles instead of 16 reductions of 4 steps each.
    __m512 pairs[8], quads[4];
    for (int i = 0; i < 8; ++i) {
      const __m512 a = accumulators[2 * i], b = accumulators[2 * i + 1];
      pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
      quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
    const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd)));
    return;
  }
#endif
  for (int i = 0; i < N; ++i) sums[i] = reduce_add(accumulators[i]);
}

// sums[i] = sum of the kVectorSize floats of row i, N rows one after the other.
template <int N>
QUORUM_ALWAYS_INLINE void reduce_rows(const float* rows, float* sums) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  if constexpr (N == 4) {
    const auto fold = [](__m512 v) {
      return _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
    };
    const __m256 a = fold(_mm512_loadu_ps(rows)), b = fold(_mm512_loadu_ps(rows + 16)), c = fold(_mm512_loadu_ps(rows + 32)),
                 d = fold(_mm512_loadu_ps(rows + 48));
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
    return;
  }
#endif
  for (int i = 0; i < N; ++i) sums[i] = reduce_add(load(rows + i * kVectorSize));
}

// scores[g * score_stride + r] = queries[g] . row r, for G heads and all rows of the tile.
//
// Shapes: queries [G][query_stride] floats, scaled, zero beyond head_dim. Cost: num_rows * G * head_dim multiplications, rows read once.
template <class T, int G>
void score_tile(const RowTile& tile, const float* queries, int query_stride, float* scores, int score_stride) {
  constexpr int kStep = RowChunk<T>::kVectors * kVectorSize;
  const int whole = tile.head_dim / kStep * kStep;
  const int left = tile.head_dim - whole;
  for (int r0 = 0; r0 < tile.num_rows; r0 += kRowBlock) {
    const std::byte* rows[kRowBlock];
    const std::byte* next[kRowBlock];
    for (int r = 0; r < kRowBlock; ++r) {
      rows[r] = tile.rows[r0 + r < tile.num_rows ? r0 + r : tile.num_rows - 1];
      next[r] = r0 + r < tile.num_prefetch ? tile.prefetch[r0 + r] : rows[r];
    }
    Vector sums[kRowBlock * G];
    for (auto& sum : sums) sum = Vector(0.0f);
    const auto step = [&](int c, auto load_key) {
      Vector keys[kRowBlock];
      for (int r = 0; r < kRowBlock; ++r) keys[r] = load_key(r);
      for (int g = 0; g < G; ++g) {
        Vector query = load(queries + int64_t(g) * query_stride + c);
        keep_in_register(query);
        for (int r = 0; r < kRowBlock; ++r) sums[r * G + g] = multiply_add(keys[r], query, sums[r * G + g]);
      }
    };
    for (int c = 0; c < whole; c += kStep) {
      prefetch_elements<T, kStep>(next, c);
      if constexpr (RowChunk<T>::kVectors == 1) {
        step(c, [&](int r) { return RowChunk<T>(rows[r], c, tile.scale).load(0); });
      } else {
        RowChunk<T> chunks[kRowBlock];
        for (int r = 0; r < kRowBlock; ++r) chunks[r] = RowChunk<T>(rows[r], c, tile.scale);
        for (int v = 0; v < RowChunk<T>::kVectors; ++v) step(c + v * kVectorSize, [&](int r) { return chunks[r].load(v); });
      }
    }
    if constexpr (RowChunk<T>::kAnyDim)
      if (left > 0) step(whole, [&](int r) { return RowChunk<T>(rows[r], whole, tile.scale).load_first(left); });
    float flat[kRowBlock * G];
    reduce_accumulators<kRowBlock * G>(sums, flat);
    for (int r = 0; r < kRowBlock && r0 + r < tile.num_rows; ++r)
      for (int g = 0; g < G; ++g) scores[int64_t(g) * score_stride + r0 + r] = flat[r * G + g];
  }
}

}  // namespace quorum::simd
