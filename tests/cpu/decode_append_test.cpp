// Decoding while the cache grows: tokens that wait are always read, then they are indexed like the others.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;

namespace {

constexpr int kPrompt = 800, kLast = 1100, kWindow = 16, kEvery = 64;
const AttentionShape kShape{4, 2, 64, 0.0f};

// A cache of kLast tokens that is revealed token by token, and its index.
struct Growing {
  test::ClusteredData data = test::clustered_data({kLast, 2, 4, 64, 1, 3});
  test::TestCache cache{{kLast, 2, 64, ElementType::f16, test::Layout::hnd}, data.keys, data.values};
  test::TestQueries queries{ElementType::f32, 1, 4, 64, data.queries};
  SerialExecutor executor;
  ClusterIndex index{kShape, options()};
  Decoder decoder;

  static IndexOptions options() {
    IndexOptions options = test::cluster_index_options();
    options.window_tokens = kWindow;
    options.recluster_every = kEvery;
    return options;
  }
  static DecodeOptions decode_options() {
    DecodeOptions options;
    options.target_ratio = 0.8f;
    options.tail = Tail::drop;
    options.dense_below = 0;
    return options;
  }
  Growing() : decoder(kShape, decode_options(), {1, kLast, 0, 1}) { test::build_index(index, cache.view().first(kPrompt)); }

  std::vector<std::vector<int>> select(int length) {
    std::vector<int32_t> tokens(2 * kLast), counts(2);
    const SequenceView sequence{cache.view().first(length), &index.view()};
    REQUIRE(decoder.select(queries.view(), {&sequence, 1}, {tokens.data(), counts.data(), kLast}, {}, executor) == DecodeStatus::ok);
    std::vector<std::vector<int>> rows;
    for (int h = 0; h < 2; ++h) rows.emplace_back(tokens.begin() + h * kLast, tokens.begin() + h * kLast + counts[size_t(h)]);
    return rows;
  }
  // Largest error of the outputs over the selected tokens.
  double error(int length, const std::vector<std::vector<int>>& rows) {
    test::DecodeResult result(kShape, 1);
    const SequenceView sequence{cache.view().first(length), &index.view()};
    REQUIRE(decoder.decode(queries.view(), {&sequence, 1}, result.out(), result.reports, executor) == DecodeStatus::ok);
    double worst = 0.0;
    for (int h = 0; h < 4; ++h) {
      const auto want = reference::attention(queries.get(0, h).data(), cache.keys(h / 2), cache.values(h / 2), 0.125, rows[size_t(h / 2)]);
      worst = test::larger_error(worst, test::largest_difference(&result.output[size_t(h * 64)], want.output.data(), 64));
    }
    return worst;
  }
};

bool holds_all(const std::vector<int>& row, int begin, int end) {
  std::vector<int> want(size_t(end - begin));
  std::iota(want.begin(), want.end(), begin);
  return std::includes(row.begin(), row.end(), want.begin(), want.end());
}

// Mean of the ten keys nearest to a token's, its own included: about the centre they were drawn around.
std::vector<double> neighbourhood(const reference::Matrix& keys, int token) {
  const std::vector<double> products = reference::scores(keys.row(token), keys, 1.0);
  std::vector<int> order = reference::all_tokens(keys.num_rows());
  std::sort(order.begin(), order.end(), [&](int a, int b) { return products[size_t(a)] > products[size_t(b)]; });
  std::vector<double> mean(size_t(keys.num_cols), 0.0);
  for (int i = 0; i < 10; ++i)
    for (int c = 0; c < keys.num_cols; ++c) mean[size_t(c)] += keys.row(order[size_t(i)])[c] / 10.0;
  return mean;
}

}  // namespace

TEST_CASE("tokens appended one by one: waiting ones are always read, indexed ones once at most") {
  Growing growing;
  for (int length = kPrompt; length <= kLast; length += length % 13 == 0 ? 7 : 1) {
    test::append_index(growing.index, growing.cache.view().first(length));
    const int waiting_from = growing.index.view().indexed_end;
    CHECK(length - waiting_from >= kWindow);
    CHECK(length - waiting_from < kWindow + kEvery);
    const auto rows = growing.select(length);
    for (const auto& row : rows) {
      CHECK(holds_all(row, 0, 4));
      CHECK(holds_all(row, waiting_from, length));
      CHECK(std::adjacent_find(row.begin(), row.end(), std::greater_equal<int>()) == row.end());
      CHECK(row.back() == length - 1);
    }
    if (length % 5 == 0) CHECK(growing.error(length, rows) <= test::attention_tolerance(64, kLast, 40.0));
  }
  CHECK(growing.index.view().indexed_end > kPrompt);
}

TEST_CASE("tokens that were appended and indexed are found when the query looks for them") {
  Growing growing;
  test::append_index(growing.index, growing.cache.view());
  REQUIRE(growing.index.view().indexed_end == kLast - kWindow);
  for (const int token : {kPrompt + 3, kPrompt + 150, kLast - kWindow - 1}) {
    for (int h = 0; h < 4; ++h) {
      const auto centre = neighbourhood(growing.cache.keys(h / 2), token);
      for (int c = 0; c < 64; ++c) growing.queries.set(0, h, c, float(3.0 * centre[size_t(c)]));
    }
    const auto rows = growing.select(kLast);
    for (int h = 0; h < 2; ++h) {
      const auto& row = rows[size_t(h)];
      // The tokens around that centre hold nearly all the weight.
      CHECK(reference::attained_ratio(growing.queries.get(0, 2 * h).data(), growing.cache.keys(h), 0.125, row) >= 0.7);
      CHECK(row.size() < kLast / 5);
    }
  }
}

TEST_CASE("an index that lags behind the cache: everything beyond it is read") {
  Growing growing;
  const auto rows = growing.select(kLast);
  for (const auto& row : rows) CHECK(holds_all(row, kPrompt - kWindow, kLast));
  CHECK(growing.error(kLast, rows) <= test::attention_tolerance(64, kLast, 40.0));
}

TEST_CASE("appending in one call and in many: the same coverage, about the same choice") {
  Growing one, many;
  test::append_index(one.index, one.cache.view());
  for (int length = kPrompt; length <= kLast; ++length) test::append_index(many.index, many.cache.view().first(length));
  CHECK(one.index.view().heads[0].num_segments == 2);
  CHECK(many.index.view().heads[0].num_segments == 2);
  const auto a = one.select(kLast), b = many.select(kLast);
  for (size_t h = 0; h < 2; ++h) {
    const double ratio = double(a[h].size()) / double(b[h].size());
    CHECK(ratio > 0.5);
    CHECK(ratio < 2.0);
  }
}

TEST_CASE("a copy of an index goes on with another continuation, the original is as it was") {
  Growing growing;
  const auto before = growing.select(kPrompt);
  ClusterIndex fork = growing.index;
  test::append_index(fork, growing.cache.view());
  CHECK(growing.select(kPrompt) == before);
}
