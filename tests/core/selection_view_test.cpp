// The two forms of a selection.
#include "quorum/core/selection_view.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace quorum;

namespace {

std::vector<int> row_of(const SelectionView& view, int sequence, int kv_head) {
  return {view.row(sequence, kv_head), view.row(sequence, kv_head) + view.num_tokens(sequence, kv_head)};
}

}  // namespace

TEST_CASE("compressed rows") {
  const std::vector<int32_t> tokens{0, 5, 9, 2, 1, 3, 4};
  const std::vector<int64_t> indptr{0, 3, 4, 4, 7};
  const SelectionView view{tokens.data(), indptr.data(), nullptr, 0, 2, 2};
  CHECK(row_of(view, 0, 0) == std::vector<int>{0, 5, 9});
  CHECK(row_of(view, 0, 1) == std::vector<int>{2});
  CHECK(row_of(view, 1, 0).empty());
  CHECK(row_of(view, 1, 1) == std::vector<int>{1, 3, 4});
}

TEST_CASE("padded rows") {
  std::vector<int32_t> tokens{0, 5, 9, 2, -1, -1, -1, -1, -1, 1, 3, -1}, counts{3, 1, 0, 2};
  const SelectionOutput out{tokens.data(), counts.data(), 3};
  const SelectionView view = out.view(2, 2);
  CHECK(view.num_sequences == 2);
  CHECK(view.num_kv_heads == 2);
  CHECK(row_of(view, 0, 0) == std::vector<int>{0, 5, 9});
  CHECK(row_of(view, 0, 1) == std::vector<int>{2});
  CHECK(row_of(view, 1, 0).empty());
  CHECK(row_of(view, 1, 1) == std::vector<int>{1, 3});
}

TEST_CASE("rows beyond 2^31 tokens") {
  const std::vector<int64_t> indptr{0, int64_t(3) << 30, (int64_t(3) << 30) + 5};
  const int32_t token = 0;
  const SelectionView compressed{&token, indptr.data(), nullptr, 0, 1, 2};
  CHECK(reinterpret_cast<uintptr_t>(compressed.row(0, 1)) - reinterpret_cast<uintptr_t>(&token) == uintptr_t(3) << 32);
  CHECK(compressed.num_tokens(0, 1) == 5);
  const SelectionView padded{&token, nullptr, &token, int64_t(1) << 20, 4096, 8};
  CHECK(reinterpret_cast<uintptr_t>(padded.row(4095, 7)) - reinterpret_cast<uintptr_t>(&token) == (uintptr_t(4096 * 8 - 1) << 20) * 4);
}
