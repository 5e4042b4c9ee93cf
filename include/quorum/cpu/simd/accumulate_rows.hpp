// Weighted sums of rows of values for all query heads of a group: each row is read once.
#pragma once

#include "quorum/cpu/simd/score_rows.hpp"

namespace quorum::simd {

// Vectors of the output that stay in registers together: kColumnBlock * heads accumulators.
inline constexpr int kColumnBlock = kVectorSize >= 16 ? 4 : 2;

// accumulators[g][c] += sum over rows of weights[g * weight_stride + r] * row r [c], columns [first, first + Columns vectors).
template <class T, int G, int Columns>
QUORUM_ALWAYS_INLINE void accumulate_columns(const RowTile& tile, int first, const float* weights, int weight_stride, float* accumulators,
                                             int accumulator_stride) {
  Vector sums[G * Columns];
  for (int g = 0; g < G; ++g)
    for (int j = 0; j < Columns; ++j)
      sums[g * Columns + j] = load(accumulators + int64_t(g) * accumulator_stride + first + j * kVectorSize);
  for (int r = 0; r < tile.num_rows; ++r) {
    if (r < tile.num_prefetch) {
      const std::byte* next[1] = {tile.prefetch[r]};
      prefetch_elements<T, Columns * kVectorSize>(next, first);
    }
    Vector values[Columns];
    load_vectors<T>(tile.rows[r], first, tile.scale, values);
    const float* row_weights = weights + r;
    keep_in_register(row_weights);
    for (int g = 0; g < G; ++g) {
      const Vector weight(row_weights[int64_t(g) * weight_stride]);
      for (int j = 0; j < Columns; ++j) sums[g * Columns + j] = multiply_add(weight, values[j], sums[g * Columns + j]);
    }
  }
  for (int g = 0; g < G; ++g)
    for (int j = 0; j < Columns; ++j)
      store(accumulators + int64_t(g) * accumulator_stride + first + j * kVectorSize, sums[g * Columns + j]);
}

// The last head_dim % kVectorSize columns.
template <class T, int G>
void accumulate_last_columns(const RowTile& tile, int first, const float* weights, int weight_stride, float* accumulators,
                             int accumulator_stride) {
  const int left = tile.head_dim - first;
  for (int r = 0; r < tile.num_rows; ++r) {
    const Vector values = RowChunk<T>(tile.rows[r], first, tile.scale).load_first(left);
    for (int g = 0; g < G; ++g) {
      float* out = accumulators + int64_t(g) * accumulator_stride + first;
      store(out, multiply_add(Vector(weights[int64_t(g) * weight_stride + r]), values, load(out)));
    }
  }
}

// accumulators[g] += sum over rows of weights[g * weight_stride + r] * row r, for G heads and all rows of the tile.
//
// Shapes: accumulators [G][accumulator_stride] floats, padded to whole cache lines. Cost: num_rows * G * head_dim multiplications.
template <class T, int G>
void accumulate_tile(const RowTile& tile, const float* weights, int weight_stride, float* accumulators, int accumulator_stride) {
  constexpr int kBlock = kColumnBlock * kVectorSize;
  int c = 0;
  for (; c + kBlock <= tile.head_dim; c += kBlock)
    accumulate_columns<T, G, kColumnBlock>(tile, c, weights, weight_stride, accumulators, accumulator_stride);
  for (; c + kVectorSize <= tile.head_dim; c += kVectorSize)
    accumulate_columns<T, G, 1>(tile, c, weights, weight_stride, accumulators, accumulator_stride);
  if constexpr (RowChunk<T>::kAnyDim)
    if (c < tile.head_dim) accumulate_last_columns<T, G>(tile, c, weights, weight_stride, accumulators, accumulator_stride);
}

}  // namespace quorum::simd
