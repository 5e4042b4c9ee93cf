#include "quorum/core/paged_kv_view.hpp"

#include <doctest/doctest.h>

#include <algorithm>

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

TEST_CASE("paged kv view: sequences as views of one sequence each") {
  const int32_t num_tokens[3] = {5, 0, 9}, table[9] = {4, 2, -1, -1, -1, -1, 7, 1, 3}, compressed[5] = {4, 2, 7, 1, 3},
                indptr[4] = {0, 2, 2, 5};
  const auto* rows = reinterpret_cast<const q8_0*>(memory);
  PagedKvView view = PagedKvView::nhd(rows, rows + 7, num_tokens, 4, 2, 32);
  CHECK(view.type == ElementType::q8_0);
  CHECK(view.key_page_stride == 4 * 2 * 34);
  view.value_page_stride += 2;
  const float scales[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  view.key_scales = scales;
  view.value_scales = scales + 2;
  CHECK(view.key_scale(1) == 2.0f);
  CHECK(view.value_scale(0) == 3.0f);
  CHECK(PagedKvView().value_scale(1) == 1.0f);
  for (const int form : {0, 1, 2}) {  // a run of memory a sequence, then pages
    CAPTURE(form);
    view.page_size = form == 0 ? 0 : 4;
    view.page_indices = form == 0 ? nullptr : form == 1 ? table : compressed;
    view.page_indptr = form == 2 ? indptr : nullptr;
    view.pages_per_sequence = 3;
    for (int s = 0; s < 3; ++s) {
      const KvCacheView sequence = view.sequence(s);
      CHECK(sequence.num_tokens == num_tokens[s]);
      CHECK(sequence.type == ElementType::q8_0);
      CHECK(sequence.key_scales == view.key_scales);
      CHECK(sequence.value_scales == view.value_scales);
      for (int t = 0; t < num_tokens[s]; ++t)
        for (int h = 0; h < 2; ++h) {
          CHECK(sequence.key_row(t, h) == view.key_row(view.place(s, t), h));
          CHECK(sequence.value_row(t, h) == view.value_row(view.place(s, t), h));
        }
    }
  }
}

TEST_CASE("lengths from the last page's") {
  const int32_t indptr[5] = {0, 2, 2, 3, 6}, last_page_len[4] = {3, 16, 16, 1};
  int32_t num_tokens[4] = {-1, -1, -1, -1};
  count_tokens(indptr, last_page_len, 16, 4, num_tokens);
  CHECK(num_tokens[0] == 19);
  CHECK(num_tokens[1] == 0);
  CHECK(num_tokens[2] == 16);
  CHECK(num_tokens[3] == 33);
  std::copy_n(last_page_len, 4, num_tokens);
  count_tokens(indptr, num_tokens, 16, 4, num_tokens);
  CHECK(num_tokens[3] == 33);
}
