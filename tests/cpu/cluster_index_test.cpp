// The owning index: every token in exactly one cluster, appending, copies, bytes, errors.
#include "quorum/cpu/cluster_index.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/cache.hpp"
#include "tests/support/error_message.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

const AttentionShape kShape{4, 2, 64, 0.0f};

test::TestCache cache_of(int num_tokens, ElementType type = ElementType::f16, uint64_t seed = 1) {
  const auto data = test::clustered_data({num_tokens, 2, 4, 64, 1, seed});
  return {{num_tokens, 2, 64, type, test::Layout::nhd}, data.keys, data.values};
}

// How often each token of [0, num_tokens) is in a cluster of a KV head; -1 if sizes, rows or views contradict each other.
std::vector<int> token_counts(const ClusterIndexView& view, int kv_head, int num_tokens) {
  std::vector<int> counts(size_t(num_tokens), 0);
  const ClusterHeadView& head = view.heads[kv_head];
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef cluster = cluster_at(head, j);
    if (float(cluster.num_tokens()) != cluster.segment->size[cluster.local]) return {-1};
    for (int i = 0; i < cluster.num_tokens(); ++i) {
      const int token = cluster.tokens()[i];
      if (token < 0 || token >= num_tokens || (i > 0 && token <= cluster.tokens()[i - 1])) return {-1};
      ++counts[size_t(token)];
    }
  }
  return counts;
}

// True if exactly the tokens [begin, end) are indexed, each once, for every KV head.
bool covers(const ClusterIndexView& view, int begin, int end, int num_tokens) {
  std::vector<int> want(size_t(num_tokens), 0);
  for (int i = begin; i < end; ++i) want[size_t(i)] = 1;
  bool all = view.num_indexed == std::max(0, end - begin);
  for (int h = 0; h < view.num_kv_heads; ++h) all = all && token_counts(view, h, num_tokens) == want;
  return all;
}

// Everything a decoder reads of an index, for comparison.
std::vector<float> content(const ClusterIndex& index) {
  std::vector<float> out;
  const ClusterIndexView& view = index.view();
  for (int h = 0; h < view.num_kv_heads; ++h)
    for (int j = 0; j < view.heads[h].num_cluster_slots(); ++j) {
      const ClusterRef cluster = cluster_at(view.heads[h], j);
      for (int i = 0; i < cluster.num_tokens(); ++i) out.push_back(float(cluster.tokens()[i]));
      out.push_back(cluster.segment->spread[cluster.local]);
      out.push_back(cluster.segment->centroid_scale[cluster.local]);
      for (int c = 0; c < 64; ++c)
        out.push_back(cluster.segment->centroids[(cluster.local / 16 * 16) * 64 + (c / 4) * 64 + (cluster.local % 16) * 4 + c % 4]);
    }
  return out;
}

}  // namespace

TEST_CASE("every token but sinks and window is in one cluster of every KV head") {
  SerialExecutor executor;
  for (const int num_tokens : {0, 1, 3, 4, 5, 6, 15, 16, 17, 33, 300, 1000})
    for (const int window : {0, 7}) {
      CAPTURE(num_tokens);
      CAPTURE(window);
      IndexOptions options;
      options.window_tokens = window;
      options.segment_tokens = 256;  // several segments
      ClusterIndex index(kShape, options);
      const auto cache = cache_of(num_tokens);
      index.build(cache.view(), executor);
      CHECK(index.num_tokens() == num_tokens);
      const int end = std::max(4, num_tokens - window);
      CHECK(covers(index.view(), 4, end, std::max(num_tokens, 1)));
      CHECK(index.view().empty() == (num_tokens - window <= 4));
    }
}

TEST_CASE("all keys equal, zero keys, fewer keys than clusters: still complete") {
  SerialExecutor executor;
  for (const float element : {0.0f, 1.5f}) {
    const std::vector<float> rows(500 * 2 * 64, element);
    const test::TestCache cache({500, 2, 64, ElementType::f16, test::Layout::nhd}, rows, rows);
    ClusterIndex index(kShape, {});
    index.build(cache.view(), executor);
    CHECK(covers(index.view(), 4, 500, 500));
  }
  IndexOptions options;
  options.cluster_size = 1;
  options.num_sink_tokens = 0;
  ClusterIndex index(kShape, options);
  const auto cache = cache_of(37);
  index.build(cache.view(), executor);
  CHECK(covers(index.view(), 0, 37, 37));
}

