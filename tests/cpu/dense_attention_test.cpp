// Dense attention against the reference, over shapes, types, layouts and edges.
#include "quorum/cpu/dense_attention.hpp"

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

}  // namespace

TEST_CASE("head counts and head_dims, ragged batches") {
  SerialExecutor executor;
  for (const auto& [qo, kv] : std::vector<std::pair<int, int>>{{2, 2}, {3, 1}, {8, 2}, {7, 1}, {8, 1}, {16, 1}})
    for (const int d : {8, 64, 72, 80, 96, 128, 192, 256, 512}) {
      const Batch batch(small(qo, kv, d, {1, 31, 0, 70}));
      const std::string shape = std::to_string(qo) + " query heads, " + std::to_string(kv) + " KV heads, head_dim " + std::to_string(d);
      CAPTURE(shape);
      CHECK(test::reference_error(batch, batch.dense(executor)) <= 1.0);
    }
}

TEST_CASE("element types of cache and queries, layouts") {
  ThreadExecutor executor(2);
  const ElementType types[] = {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::q8_0, ElementType::fp8_e4m3};
  for (const ElementType type : types)
    for (const ElementType query_type : types)
      for (const test::Layout layout : {test::Layout::nhd, test::Layout::hnd, test::Layout::interleaved}) {
        const bool in_blocks = type == ElementType::q8_0 || query_type == ElementType::q8_0;
        BatchSpec spec = small(6, 2, in_blocks ? 96 : 72, {97, 33});
        spec.type = type;
        spec.query_type = query_type;
        spec.layout = layout;
        const Batch batch(spec);
        const std::string what =
            std::string(element_name(type)) + " cache, " + element_name(query_type) + " queries, " + layout_name(layout);
        CAPTURE(what);
        CHECK(test::reference_error(batch, batch.dense(executor)) <= 1.0);
      }
}

TEST_CASE("sizes around every edge") {
  ThreadExecutor executor(3);
  for (int tokens = 0; tokens <= 70; ++tokens) {
    const Batch batch(small(4, 2, 64, {tokens}));
    CAPTURE(tokens);
    CHECK(test::reference_error(batch, batch.dense(executor)) <= 1.0);
  }
}

TEST_CASE("no tokens: output 0, lse -inf") {
  SerialExecutor executor;
  const Batch batch(small(4, 2, 64, {0}));
  const auto result = batch.dense(executor);
  CHECK(result.output == std::vector<float>(4 * 64, 0.0f));
  CHECK(result.lse == std::vector<float>(4, -kInfinity));
}

TEST_CASE("lse may be left out; an empty batch is fine") {
  SerialExecutor executor;
  Batch batch(small(4, 2, 64, {50}));
  auto with = batch.dense(executor);
  std::vector<float> output(4 * 64);
  const KvCacheView kv = batch.cache(0).view();
  dense_attention(batch.shape(), batch.query_view(), {&kv, 1}, {output.data(), nullptr}, executor);
  CHECK(output == with.output);
  QueryView none = batch.query_view();
  none.num_rows = 0;
  dense_attention(batch.shape(), none, std::span<const KvCacheView>{}, {}, executor);
}

TEST_CASE("workers change rounding only; repeats change nothing") {
  const Batch batch(small(6, 3, 80, {400, 13, 250}));
  for (const int workers : {1, 2, 3, 4, 5}) {
    CAPTURE(workers);
    ThreadExecutor executor(workers);
    const auto result = batch.dense(executor);
    CHECK(test::reference_error(batch, result) <= 1.0);
    for (int repeat = 0; repeat < 3; ++repeat) CHECK(batch.dense(executor).same_bits(result));
  }
}

TEST_CASE("scores of thousands") {
  SerialExecutor executor;
  BatchSpec spec = small(2, 1, 64, {40});
  spec.sharpness = 3000.0f;
  spec.type = ElementType::f32;
  const Batch batch(spec);
  const auto result = batch.dense(executor);
  for (int h = 0; h < 2; ++h) {
    const auto want = batch.attention(0, h);
    CHECK(test::near(result.lse[size_t(h)], want.lse, 1e-5 * std::fabs(want.lse)));
    CHECK(test::largest_difference(result.output.data() + h * 64, want.output.data(), 64) <= 0.02);  // scores of 10^4 are 10^-3 off
  }
}

