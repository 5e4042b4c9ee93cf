// Addressing of keys, values and queries.
#include "quorum/core/kv_cache_view.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/support/error_message.hpp"

using namespace quorum;

namespace {

// The element a row starts with, in arrays that count upwards.
template <class T>
int64_t index_of(const std::byte* row, const std::vector<T>& array) {
  return (row - reinterpret_cast<const std::byte*>(array.data())) / int64_t(sizeof(T));
}

}  // namespace

TEST_CASE("NHD: [num_tokens][num_kv_heads][head_dim]") {
  const std::vector<f16> keys(5 * 3 * 8), values(5 * 3 * 8);
  const KvCacheView view = KvCacheView::nhd(keys.data(), values.data(), 5, 3, 8);
  CHECK(view.type == ElementType::f16);
  CHECK(view.num_tokens == 5);
  for (int token = 0; token < 5; ++token)
    for (int head = 0; head < 3; ++head) {
      CHECK(index_of(view.key_row(token, head), keys) == (token * 3 + head) * 8);
      CHECK(index_of(view.value_row(token, head), values) == (token * 3 + head) * 8);
    }
}

TEST_CASE("HND: [num_kv_heads][capacity][head_dim], partly filled") {
  const std::vector<float> keys(3 * 7 * 8), values(3 * 7 * 8);
  const KvCacheView view = KvCacheView::hnd(keys.data(), values.data(), 5, 7, 8);
  CHECK(view.type == ElementType::f32);
  CHECK(view.num_tokens == 5);
  for (int token = 0; token < 5; ++token)
    for (int head = 0; head < 3; ++head) {
      CHECK(index_of(view.key_row(token, head), keys) == (head * 7 + token) * 8);
      CHECK(index_of(view.value_row(token, head), values) == (head * 7 + token) * 8);
    }
}

TEST_CASE("free strides: keys and values interleaved, and a cache that runs backwards") {
  const std::vector<bf16> block(4 * 2 * 2 * 8);  // [token][key or value][kv_head][head_dim]
  const auto* base = reinterpret_cast<const std::byte*>(block.data());
  const int64_t row = 16;
  const KvCacheView view{base, base + 2 * row, ElementType::bf16, 4, 4 * row, row, 4 * row, row};
  CHECK(index_of(view.key_row(3, 1), block) == ((3 * 2 + 0) * 2 + 1) * 8);
  CHECK(index_of(view.value_row(3, 1), block) == ((3 * 2 + 1) * 2 + 1) * 8);
  const KvCacheView backwards{base + 3 * 4 * row, base + 3 * 4 * row, ElementType::bf16, 4, -4 * row, row, -4 * row, row};
  CHECK(index_of(backwards.key_row(0, 0), block) == 3 * 32);
  CHECK(index_of(backwards.key_row(3, 1), block) == 8);
}

TEST_CASE("keys and values may have different strides") {
  const std::vector<float> block(1000);
  const auto* base = reinterpret_cast<const std::byte*>(block.data());
  const KvCacheView view{base, base, ElementType::f32, 4, 64, 32, 400, 80};
  CHECK(view.key_row(2, 1) - base == 160);
  CHECK(view.value_row(2, 1) - base == 880);
}

TEST_CASE("the first tokens of a view") {
  const std::vector<float> keys(5 * 8), values(5 * 8);
  const KvCacheView view = KvCacheView::nhd(keys.data(), values.data(), 5, 1, 8);
  CHECK(view.first(2).num_tokens == 2);
  CHECK(view.first(2).key_row(1, 0) == view.key_row(1, 0));
  CHECK(view.first(0).num_tokens == 0);
}

TEST_CASE("pages: their order, their size and strides of their own for keys and values") {
  const std::vector<f16> block(4096);
  const auto* base = reinterpret_cast<const std::byte*>(block.data());
  const int32_t pages[4] = {5, 0, 2, 2};
  KvCacheView view{base, base, ElementType::f16, 10, 32, 16, 48, 8};
  view.pages = pages;
  view.page_size = 3;
  view.key_page_stride = 1000;
  view.value_page_stride = -200;
  CHECK(view.key_row(0, 0) - base == 5000);
  CHECK(view.key_row(2, 1) - base == 5000 + 2 * 32 + 16);
  CHECK(view.key_row(3, 0) - base == 0);
  CHECK(view.key_row(9, 1) - base == 2000 + 16);
  CHECK(view.value_row(5, 3) - base == 2 * 48 + 3 * 8);
  CHECK(view.value_row(8, 0) - base == -2 * 200 + 2 * 48);
  view.page_size = 1;  // a place for each token
  CHECK(view.key_row(3, 1) - base == 2000 + 16);
  CHECK(view.first(2).key_row(1, 0) - base == 0);
  CHECK(view.first(2).num_tokens == 2);
}

