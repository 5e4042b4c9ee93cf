// Online softmax over rows that lie anywhere, against the reference.
#include "quorum/cpu/attend_rows.hpp"

#include <doctest/doctest.h>

#include <numeric>
#include <vector>

#include "quorum/cpu/dense_attention.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

std::vector<float> tile_of(const std::vector<float>& scores) {
  std::vector<float> tile(kTileRows, -kInfinity);
  std::copy(scores.begin(), scores.end(), tile.begin());
  return tile;
}

// Output and lse of a state, as the stages compute them.
std::vector<float> output_of(const WorkerScratch* workers, int num_workers, int head, int head_dim, float& lse) {
  std::vector<float> out(size_t(head_dim), 99.0f);
  const AttentionState all = merge_states(workers, num_workers, head);
  lse = all.lse();
  merge_columns(workers, num_workers, head, all, 0, head_dim / 2, out.data());
  merge_columns(workers, num_workers, head, all, head_dim / 2, head_dim, out.data());
  return out;
}

}  // namespace

TEST_CASE("folding tiles one after the other: weights, sum, and what was accumulated before") {
  AttentionState state;
  std::vector<float> accumulated(16, 8.0f);
  auto tile = tile_of({std::log(2.0f), 0.0f});
  fold_tile(tile.data(), state, accumulated.data(), 16);
  CHECK(state.max == std::log(2.0f));
  CHECK(test::near(state.sum, 1.5, 1e-6));
  CHECK(tile[0] == 1.0f);
  CHECK(test::near(tile[1], 0.5, 1e-6));
  for (int i = 2; i < kTileRows; ++i) CHECK(tile[size_t(i)] == 0.0f);
  CHECK(accumulated[0] == 0.0f);  // what lay there belonged to no token
  std::fill(accumulated.begin(), accumulated.end(), 8.0f);
  tile = tile_of({std::log(8.0f)});
  fold_tile(tile.data(), state, accumulated.data(), 16);  // a larger maximum: the old parts shrink to a quarter
  CHECK(state.max == std::log(8.0f));
  CHECK(test::near(state.sum, 1.0 + 1.5 / 4.0, 1e-6));
  for (const float x : accumulated) CHECK(test::near(x, 2.0, 1e-5));
  tile = tile_of({0.0f});
  fold_tile(tile.data(), state, accumulated.data(), 16);  // a smaller one: they stay
  CHECK(test::near(state.sum, 1.0 + 1.5 / 4.0 + 1.0 / 8.0, 1e-6));
  for (const float x : accumulated) CHECK(test::near(x, 2.0, 1e-5));
}

TEST_CASE("a tile of -inf adds nothing, NaN poisons the sum") {
  AttentionState state;
  std::vector<float> accumulated(16, 0.0f);
  auto tile = tile_of({});
  fold_tile(tile.data(), state, accumulated.data(), 16);
  CHECK(state.sum == 0.0f);
  CHECK(state.max == -kInfinity);
  CHECK(tile == std::vector<float>(kTileRows, 0.0f));
  tile = tile_of({1.0f, kNan, 2.0f});
  fold_tile(tile.data(), state, accumulated.data(), 16);
  CHECK(std::isnan(state.sum));
  CHECK(std::isnan(tile[1]));
  CHECK(tile[2] == 1.0f);
  CHECK(std::isnan(state.lse()));
}

TEST_CASE("tiles stay small enough for L1 and never exceed the kernel's rows") {
  for (int bytes = 16; bytes <= 4 * kMaxHeadDim; bytes += 2) {
    const int rows = tile_rows(bytes);
    CHECK(rows >= 8);
    CHECK(rows <= kTileRows);
    CHECK((rows == 8 || 2 * rows * bytes <= 16384));
  }
}

TEST_CASE("gathered rows are the rows, of any size, and nothing beyond the last is written") {
  std::vector<std::byte> rows(4096);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = std::byte(i * 7 % 251);
  for (const int bytes : {16, 34, 48, 64, 68, 102, 128, 136, 144, 238, 256}) {
    CAPTURE(bytes);
    RowPointers tile;
    tile.count = 5;
    for (int i = 0; i < tile.count; ++i) tile.rows[i] = rows.data() + (i * 3 % 5) * 700 + 2 * i;
    const RowPointers from = tile;
    std::vector<std::byte> buffer(size_t(5 * bytes + 64), std::byte(0xee));
    gather_rows(tile, bytes, buffer.data());
    for (int i = 0; i < tile.count; ++i) {
      CHECK(tile.rows[i] == buffer.data() + i * bytes);
      CHECK(std::memcmp(tile.rows[i], from.rows[i], size_t(bytes)) == 0);
      prefetch_row(from.rows[i], bytes);
    }
    CHECK(std::all_of(buffer.begin() + 5 * bytes, buffer.end(), [](std::byte b) { return b == std::byte(0xee); }));
  }
}

TEST_CASE("attention over scattered tokens, split over a team") {
  const uint64_t seed = 61;
  CAPTURE(seed);
  const int d = 72, heads = 3, num_tokens = 300;
  const auto keys = test::gaussian_floats(int64_t(num_tokens) * 2 * d, seed),
             values = test::gaussian_floats(int64_t(num_tokens) * 2 * d, seed + 1);
  const test::TestCache cache({num_tokens, 2, d, ElementType::bf16, test::Layout::hnd}, keys, values);
  const auto queries = test::gaussian_floats(heads * d, seed + 2, 0.3f);
  std::vector<int> tokens(num_tokens);
  std::iota(tokens.begin(), tokens.end(), 0);
  test::Random random(seed);
  for (int i = num_tokens - 1; i > 0; --i) std::swap(tokens[size_t(i)], tokens[size_t(random.below(i + 1))]);
  for (const int count : {0, 1, 3, 31, 32, 33, 65, 200})
    for (const int num_workers : {1, 2, 3}) {
      CAPTURE(count);
      CAPTURE(num_workers);
      StageScratch scratch({heads, d, 0, 0, 0}, num_workers);
      for (int w = 0; w < num_workers; ++w) {
        WorkerScratch& own = scratch.workers()[w];
        for (int g = 0; g < heads; ++g) {
          std::fill_n(own.queries.row(g), padded_dim(d), 0.0f);
          std::copy_n(queries.data() + g * d, d, own.queries.row(g));
        }
        const Team team{nullptr, w, num_workers};
        clear_states(own, heads, d);
        add_rows(
            row_kernels(ElementType::bf16, heads), cache.view(), 1, d, team.first(count), team.last(count),
            [&](int i) { return tokens[size_t(i)]; }, own, [](int, int) {});
      }
      const std::vector<int> list(tokens.begin(), tokens.begin() + count);
      for (int g = 0; g < heads; ++g) {
        const std::vector<double> query(queries.begin() + g * d, queries.begin() + (g + 1) * d);
        const auto want = reference::attention(query.data(), cache.keys(1), cache.values(1), 1.0, list);
        float lse = 0.0f;
        const auto got = output_of(scratch.workers(), num_workers, g, d, lse);
        CHECK(test::largest_difference(got.data(), want.output.data(), d) <= test::attention_tolerance(d, count, 20.0));
        CHECK(test::near(lse, want.lse, 1e-5));
      }
    }
}