TEST_CASE("NaN in a query, key or value reaches the heads that see it and no other; all keys masked give 0") {
  SerialExecutor executor;
  const auto poisoned_heads = [&](const Batch& batch) {
    const auto result = batch.dense(executor);
    std::string heads;
    for (int h = 0; h < 4; ++h) heads += std::isnan(result.output[size_t(h * 64)]) ? 'x' : '.';
    return heads;
  };
  Batch query(small(4, 2, 64, {50}));
  query.queries().set(0, 1, 7, kNan);
  CHECK(poisoned_heads(query) == ".x..");
  Batch key(small(4, 2, 64, {50}));
  key.cache(0).set_key(49, 1, 63, kNan);
  CHECK(poisoned_heads(key) == "..xx");
  Batch value(small(4, 2, 64, {50}));
  value.cache(0).set_value(20, 0, 0, kInfinity);
  value.cache(0).set_value(21, 0, 0, -kInfinity);
  CHECK(poisoned_heads(value) == "xx..");
  Batch masked(small(2, 1, 64, {40}));
  for (int h = 0; h < 2; ++h) masked.queries().set(0, h, 0, 1.0f);
  for (int i = 0; i < 40; ++i) masked.cache(0).set_key(i, 0, 0, -kInfinity);
  const auto result = masked.dense(executor);
  CHECK(result.output == std::vector<float>(2 * 64, 0.0f));
  CHECK(result.lse == std::vector<float>(2, -kInfinity));
}

TEST_CASE("errors name the argument, and nothing is written") {
  SerialExecutor executor;
  Batch batch(small(4, 2, 64, {50}));
  test::DecodeResult result(batch.shape(), 1);
  const auto error_of = [&](AttentionShape shape, QueryView queries, KvCacheView kv, AttentionOutput out) {
    const std::string message = test::argument_error([&] { dense_attention(shape, queries, {&kv, 1}, out, executor); });
    CHECK(result.untouched());
    return message;
  };
  const auto shape = batch.shape();
  const QueryView queries = batch.query_view();
  const KvCacheView kv = batch.cache(0).view();
  AttentionShape odd = shape;
  odd.head_dim = 63;
  CHECK(error_of(odd, queries, kv, result.out()) == "dense_attention: shape.head_dim must be a multiple of 8 from 8 to 512, got 63");
  QueryView other = queries;
  other.num_rows = 2;
  CHECK(error_of(shape, other, kv, result.out()) == "dense_attention: queries.num_rows must be the number of sequences, got 2");
  other = queries;
  other.data = nullptr;
  CHECK(error_of(shape, other, kv, result.out()) == "dense_attention: queries.data must be not null, got null");
  CHECK(error_of(shape, queries, kv, {}) == "dense_attention: out.output must be not null, got null");
  CHECK(error_of(shape, queries, kv.first(-1), result.out()) == "dense_attention: kv.num_tokens must be at least 0, got -1");
  for (const bool no_keys : {true, false}) {
    KvCacheView missing = kv;
    (no_keys ? missing.keys : missing.values) = nullptr;
    CHECK(error_of(shape, queries, missing, result.out()) == "dense_attention: kv.keys and kv.values must be not null, got null");
  }
  const int32_t page = 0;
  KvCacheView paged = kv;
  paged.pages = &page;
  CHECK(error_of(shape, queries, paged, result.out()) == "dense_attention: kv.page_size must be at least 1 with pages, got 0");
  AttentionShape narrow = shape;
  narrow.head_dim = 56;
  KvCacheView blocks = kv;
  blocks.type = ElementType::q8_0;
  CHECK(error_of(narrow, queries, blocks, result.out()) ==
        "dense_attention: shape.head_dim must be a multiple of 32 with keys and values in q8_0, got 56");
  other = queries;
  other.type = ElementType::q8_0;
  CHECK(error_of(narrow, other, kv, result.out()) ==
        "dense_attention: shape.head_dim must be a multiple of 32 with queries in q8_0, got 56");
}