TEST_CASE("q8_0: strides of rows of blocks") {
  const std::vector<q8_0> keys(5 * 3 * 2), values(5 * 3 * 2);
  const KvCacheView nhd = KvCacheView::nhd(keys.data(), values.data(), 5, 3, 64),
                    hnd = KvCacheView::hnd(keys.data(), values.data(), 4, 5, 64);
  CHECK(nhd.type == ElementType::q8_0);
  CHECK(index_of(nhd.key_row(4, 1), keys) == (4 * 3 + 1) * 2);
  CHECK(index_of(hnd.value_row(3, 2), values) == (2 * 5 + 3) * 2);
  const QueryView queries = QueryView::contiguous(keys.data(), 5, 3, 64);
  CHECK(queries.type == ElementType::q8_0);
  CHECK(index_of(queries.row(4, 1), keys) == (4 * 3 + 1) * 2);
}

TEST_CASE("views that cannot be read are refused by name") {
  KvCacheView view;
  const auto error_of = [](const auto& checked, int head_dim) { return test::argument_error([&] { validate(checked, head_dim, "f"); }); };
  CHECK(error_of(view, 72) == "no error");
  const int32_t pages[1] = {0};
  view.pages = pages;
  CHECK(error_of(view, 72) == "f: kv.page_size must be at least 1 with pages, got 0");
  view.page_size = 1;
  CHECK(error_of(view, 72) == "no error");
  view.type = ElementType::q8_0;
  CHECK(error_of(view, 64) == "no error");
  CHECK(error_of(view, 72) == "f: shape.head_dim must be a multiple of 32 with keys and values in q8_0, got 72");
  const float scales[2] = {0.5f, 2.0f};
  view.key_scales = scales;
  CHECK(error_of(view, 64) == "f: kv.key_scales and kv.value_scales must be null unless keys and values are fp8_e4m3, got q8_0");
  view.type = ElementType::fp8_e4m3;
  CHECK(error_of(view, 72) == "no error");
  CHECK(view.key_scale(1) == 2.0f);
  CHECK(view.value_scale(1) == 1.0f);
  view.value_scales = scales;
  CHECK(view.value_scale(0) == 0.5f);
  view.type = ElementType::f16;
  view.key_scales = nullptr;
  CHECK(error_of(view, 72) == "f: kv.key_scales and kv.value_scales must be null unless keys and values are fp8_e4m3, got f16");
  QueryView queries;
  CHECK(error_of(queries, 72) == "no error");
  queries.type = ElementType::q8_0;
  CHECK(error_of(queries, 96) == "no error");
  CHECK(error_of(queries, 80) == "f: shape.head_dim must be a multiple of 32 with queries in q8_0, got 80");
}

TEST_CASE("byte offsets beyond 2^31") {
  const auto* base = reinterpret_cast<const std::byte*>(uintptr_t(1) << 40);  // no object that compilers know the size of
  KvCacheView view{base, base, ElementType::f32, 1 << 20, 8192, 1024, 8192, 1024};
  const auto offset = [&](const std::byte* row) { return reinterpret_cast<uintptr_t>(row) - reinterpret_cast<uintptr_t>(base); };
  CHECK(offset(view.key_row((1 << 20) - 1, 7)) == uintptr_t((1 << 20) - 1) * 8192 + 7 * 1024);
  const int32_t pages[2] = {3, (1 << 30) - 1};
  view.pages = pages;
  view.page_size = 16;
  view.key_page_stride = view.value_page_stride = 16 * 8192;
  CHECK(offset(view.key_row(16 + 5, 7)) == uintptr_t((1 << 30) - 1) * 16 * 8192 + 5 * 8192 + 7 * 1024);
  CHECK(offset(view.value_row(5, 1)) == 3 * 16 * 8192 + 5 * 8192 + 1024);
}

TEST_CASE("queries: [num_rows][num_qo_heads][head_dim]") {
  const std::vector<bf16> queries(3 * 4 * 8);
  const QueryView view = QueryView::contiguous(queries.data(), 3, 4, 8);
  CHECK(view.type == ElementType::bf16);
  CHECK(view.num_rows == 3);
  for (int row = 0; row < 3; ++row)
    for (int head = 0; head < 4; ++head) CHECK(index_of(view.row(row, head), queries) == (row * 4 + head) * 8);
  const QueryView strided{view.data, ElementType::bf16, 2, 160, 32};
  CHECK(strided.row(1, 2) - view.data == 224);
}