TEST_CASE("appended tokens wait, then become a segment; without merging old segments stay as they are") {
  SerialExecutor executor;
  IndexOptions options;
  options.merge_tokens = 0;
  options.window_tokens = 10;
  options.recluster_every = 64;
  ClusterIndex index(kShape, options);
  const auto cache = cache_of(700);
  index.build(cache.view().first(500), executor);
  REQUIRE(covers(index.view(), 4, 490, 700));
  const uint8_t* old_centroids = index.view().heads[0].segments[0].centroids;
  for (int length = 501; length <= 700; ++length) {
    index.append(cache.view().first(length), executor);
    const int due = (length - 10 - 490) / 64;  // whole batches beyond the window; one token at a time never makes more than one
    REQUIRE(covers(index.view(), 4, 490 + 64 * due, 700));
    REQUIRE(index.num_tokens() == length);
  }
  CHECK(index.view().heads[0].segments[0].centroids == old_centroids);
  CHECK(index.view().heads[0].num_segments == 3 + 1);
}

TEST_CASE("append many at once, onto nothing, and nothing") {
  SerialExecutor executor;
  IndexOptions options;
  options.recluster_every = 100;
  ClusterIndex index(kShape, options);
  const auto cache = cache_of(400);
  index.append(cache.view().first(0), executor);
  CHECK(index.view().empty());
  index.append(cache.view().first(103), executor);  // 99 indexable tokens: not yet
  CHECK(index.view().empty());
  index.append(cache.view().first(104), executor);
  CHECK(covers(index.view(), 4, 104, 400));
  index.append(cache.view().first(104), executor);
  index.append(cache.view(), executor);
  CHECK(covers(index.view(), 4, 400, 400));
}

TEST_CASE("an append that is due when build has found nothing equals a build") {
  SerialExecutor executor;
  IndexOptions options;
  options.recluster_every = 64;
  const auto cache = cache_of(300);
  ClusterIndex appended(kShape, options), built(kShape, options);
  appended.append(cache.view(), executor);
  built.build(cache.view(), executor);
  CHECK(content(appended) == content(built));
}

TEST_CASE("same tokens and options, same index, whatever the executor; other seeds differ") {
  const auto cache = cache_of(600);
  const auto queries = test::gaussian_floats(20 * 4 * 64, 3);
  const QueryView prompt = QueryView::contiguous(queries.data(), 20, 4, 64);
  IndexOptions options;
  options.segment_tokens = 200;
  std::vector<float> first;
  for (const int workers : {1, 2, 3}) {
    ThreadExecutor executor(workers);
    ClusterIndex index(kShape, options);
    index.build(cache.view(), &prompt, executor);
    if (first.empty()) first = content(index);
    CHECK(content(index) == first);
    index.build(cache.view(), &prompt, executor);  // building anew replaces
    CHECK(content(index) == first);
  }
  options.seed = 2;
  SerialExecutor executor;
  ClusterIndex other(kShape, options);
  other.build(cache.view(), &prompt, executor);
  CHECK(content(other) != first);
}

TEST_CASE("copies share segments, and go their own ways") {
  SerialExecutor executor;
  IndexOptions options;
  options.recluster_every = 50;
  const auto cache = cache_of(500);
  auto index = std::make_unique<ClusterIndex>(kShape, options);
  index->build(cache.view().first(300), executor);
  ClusterIndex copy = *index;
  CHECK(copy.view().heads[1].segments[0].centroids == index->view().heads[1].segments[0].centroids);
  CHECK(copy.view().heads != index->view().heads);
  copy.append(cache.view(), executor);
  CHECK(covers(copy.view(), 4, 500, 500));
  CHECK(covers(index->view(), 4, 300, 500));
  CHECK(copy.bytes() > index->bytes());
  ClusterIndex assigned(kShape, {});
  assigned = *index;
  index.reset();
  CHECK(covers(assigned.view(), 4, 300, 500));
  CHECK(covers(copy.view(), 4, 500, 500));
  const ClusterIndex& self = assigned;
  assigned = self;
  CHECK(covers(assigned.view(), 4, 300, 500));
}
