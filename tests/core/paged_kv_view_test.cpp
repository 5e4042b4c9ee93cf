#include "quorum/core/paged_kv_view.hpp"

#include <doctest/doctest.h>

using namespace quorum;

namespace {

std::byte memory[1 << 16];

}  // namespace

TEST_CASE("paged kv view: without pages a sequence is one page") {
  const int32_t num_tokens[2] = {5, 3};
  const auto* rows = reinterpret_cast<const bf16*>(memory);
  const PagedKvView nhd = PagedKvView::nhd(rows, rows + 100, num_tokens, 10, 2, 16),
                    hnd = PagedKvView::hnd(rows, rows + 100, num_tokens, 10, 2, 16);
  CHECK(nhd.type == ElementType::bf16);
  CHECK(nhd.num_tokens == num_tokens);
  CHECK(nhd.place(1, 7).page == 1);
  CHECK(nhd.place(1, 7).token == 7);
  // Rows of 32 bytes: 10 tokens of 2 heads a sequence.
  CHECK(nhd.key_row(nhd.place(1, 7), 1) == memory + 640 + 7 * 64 + 32);
  CHECK(nhd.value_row(nhd.place(1, 7), 1) == memory + 200 + 640 + 7 * 64 + 32);
  CHECK(hnd.key_row(hnd.place(1, 7), 1) == memory + 640 + 320 + 7 * 32);
}

TEST_CASE("paged kv view: block tables and compressed rows of pages") {
  const int32_t num_tokens[2] = {5, 9}, table[6] = {4, 2, -1, 7, 1, 3}, compressed[5] = {4, 2, 7, 1, 3}, indptr[3] = {0, 2, 5};
  const auto* rows = reinterpret_cast<const f16*>(memory);
  PagedKvView view = PagedKvView::nhd(rows, rows, num_tokens, 4, 1, 8);
  view.page_size = 4;
  view.page_indices = table;
  view.pages_per_sequence = 3;
  for (const bool by_indptr : {false, true}) {
    CAPTURE(by_indptr);
    if (by_indptr) {
      view.page_indices = compressed;
      view.page_indptr = indptr;
    }
    CHECK(view.place(0, 0).page == 4);
    CHECK(view.place(0, 4).page == 2);
    CHECK(view.place(1, 3).page == 7);
    CHECK(view.place(1, 8).page == 3);
    CHECK(view.place(1, 7).token == 3);
    CHECK(view.key_row(view.place(1, 7), 0) == memory + 1 * 4 * 16 + 3 * 16);
  }
}
