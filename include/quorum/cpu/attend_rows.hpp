// Online softmax attention over rows that lie anywhere: the inner loop of dense and of selected attention.
#pragma once

#include <algorithm>

#include "quorum/cpu/executor.hpp"
#include "quorum/cpu/workspace.hpp"

namespace quorum::cpu {

// Turns one head's scores of a tile into weights and folds them into its state (algorithm.md eq. 2); rescales what was accumulated.
//
// Shapes: scores [kTileRows], -inf beyond the tile's rows. Post: scores hold exp(score - state.max); all -inf gives weights 0, NaN stays
// NaN.
inline void fold_tile(float* scores, AttentionState& state, float* accumulated, int dim) {
  using namespace simd;
  Vector largest(-kInfinity);
  for (int i = 0; i < kTileRows; i += kVectorSize) largest = maximum(load(scores + i), largest);
  const float max = std::max(state.max, reduce_max(largest));
  if (max > state.max) {
    const float factor = rescale_factor(state.max, max);
    for (int c = 0; c < dim; c += kVectorSize) store(accumulated + c, load(accumulated + c) * Vector(factor));
    state.sum *= factor;
    state.max = max;
  }
  const Vector reference(max == -kInfinity ? 0.0f : max);
  Vector sum(0.0f);
  for (int i = 0; i < kTileRows; i += kVectorSize) {
    const Vector weight = exponential(load(scores + i) - reference);
    store(scores + i, weight);
    sum = sum + weight;
  }
  state.sum += reduce_add(sum);
}

// Pointers to a tile of rows, ready for a row kernel.
struct RowPointers {
  const std::byte* rows[kTileRows];
  int count = 0;
};

// Asks for the whole of a row.
QUORUM_ALWAYS_INLINE void prefetch_row(const std::byte* row, int row_bytes) {
  for (int byte = 0; byte < row_bytes; byte += 64) simd::prefetch(row + byte);
  if (row_bytes % 64 != 0) simd::prefetch(row + row_bytes - 1);  // such rows begin anywhere in a line
}

// Calls work(begin, tile, next) for tiles of at most `rows` of the rows row_at(i), i in [first, last); `next` is what the work should ask
// for meanwhile. The first tile is asked for here.
template <class RowAt, class Work>
QUORUM_ALWAYS_INLINE void for_each_tile(int first, int last, int rows, int row_bytes, RowAt&& row_at, Work&& work) {
  RowPointers tiles[2];
  const auto point = [&](RowPointers& tile, int begin) {
    tile.count = std::clamp(last - begin, 0, rows);
    for (int i = 0; i < tile.count; ++i) tile.rows[i] = row_at(begin + i);
  };
  point(tiles[0], first);
  for (int i = 0; i < tiles[0].count; ++i) prefetch_row(tiles[0].rows[i], row_bytes);
  for (int begin = first, current = 0; begin < last; begin += rows, current ^= 1) {
    point(tiles[current ^ 1], begin + rows);
    work(begin, tiles[current], tiles[current ^ 1]);
  }
}

// Copies a row in vectors, which a copy of a size known only at run time would do in a call.
QUORUM_ALWAYS_INLINE void copy_row(const std::byte* row, int row_bytes, std::byte* to) {
  const auto copy_line = [&](int at) {
    for (int byte = at; byte < at + 64; byte += 4 * simd::kVectorSize)
      simd::store(reinterpret_cast<float*>(to + byte), simd::load(reinterpret_cast<const float*>(row + byte)));
  };
  int byte = 0;
  for (; byte + 64 <= row_bytes; byte += 64) copy_line(byte);
  if (byte == row_bytes) return;
  if (byte > 0)
    copy_line(row_bytes - 64);  // some of it twice
  else
    std::memcpy(to, row, size_t(row_bytes));
}

// Copies rows to `buffer`, one after the other; the pointers then name the copies.
//
// A kernel that meets scattered rows themselves waits for memory and computes by turns, because the arithmetic of a few rows fills the
// window in which a core finds its next loads; copying, it finds nothing but loads. The next tile is left for the kernel to ask for, so
// that memory is not idle meanwhile. Rows beyond kMaxGatheredBytes keep it busy enough, and so do values, of which one pass touches two
// lines a row.
inline void gather_rows(RowPointers& tile, int row_bytes, std::byte* buffer) {
  for (int i = 0; i < tile.count; ++i, buffer += row_bytes) {
    copy_row(tile.rows[i], row_bytes, buffer);
    tile.rows[i] = buffer;
  }
}

// Rows of a tile: keys and values of a tile and the next keys fit in L1 together (16 KiB each), and sums in registers are long enough.
constexpr int tile_rows(int row_bytes) { return std::clamp(16384 / (2 * row_bytes) / 4 * 4, 8, kTileRows); }

inline void clear_states(WorkerScratch& scratch, int num_heads, int head_dim) {
  for (int g = 0; g < num_heads; ++g) {
    scratch.states[g] = {};
    std::fill_n(scratch.accumulated.row(g), padded_dim(head_dim), 0.0f);
  }
}

// Adds attention of a group over tokens token_at(i), i in [first, last), from scratch.queries to scratch.states and scratch.accumulated.
// adjust(begin, count): called once scratch.tile holds the scores of tokens token_at(begin + i).
//
// Keys and values of the next tile are asked for while this one is computed: without that the loop waits for memory.
// Cost: (last - first) * (2 rows) bytes, each row read once for all heads.
template <class TokenAt, class Adjust>
void add_rows(const RowKernels& kernels, const KvCacheView& cache, int kv_head, int head_dim, int first, int last, TokenAt&& token_at,
              WorkerScratch& scratch, Adjust&& adjust) {
  const KvCacheView kv = cache;  // a copy, which stores of pointers cannot change: it stays in registers
  const int dim = padded_dim(head_dim), rows = tile_rows(row_bytes(kv.type, head_dim));
  RowPointers keys[2], values;
  const auto point = [&](RowPointers& out, int begin, bool to_values) {
    out.count = std::max(0, std::min(rows, last - begin));
    for (int i = 0; i < out.count; ++i)
      out.rows[i] = to_values ? kv.value_row(token_at(begin + i), kv_head) : kv.key_row(token_at(begin + i), kv_head);
  };
  point(keys[0], first, false);
  for (int begin = first, current = 0; begin < last; begin += rows, current ^= 1) {
    point(values, begin, true);
    point(keys[current ^ 1], begin + rows, false);
    const int count = values.count;
    for (int g = 0; g < kernels.num_heads && count < kTileRows; ++g)
      std::fill(scratch.tile.row(g) + count, scratch.tile.row(g) + kTileRows, -kInfinity);
    kernels.score({keys[current].rows, values.rows, count, count, head_dim, kv.key_scale(kv_head)}, scratch.queries, scratch.tile);
    adjust(begin, count);
    for (int g = 0; g < kernels.num_heads; ++g) fold_tile(scratch.tile.row(g), scratch.states[g], scratch.accumulated.row(g), dim);
    kernels.accumulate({values.rows, keys[current ^ 1].rows, count, keys[current ^ 1].count, head_dim, kv.value_scale(kv_head)},
                       scratch.tile, scratch.accumulated);
  }
}

// Joins the team's partial results of one head, columns [first, last), and writes output = share * accumulated / sum. No tokens: zeros.
inline AttentionState merge_states(const WorkerScratch* workers, int num_workers, int head) {
  AttentionState all;
  for (int w = 0; w < num_workers; ++w) all = merge(all, workers[w].states[head]);
  return all;
}
inline void merge_columns(const WorkerScratch* workers, int num_workers, int head, AttentionState all, int first, int last, float* output,
                          float share = 1.0f) {
  std::fill(output + first, output + last, 0.0f);
  if (all.sum == 0.0f) return;
  for (int w = 0; w < num_workers; ++w) {
    const float factor = rescale_factor(workers[w].states[head].max, all.max) / all.sum * share;
    if (factor == 0.0f) continue;
    const float* part = workers[w].accumulated.row(head);
    for (int c = first; c < last; ++c) output[c] += factor * part[c];
  }
}

}  // namespace quorum::cpu
