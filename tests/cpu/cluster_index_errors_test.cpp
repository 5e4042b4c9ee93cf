// The index: size in memory, what NaN does, and every error.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/decode_batch.hpp"
#include "tests/support/error_message.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

const AttentionShape kShape{4, 2, 64, 0.0f};

test::TestCache cache_of(int num_tokens) {
  return {{num_tokens, 2, 64, ElementType::f16, test::Layout::nhd},
          test::gaussian_floats(num_tokens * 128, 1),
          test::gaussian_floats(num_tokens * 128, 2)};
}

}  // namespace

TEST_CASE("bytes: at most 7 % of the cache with clusters of 16 in int8, the metric apart; 9 % with clusters of 32 and residual codes") {
  SerialExecutor executor;
  ClusterIndex index(kShape, test::cluster_index_options());
  const auto cache = cache_of(4000);
  index.build(cache.view(), executor);
  const int64_t kv_bytes = int64_t(4000) * 2 * 2 * 64 * 2;
  const int64_t metric_bytes = 2 * (64 * 64 * (4 + 2) + 3 * 64 * 4);
  CHECK(index.bytes() > kv_bytes / 100);
  CHECK(index.bytes() - metric_bytes <= kv_bytes * 7 / 100);
  CHECK(index.num_cluster_slots() == round_up(3996 / 16, 16));
  IndexOptions f32 = test::cluster_index_options();
  f32.storage = IndexStorage::f32;
  ClusterIndex larger(kShape, f32);
  larger.build(cache.view(), executor);
  CHECK(larger.bytes() > 2 * index.bytes());
  ClusterIndex coded(kShape, {});
  coded.build(cache.view(), executor);
  CHECK(coded.bytes() - metric_bytes <= kv_bytes * 9 / 100);
  CHECK(coded.num_cluster_slots() == round_up(3996 / 32, 16));
}

TEST_CASE("an index without segments holds nothing") {
  const ClusterIndex index(kShape, {});
  CHECK(index.bytes() == 0);
  CHECK(index.num_cluster_slots() == 0);
  CHECK(index.num_tokens() == 0);
  CHECK(index.view().empty());
  CHECK(index.view().num_kv_heads == 2);
  CHECK(index.shape().head_dim == 64);
  CHECK(index.options().cluster_size == 32);
}

TEST_CASE("a NaN or infinite key or value marks its own KV head") {
  SerialExecutor executor;
  for (const bool in_key : {true, false})
    for (const float element : {kNan, kInfinity, -kInfinity}) {
      auto cache = cache_of(200);
      if (in_key)
        cache.set_key(150, 1, 13, element);
      else
        cache.set_value(150, 1, 13, element);
      ClusterIndex index(kShape, {});
      index.build(cache.view(), executor);
      CHECK_FALSE(index.view().heads[0].non_finite);
      CHECK(index.view().heads[1].non_finite);
    }
}

TEST_CASE("NaN among the prompt's queries is left out") {
  SerialExecutor executor;
  auto queries = test::gaussian_floats(8 * 4 * 64, 3);
  queries[3 * 64 + 5] = kNan;
  const QueryView prompt = QueryView::contiguous(queries.data(), 8, 4, 64);
  const auto cache = cache_of(200);
  ClusterIndex index(kShape, {});
  index.build(cache.view(), &prompt, executor);
  for (int h = 0; h < 2; ++h) {
    CHECK_FALSE(index.view().heads[h].non_finite);
    for (int c = 0; c < 64; ++c) CHECK(std::isfinite(index.view().heads[h].metric.eigenvalues[c]));
  }
}

TEST_CASE("keys so large that squares overflow give a complete index all the same") {
  SerialExecutor executor;
  auto keys = test::gaussian_floats(300 * 128, 1, 1e25f);
  keys[77] = 3e38f;
  const test::TestCache cache({300, 2, 64, ElementType::f32, test::Layout::nhd}, keys, test::gaussian_floats(300 * 128, 2));
  ClusterIndex index(kShape, {});
  index.build(cache.view(), executor);
  for (int h = 0; h < 2; ++h) {
    const ClusterHeadView& head = index.view().heads[h];
    int tokens = 0;
    for (int j = 0; j < head.num_cluster_slots(); ++j) tokens += cluster_at(head, j).num_tokens();
    CHECK(tokens == 296);
  }
}

TEST_CASE("errors name the argument, its rule and its value, and leave the index as it was") {
  CHECK(test::argument_error([] {
          ClusterIndex({4, 3, 64, 0.0f}, {});
        }) == "ClusterIndex: shape.num_qo_heads must be a multiple of shape.num_kv_heads, got 4");
  IndexOptions options;
  options.iterations = 0;
  CHECK(test::argument_error([&] { ClusterIndex(kShape, options); }) == "ClusterIndex: options.iterations must be 1 to 1000, got 0");

  SerialExecutor executor;
  const auto cache = cache_of(200);
  ClusterIndex index(kShape, {});
  index.build(cache.view(), executor);
  const int64_t bytes = index.bytes();
  const auto error_of = [&](bool append, const KvCacheView& kv) {
    return test::argument_error([&] {
      if (append)
        index.append(kv, executor);
      else
        index.build(kv, executor);
    });
  };
  for (const bool append : {false, true}) {
    const std::string function = append ? "ClusterIndex::append" : "ClusterIndex::build";
    KvCacheView kv = cache.view();
    CHECK(error_of(append, kv.first(-1)) == function + ": kv.num_tokens must be at least 0, got -1");
    kv.keys = nullptr;
    CHECK(error_of(append, kv) == function + ": kv.keys must be not null, got null");
    kv = cache.view();
    kv.values = nullptr;
    CHECK(error_of(append, kv) == function + ": kv.values must be not null, got null");
    const int32_t page = 0;
    kv = cache.view();
    kv.pages = &page;
    CHECK(error_of(append, kv) == function + ": kv.page_size must be at least 1 with pages, got 0");
    ClusterIndex odd({2, 2, 40, 0.0f}, {});
    kv = cache.view();
    kv.type = ElementType::q8_0;
    CHECK(test::argument_error([&] {
            if (append)
              odd.append(kv, executor);
            else
              odd.build(kv, executor);
          }) == function + ": shape.head_dim must be a multiple of 32 with keys and values in q8_0, got 40");
  }
  CHECK(error_of(true, cache.view().first(199)) ==
        "ClusterIndex::append: kv.num_tokens must be at least the number of tokens already appended, got 199");
  QueryView no_data;
  no_data.num_rows = 3;
  CHECK(test::argument_error([&] { index.build(cache.view(), &no_data, executor); }) ==
        "ClusterIndex::build: prompt_queries.data must be not null, got null");
  const std::vector<float> zeros(300 * 2 * 40, 0.0f);
  QueryView quantised = QueryView::contiguous(zeros.data(), 1, 2, 40);
  quantised.type = ElementType::q8_0;
  ClusterIndex odd({2, 2, 40, 0.0f}, {});
  CHECK(test::argument_error([&] { odd.build(KvCacheView::nhd(zeros.data(), zeros.data(), 300, 2, 40), &quantised, executor); }) ==
        "ClusterIndex::build: shape.head_dim must be a multiple of 32 with queries in q8_0, got 40");
  CHECK(index.bytes() == bytes);
  CHECK(index.num_tokens() == 200);
  CHECK(index.view().indexed_end == 200);
}
