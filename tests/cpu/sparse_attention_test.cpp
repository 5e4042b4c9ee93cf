// Attention over given selections against the reference.
#include "quorum/cpu/sparse_attention.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/support/decode_batch.hpp"
#include "tests/support/error_message.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

BatchSpec small(int num_qo_heads, int num_kv_heads, int head_dim, std::vector<int> lengths) {
  BatchSpec spec;
  spec.shape = {num_qo_heads, num_kv_heads, head_dim, 0.0f};
  spec.lengths = std::move(lengths);
  spec.build_indexes = false;
  return spec;
}

// A random selection in both forms; some rows are empty, some complete.
struct RandomSelection {
  std::vector<std::vector<int>> rows;
  std::vector<int32_t> compressed, padded, counts;
  std::vector<int64_t> indptr{0};
  int64_t capacity = 0;

  RandomSelection(const Batch& batch, uint64_t seed) {
    test::Random random(seed);
    capacity = batch.limits().max_tokens;
    for (int s = 0; s < batch.num_sequences(); ++s)
      for (int h = 0; h < batch.shape().num_kv_heads; ++h) {
        const double keep = random.below(4) * 0.34;  // 0: none, beyond 1: all
        std::vector<int> row;
        for (int i = 0; i < batch.spec().lengths[size_t(s)]; ++i)
          if (random.uniform() < keep) row.push_back(i);
        rows.push_back(row);
        compressed.insert(compressed.end(), row.begin(), row.end());
        indptr.push_back(int64_t(compressed.size()));
        counts.push_back(int32_t(row.size()));
        row.resize(size_t(capacity), -1);
        padded.insert(padded.end(), row.begin(), row.end());
      }
  }
};

test::DecodeResult attend(const Batch& batch, const SelectionView& selection, Executor& executor) {
  test::DecodeResult result(batch.shape(), batch.num_sequences());
  std::vector<KvCacheView> views;
  for (const SequenceView& sequence : batch.sequences()) views.push_back(sequence.kv);
  sparse_attention(batch.shape(), batch.query_view(), views, selection, result.out(), executor);
  return result;
}

}  // namespace

TEST_CASE("random selections, both forms, all groups and workers") {
  for (const auto& [qo, kv] : std::vector<std::pair<int, int>>{{2, 2}, {6, 2}, {7, 1}, {16, 2}})
    for (const int workers : {1, 2, 3}) {
      const uint64_t seed = uint64_t(qo * 10 + workers);
      CAPTURE(seed);
      Batch batch(small(qo, kv, 72, {200, 0, 1, 77}));
      const RandomSelection selection(batch, seed);
      ThreadExecutor executor(workers);
      const auto from_compressed = attend(batch, {selection.compressed.data(), selection.indptr.data(), nullptr, 0, 4, kv}, executor);
      const auto from_padded =
          attend(batch, {selection.padded.data(), nullptr, selection.counts.data(), selection.capacity, 4, kv}, executor);
      CHECK(from_compressed.same_bits(from_padded));
      double worst = 0.0;
      for (int s = 0; s < 4; ++s)
        for (int h = 0; h < qo; ++h) {
          const auto row = size_t(s * qo + h);
          const auto want = batch.attention(s, h, selection.rows[size_t(s * kv + h / (qo / kv))]);
          worst = test::larger_error(worst, test::largest_difference(from_padded.output.data() + row * 72, want.output.data(), 72));
          worst = test::larger_error(worst, test::largest_difference(&from_padded.lse[row], &want.lse, 1));
        }
      CHECK(worst <= test::attention_tolerance(72, 200, 40.0));
    }
}

TEST_CASE("an empty row gives 0 and -inf") {
  Batch batch(small(2, 1, 64, {30}));
  const int64_t indptr[2] = {0, 0};
  SerialExecutor executor;
  const auto result = attend(batch, {nullptr, indptr, nullptr, 0, 1, 1}, executor);
  CHECK(result.output == std::vector<float>(2 * 64, 0.0f));
  CHECK(result.lse == std::vector<float>(2, -kInfinity));
}

TEST_CASE("every token in order is dense attention bit for bit") {
  Batch batch(small(8, 2, 96, {333, 40}));
  std::vector<int32_t> tokens;
  std::vector<int64_t> indptr{0};
  for (const int length : batch.spec().lengths)
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < length; ++i) tokens.push_back(i);
      indptr.push_back(int64_t(tokens.size()));
    }
  for (const int workers : {1, 3}) {
    ThreadExecutor executor(workers);
    CHECK(attend(batch, {tokens.data(), indptr.data(), nullptr, 0, 2, 2}, executor).same_bits(batch.dense(executor)));
  }
}

TEST_CASE("tokens that are not selected are not read") {
  Batch batch(small(2, 1, 64, {50}));
  std::vector<int32_t> tokens;
  for (int i = 0; i < 50; ++i) {
    if (i % 3 == 0) {
      tokens.push_back(i);
    } else {
      batch.cache(0).set_key(i, 0, 5, kNan);
      batch.cache(0).set_value(i, 0, 5, kNan);
    }
  }
  const int64_t indptr[2] = {0, int64_t(tokens.size())};
  SerialExecutor executor;
  const auto result = attend(batch, {tokens.data(), indptr, nullptr, 0, 1, 1}, executor);
  for (const float x : result.output) CHECK(std::isfinite(x));
}

TEST_CASE("errors name the argument, and nothing is written") {
  Batch batch(small(4, 2, 64, {50}));
  test::DecodeResult result(batch.shape(), 1);
  SerialExecutor executor;
  const KvCacheView kv = batch.cache(0).view();
  const int64_t indptr[3] = {0, 0, 0};
  const auto error_of = [&](const QueryView& queries, const SelectionView& selection) {
    return test::argument_error([&] { sparse_attention(batch.shape(), queries, {&kv, 1}, selection, result.out(), executor); });
  };
  const QueryView queries = batch.query_view();
  CHECK(error_of(queries, {nullptr, indptr, nullptr, 0, 2, 2}) ==
        "sparse_attention: selection.num_sequences must be the number of sequences, got 2");
  CHECK(error_of(queries, {nullptr, indptr, nullptr, 0, 1, 1}) ==
        "sparse_attention: selection.num_kv_heads must be shape.num_kv_heads, got 1");
  QueryView other = queries;
  other.num_rows = 3;
  CHECK(error_of(other, {nullptr, indptr, nullptr, 0, 1, 2}) ==
        "sparse_attention: queries.num_rows must be the number of sequences, got 3");
  CHECK(result.untouched());
}
