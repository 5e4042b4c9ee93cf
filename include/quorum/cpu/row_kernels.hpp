// From run-time element type and group size to compiled row kernels: the one place where they are instantiated.
#pragma once

#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cpu/simd/accumulate_rows.hpp"
#include "quorum/cpu/simd/score_rows.hpp"

namespace quorum::cpu {

using simd::kTileRows;
using simd::RowTile;

// Float matrix of a group: one row per query head.
struct HeadRows {
  float* data = nullptr;
  int stride = 0;  // floats between heads

  float* row(int head) const { return data + int64_t(head) * stride; }
  HeadRows from(int head) const { return {row(head), stride}; }
};

// Kernels for `num_heads` query heads over rows of one element type.
struct RowKernels {
  using Kernel = void (*)(const RowTile& tile, HeadRows heads, HeadRows output);

  // scores.row(g)[r] = queries.row(g) . row r
  void score(const RowTile& tile, HeadRows queries, HeadRows scores) const { run(score_by_heads, tile, queries, scores); }
  // accumulators.row(g) += sum over r of weights.row(g)[r] * row r
  void accumulate(const RowTile& tile, HeadRows weights, HeadRows accumulators) const {
    run(accumulate_by_heads, tile, weights, accumulators);
  }

  Kernel score_by_heads[simd::kHeadBlock + 1] = {};  // index: number of heads handled together
  Kernel accumulate_by_heads[simd::kHeadBlock + 1] = {};
  int num_heads = 0;

 private:
  // Groups beyond kHeadBlock heads go over the tile again; its rows are in L1 by then, so only the first pass prefetches.
  void run(const Kernel* by_heads, const RowTile& tile, HeadRows input, HeadRows output) const {
    RowTile pass = tile;
    for (int g = 0; g < num_heads; g += simd::kHeadBlock) {
      const int heads = num_heads - g < simd::kHeadBlock ? num_heads - g : simd::kHeadBlock;
      by_heads[heads](pass, input.from(g), output.from(g));
      pass.num_prefetch = 0;
    }
  }
};

namespace detail {

template <class T, int G>
void score_heads(const RowTile& tile, HeadRows queries, HeadRows scores) {
  simd::score_tile<T, G>(tile, queries.data, queries.stride, scores.data, scores.stride);
}
template <class T, int G>
void accumulate_heads(const RowTile& tile, HeadRows weights, HeadRows accumulators) {
  simd::accumulate_tile<T, G>(tile, weights.data, weights.stride, accumulators.data, accumulators.stride);
}

template <class T>
RowKernels row_kernels_of(int num_heads) {
  return {{nullptr, score_heads<T, 1>, score_heads<T, 2>, score_heads<T, 3>, score_heads<T, 4>},
          {nullptr, accumulate_heads<T, 1>, accumulate_heads<T, 2>, accumulate_heads<T, 3>, accumulate_heads<T, 4>},
          num_heads};
}

}  // namespace detail

inline RowKernels row_kernels(ElementType type, int num_heads) {
  switch (type) {
    case ElementType::f32:
      return detail::row_kernels_of<float>(num_heads);
    case ElementType::f16:
      return detail::row_kernels_of<f16>(num_heads);
    case ElementType::q8_0:
      return detail::row_kernels_of<q8_0>(num_heads);
    case ElementType::fp8_e4m3:
      return detail::row_kernels_of<fp8_e4m3>(num_heads);
    case ElementType::bf16:
      break;
  }
  return detail::row_kernels_of<bf16>(num_heads);
}

namespace detail {

template <class T>
void load_row_of(const std::byte* row, int head_dim, float factor, float* out) {
  using namespace simd;
  for (int c = head_dim; c < padded_dim(head_dim); ++c) out[c] = 0.0f;
  int c = 0;
  for (; c + kVectorSize <= head_dim; c += kVectorSize) store(out + c, RowChunk<T>(row, c, 1.0f).load(0) * Vector(factor));
  if constexpr (RowChunk<T>::kAnyDim)
    if (c < head_dim) store(out + c, RowChunk<T>(row, c, 1.0f).load_first(head_dim - c) * Vector(factor));
}

}  // namespace detail

// Copies a row of any element type to floats, times `factor`; zero from head_dim to padded_dim(head_dim).
inline void load_row(const std::byte* row, ElementType type, int head_dim, float factor, float* out) {
  switch (type) {
    case ElementType::f32:
      return detail::load_row_of<float>(row, head_dim, factor, out);
    case ElementType::f16:
      return detail::load_row_of<f16>(row, head_dim, factor, out);
    case ElementType::bf16:
      return detail::load_row_of<bf16>(row, head_dim, factor, out);
    case ElementType::q8_0:
      return detail::load_row_of<q8_0>(row, head_dim, factor, out);
    case ElementType::fp8_e4m3:
      return detail::load_row_of<fp8_e4m3>(row, head_dim, factor, out);
  }
}

}  // namespace quorum::cpu
