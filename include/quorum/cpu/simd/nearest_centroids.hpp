// The search inside k-means: int8 rows against int8 centroids, all of them or 16 candidates a row.
//
// A row x = scale * q and a centroid c = scale * (byte - 128) are nearest where x.c - |c|^2 / 2 is largest; divided by the row's scale,
// that is centroid_scale * (q.bytes - 128 sum(q)) - half_norm / row_scale.
#pragma once

#include "quorum/cpu/simd/int8_dot.hpp"

namespace quorum::simd {

// Rows that are searched together: they stay in L1 while blocks of centroids pass.
inline constexpr int kSearchRows = 64;

// Rows of one search, quantised one by one. Beyond dim, up to the stride, bytes are zero.
struct ByteRows {
  const int8_t* bytes = nullptr;  // [num_rows][stride]
  const float* scale = nullptr;   // [num_rows]
  int num_rows = 0;
  int dim = 0;
  int stride = 0;  // bytes between rows, a multiple of 64

  const int8_t* row(int i) const { return bytes + int64_t(i) * stride; }
};

// Centroids twice over: by lanes for the search of all, by rows for the search of a few.
struct ByteCentroids {
  const uint8_t* blocks = nullptr;   // [num_blocks][dim / 4][16][4]
  const uint8_t* rows = nullptr;     // [num_blocks * 16][stride]
  const float* scale = nullptr;      // [num_blocks * 16]
  const float* half_norm = nullptr;  // [num_blocks * 16], half the squared length; +inf where there is no centroid
  int num_blocks = 0;
  int dim = 0;     // a multiple of 4
  int stride = 0;  // the rows'
};

// The best centroid of each lane, over the blocks: 16 different candidates for a row.
struct alignas(64) LaneBest {
  float value[16];
  int32_t cluster[16];
};

// Index of the largest lane, the first of equals.
inline int best_lane(const float* values) {
  int best = 0;
  for (int lane = 1; lane < 16; ++lane) best = values[lane] > values[best] ? lane : best;
  return best;
}

// 128 * sum of the row's first `dims` bytes: what the centroids' zero point adds to a dot product.
inline int32_t zero_point_dot(const int8_t* row, int dims) {
  int32_t sum = 0;
  for (int c = 0; c < dims; ++c) sum += row[c];
  return 128 * sum;
}

#if defined(__AVX512VNNI__) && defined(__AVX512F__) && !defined(QUORUM_SCALAR)

// Rows * Blocks sums of 16 lanes stay in registers, so that a load of centroids serves several rows and a load of a row several blocks.
template <int Rows, int Blocks>
QUORUM_ALWAYS_INLINE void search_blocks(const ByteCentroids& centroids, int first_block, const ByteRows& rows, int first_row, int dims,
                                        const int32_t* zero_dot, LaneBest* best) {
  const uint8_t* block = centroids.blocks + int64_t(first_block) * 16 * centroids.dim;
  const int64_t block_bytes = 16 * int64_t(centroids.dim);
  const int8_t* row = rows.row(first_row);
  __m512i sums[Rows][Blocks];
  for (int r = 0; r < Rows; ++r)
    for (int b = 0; b < Blocks; ++b) sums[r][b] = _mm512_set1_epi32(-zero_dot[r]);
  for (int c = 0; c < dims; c += 4) {
    __m512i bytes[Blocks];
    for (int b = 0; b < Blocks; ++b) bytes[b] = _mm512_loadu_si512(block + b * block_bytes + int64_t(c) * 16);
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      std::memcpy(&four, row + int64_t(r) * rows.stride + c, 4);
      const __m512i query = _mm512_set1_epi32(four);
      for (int b = 0; b < Blocks; ++b) sums[r][b] = _mm512_dpbusd_epi32(sums[r][b], bytes[b], query);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    const __m512 inverse_scale = _mm512_set1_ps(1.0f / rows.scale[first_row + r]);
    __m512 value = _mm512_load_ps(best[r].value);
    __m512i cluster = _mm512_load_si512(best[r].cluster);
    for (int b = 0; b < Blocks; ++b) {
      const int id = (first_block + b) * 16;
      const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][b]), _mm512_loadu_ps(centroids.scale + id));
      const __m512 candidate = _mm512_fnmadd_ps(_mm512_loadu_ps(centroids.half_norm + id), inverse_scale, scaled);
      const __mmask16 better = _mm512_cmp_ps_mask(candidate, value, _CMP_GT_OQ);
      value = _mm512_mask_mov_ps(value, better, candidate);
      cluster = _mm512_mask_mov_epi32(cluster, better, _mm512_set1_epi32(id));
    }
    _mm512_store_ps(best[r].value, value);
    _mm512_store_si512(best[r].cluster, cluster);
  }
}

#else

