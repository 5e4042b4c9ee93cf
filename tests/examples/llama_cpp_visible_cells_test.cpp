#include "../../examples/llama_cpp/visible_cells.hpp"

#include <doctest/doctest.h>

using quorum_ggml::visible_end;
using quorum_ggml::VisibleCells;

namespace {

constexpr quorum::f16 kShown{0}, kHidden{0xfc00};

// A mask of several rows; row r sees what see(r, cell) says.
struct Mask {
  template <class See>
  Mask(int rows, int cells, See&& see) : num_rows(rows), num_cells(cells), entries(size_t(rows) * size_t(cells)) {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cells; ++c) entries[size_t(r * cells + c)] = see(r, c) ? kShown : kHidden;
  }
  const quorum::f16* operator()(int row) const { return entries.data() + size_t(row) * size_t(num_cells); }
  int num_rows, num_cells;
  std::vector<quorum::f16> entries;
};

quorum::SequenceView sequence_of(const VisibleCells& visible, int num_cells, int num_indexed) {
  quorum::KvCacheView kv;
  kv.num_tokens = num_cells;
  return visible.sequence(kv, num_indexed);
}

}  // namespace

TEST_CASE("visible cells: one row that sees the first ones needs no mask") {
  for (const int end : {1, 63, 64, 65, 200, 256}) {
    const Mask mask(1, 256, [&](int, int c) { return c < end; });
    VisibleCells visible;
    REQUIRE(visible.read(mask, 1, 256));
    CHECK(visible.end() == end);
    CHECK(visible_end(mask, 1, 256) == end);
    const auto view = sequence_of(visible, 256, end - 1);
    CHECK(view.mask == nullptr);
    CHECK(view.kv.num_tokens == end);
    // The index knows of cells behind: they are masked.
    const auto longer = sequence_of(visible, 256, end + 1);
    CHECK(longer.mask != nullptr);
    CHECK(longer.kv.num_tokens == end + 1);
  }
}

TEST_CASE("visible cells: rows that see one cell more each are causal, others have masks of their own or one for all") {
  VisibleCells visible;
  const Mask draft(3, 130, [](int r, int c) { return c < 100 + r; });
  REQUIRE(visible.read(draft, 3, 130));
  CHECK(visible_end(draft, 3, 130) == 102);
  auto view = sequence_of(visible, 130, 90);
  CHECK(view.causal);
  CHECK(view.num_rows == 3);
  CHECK(view.kv.num_tokens == 102);

  const Mask sequences(2, 130, [](int r, int c) { return c % 2 == r; });
  REQUIRE(visible.read(sequences, 2, 130));
  view = sequence_of(visible, 130, 90);
  CHECK_FALSE(view.causal);
  CHECK(view.mask_stride == 3);
  CHECK(view.kv.num_tokens == 130);
  CHECK(view.mask[0] == 0x5555555555555555u);

  const Mask alike(2, 130, [](int, int c) { return c != 7; });
  REQUIRE(visible.read(alike, 2, 130));
  CHECK(sequence_of(visible, 130, 90).mask_stride == 0);
}

TEST_CASE("visible cells: no mask, nothing visible, and a mask with biases") {
  VisibleCells visible;
  const auto none = [](int) -> const quorum::f16* { return nullptr; };
  REQUIRE(visible.read(none, 1, 100));
  CHECK(visible.end() == 100);
  CHECK(visible_end(none, 1, 100) == 100);
  CHECK(sequence_of(visible, 100, 0).mask == nullptr);

  Mask mask(1, 100, [](int, int) { return false; });
  REQUIRE(visible.read(mask, 1, 100));
  CHECK(visible.end() == 0);
  CHECK(sequence_of(visible, 100, 0).mask != nullptr);
  mask.entries[50] = quorum::from_float<quorum::f16>(-0.5f);
  CHECK_FALSE(visible.read(mask, 1, 100));
}