template <int Rows, int Blocks>
QUORUM_ALWAYS_INLINE void search_blocks(const ByteCentroids& centroids, int first_block, const ByteRows& rows, int first_row, int dims,
                                        const int32_t* zero_dot, LaneBest* best) {
  for (int b = first_block; b < first_block + Blocks; ++b) {
    int32_t dots[Rows * 16];
    int8_dot_block<Rows>(centroids.blocks + int64_t(b) * 16 * centroids.dim, rows.row(first_row), rows.stride, dims, dots);
    for (int r = 0; r < Rows; ++r) {
      const float inverse_scale = 1.0f / rows.scale[first_row + r];
      for (int lane = 0; lane < 16; ++lane) {
        const int id = b * 16 + lane;
        const float candidate = float(dots[r * 16 + lane] - zero_dot[r]) * centroids.scale[id] - centroids.half_norm[id] * inverse_scale;
        const bool better = candidate > best[r].value[lane];
        best[r].value[lane] = better ? candidate : best[r].value[lane];
        best[r].cluster[lane] = better ? b * 16 : best[r].cluster[lane];
      }
    }
  }
}

#endif

// The best centroid of each lane for rows [first_row, first_row + num_rows), num_rows <= kSearchRows, by the first `dims` coordinates.
//
// Post: best[r].cluster[lane] is a cluster id with id % 16 == lane; where all centroids of a lane are missing, `lane` itself with value
// -inf. Cost: num_rows * num_blocks * 16 * dims multiply-adds of bytes.
inline void search_all(const ByteCentroids& centroids, const ByteRows& rows, int first_row, int num_rows, int dims, LaneBest* best) {
  int32_t zero_dot[kSearchRows];
  for (int r = 0; r < num_rows; ++r) {
    zero_dot[r] = zero_point_dot(rows.row(first_row + r), dims);
    for (int lane = 0; lane < 16; ++lane) {
      best[r].value[lane] = -kInfinity;
      best[r].cluster[lane] = 0;
    }
  }
  const auto pass = [&](int block, auto blocks) {
    int r = 0;
    for (; r + 4 <= num_rows; r += 4) search_blocks<4, blocks()>(centroids, block, rows, first_row + r, dims, zero_dot + r, best + r);
    for (; r < num_rows; ++r) search_blocks<1, blocks()>(centroids, block, rows, first_row + r, dims, zero_dot + r, best + r);
  };
  int block = 0;
  for (; block + 4 <= centroids.num_blocks; block += 4) pass(block, std::integral_constant<int, 4>{});
  for (; block < centroids.num_blocks; ++block) pass(block, std::integral_constant<int, 1>{});
  for (int r = 0; r < num_rows; ++r)
    for (int lane = 0; lane < 16; ++lane) best[r].cluster[lane] += lane;
}

// Dot products of a row with 16 rows of centroids, zero point included. Cost: reads 17 rows.
inline void candidate_dots(const ByteCentroids& centroids, const int32_t* candidates, const int8_t* row, int32_t* dots) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  __m512i sums[16];
  for (int i = 0; i < 16; ++i) {
    const uint8_t* bytes = centroids.rows + int64_t(candidates[i]) * centroids.stride;
    sums[i] = _mm512_setzero_si512();
    for (int c = 0; c < centroids.stride; c += 64)
      sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(bytes + c), _mm512_loadu_si512(row + c));
  }
  // The transposing tree of reduce_accumulators(), in integers.
  __m512i pairs[8], quads[4];
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2 * i], sums[2 * i + 1]), _mm512_unpackhi_epi32(sums[2 * i], sums[2 * i + 1]));
  for (int i = 0; i < 4; ++i)
    quads[i] =
        _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]), _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  const __m512i low = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[0], quads[1], 0x88), _mm512_shuffle_i32x4(quads[0], quads[1], 0xdd));
  const __m512i high = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[2], quads[3], 0x88), _mm512_shuffle_i32x4(quads[2], quads[3], 0xdd));
  _mm512_storeu_si512(dots, _mm512_add_epi32(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xdd)));
#else
  for (int i = 0; i < 16; ++i) {
    const uint8_t* bytes = centroids.rows + int64_t(candidates[i]) * centroids.stride;
    int32_t sum = 0;
    for (int c = 0; c < centroids.dim; ++c) sum += int32_t(bytes[c]) * int32_t(row[c]);
    dots[i] = sum;
  }
#endif
}

// The best of 16 candidates for one row, in all coordinates; the first of equals.
inline int32_t search_candidates(const ByteCentroids& centroids, const int32_t* candidates, const ByteRows& rows, int i) {
  alignas(64) int32_t dots[16];
  float values[16];
  candidate_dots(centroids, candidates, rows.row(i), dots);
  const int32_t zero_dot = zero_point_dot(rows.row(i), rows.dim);
  const float inverse_scale = 1.0f / rows.scale[i];
  for (int lane = 0; lane < 16; ++lane) {
    const int32_t id = candidates[lane];
    values[lane] = float(dots[lane] - zero_dot) * centroids.scale[id] - centroids.half_norm[id] * inverse_scale;
  }
  return candidates[best_lane(values)];
}

}  // namespace quorum::simd
