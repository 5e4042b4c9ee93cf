// What engines do to a cache, one case each; tests/cpu/index_life_test.cpp mixes them at random.
#include <doctest/doctest.h>

#include "quorum/cpu/cluster_index.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/error_message.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

constexpr AttentionShape kShape{4, 2, 32, 0.0f};

test::TestCache cache_of(int num_tokens) {
  const auto data = test::clustered_data({num_tokens, 2, 4, 32, 1, 51});
  return {{num_tokens, 2, 32, ElementType::f16, test::Layout::nhd}, data.keys, data.values};
}

std::vector<int> segment_sizes(const ClusterIndex& index) {
  const ClusterHeadView& head = index.view().heads[0];
  std::vector<int> sizes;
  for (int s = 0; s < head.num_segments; ++s)
    sizes.push_back(head.segments[s].cluster_indptr[head.segment_first[s + 1] - head.segment_first[s]]);
  return sizes;
}

ClusterIndex appended(const test::TestCache& cache, const IndexOptions& options, int built) {
  SerialExecutor executor;
  ClusterIndex index(kShape, options);
  index.build(cache.view().first(built), executor);
  for (int n = built + 1; n <= cache.shape().num_tokens; ++n) index.append(cache.view().first(n), executor);
  return index;
}

IndexOptions small_merges() {
  IndexOptions options;
  options.num_sink_tokens = 0;
  options.cluster_size = 8;
  options.recluster_every = 16;
  options.merge_tokens = 256;
  options.segment_tokens = 512;
  return options;
}

}  // namespace

TEST_CASE("appended tokens join the newest segment up to a quarter of merge_tokens; small segments become one of merge_tokens") {
  const auto cache = cache_of(1100);
  CHECK(segment_sizes(appended(cache_of(512 + 32), small_merges(), 512)) == std::vector<int>{512, 32});
  CHECK(segment_sizes(appended(cache_of(512 + 64 + 16), small_merges(), 512)) == std::vector<int>{512, 64, 16});
  CHECK(segment_sizes(appended(cache_of(512 + 256 + 15), small_merges(), 512)) == std::vector<int>{512, 256});
  IndexOptions options = small_merges();
  options.merge_tokens = 0;
  CHECK(segment_sizes(appended(cache_of(512 + 48), options, 512)) == std::vector<int>{512, 16, 16, 16});
}

TEST_CASE("a few pieces an append: the same clusters in the end, every token in one place meanwhile") {
  const auto cache = cache_of(900);
  for (const int pieces : {1, 2, 16}) {
    IndexOptions options = small_merges();
    const ClusterIndex at_once = appended(cache, options, 300);
    options.pieces_per_append = pieces;
    ClusterIndex index = appended(cache, options, 300);
    SerialExecutor executor;
    CHECK(index.view().num_indexed + index.view().always.num_listed == 900);
    CHECK(index.view().always.num_listed < 200);  // it keeps up
    for (int i = 0; i < 500; ++i) index.append(cache.view(), executor);
    CHECK(index.view().always.num_listed < options.recluster_every);
    CHECK(index.num_live_tokens() == at_once.num_live_tokens());
  }
}

TEST_CASE("another bound of pieces counts from the next append on") {
  const auto cache = cache_of(400);
  SerialExecutor executor;
  ClusterIndex index(kShape, small_merges());
  index.build(cache.view().first(300), executor);
  index.set_pieces_per_append(1);
  index.append(cache.view(), executor);
  CHECK(index.options().pieces_per_append == 1);
  CHECK(index.view().always.num_listed == 100);
  index.set_pieces_per_append(0);
  index.append(cache.view(), executor);
  CHECK(index.view().always.num_listed < small_merges().recluster_every);
  CHECK(test::argument_error([&] { index.set_pieces_per_append(-1); }) ==
        "ClusterIndex::set_pieces_per_append: options.pieces_per_append must be 0 to 2^30, got -1");
}

TEST_CASE("forks share what neither changes, to the byte") {
  const auto cache = cache_of(700);
  SerialExecutor executor;
  IndexOptions options = small_merges();
  options.merge_tokens = 0;
  ClusterIndex index(kShape, options);
  index.build(cache.view().first(512), executor);
  const std::vector<std::byte> before = index.save();
  std::vector<ClusterIndex> beams(4, index);
  std::vector<const ClusterIndex*> all{&index};
  for (const ClusterIndex& beam : beams) all.push_back(&beam);
  CHECK(ClusterIndex::total_bytes(all) == index.bytes());
  beams[0].append(cache.view().first(512 + 32), executor);
  beams[1].truncate(100);
  beams[2].erase(5, 6);
  const int64_t own = (beams[0].bytes() - index.bytes());
  CHECK(own > 0);
  const ClusterIndex* pair[] = {&index, &beams[0]};
  CHECK(ClusterIndex::total_bytes(pair) == index.bytes() + own);
  CHECK(index.save() == before);
  CHECK(beams[3].save() == before);
  beams[1] = index;  // assignment is a fork too
  CHECK(beams[1].save() == before);
  all.clear();
  CHECK(ClusterIndex::total_bytes(all) == 0);
}

TEST_CASE("a job that has begun is dropped when one of its rows changes, and begun again") {
  const auto cache = cache_of(400);
  for (const int what : {0, 1, 2, 3}) {
    IndexOptions options = small_merges();
    options.pieces_per_append = 1;
    SerialExecutor executor;
    ClusterIndex index(kShape, options);
    index.build(cache.view().first(300), executor);
    index.append(cache.view().first(340), executor);  // one piece of the clustering of [300, 340)
    REQUIRE(index.view().always.num_listed == 40);
    if (what == 0) index.overwrite(310, 311);
    if (what == 1) index.erase(310, 311);
    if (what == 2) index.invalidate(310, 311);
    if (what == 3) index.truncate(320);
    const int live = what == 3 ? 320 : what == 1 ? 339 : 340;
    for (int i = 0; i < 50; ++i) index.append(cache.view().first(what == 3 ? 320 : 340), executor);
    CHECK(index.num_live_tokens() == live);
    CHECK(index.view().num_indexed == live);
  }
}

TEST_CASE("a segment that held NaN is clustered anew once its tokens change, and is finite again") {
  auto cache = cache_of(600);
  SerialExecutor executor;
  cache.set_key(77, 1, 3, kNan);
  ClusterIndex index(kShape, small_merges());
  index.build(cache.view(), executor);
  CHECK_FALSE(index.view().heads[0].non_finite);
  CHECK(index.view().heads[1].non_finite);
  cache.set_key(77, 1, 3, 1.0f);
  index.overwrite(77, 78);
  CHECK_FALSE(index.view().heads[1].non_finite);
  CHECK(index.view().always.num_listed > 400);  // its whole segment waits
  index.append(cache.view(), executor);
  CHECK(index.view().num_indexed == 600);
  CHECK_FALSE(index.view().heads[1].non_finite);
}

TEST_CASE("invalidated tokens wait as the oldest, so that the newest stay the window") {
  const auto cache = cache_of(300);
  SerialExecutor executor;
  IndexOptions options = small_merges();
  options.window_tokens = 8;
  ClusterIndex index(kShape, options);
  index.build(cache.view(), executor);
  index.invalidate(0, 300);
  CHECK(index.view().empty());
  CHECK(index.num_live_tokens() == 300);
  CHECK(index.view().always.token(299) == 299);
  index.append(cache.view(), executor);
  CHECK(index.view().num_indexed == 292);
  CHECK(index.view().always.token(0) == 292);
}

TEST_CASE("ranges and lengths that are not there are refused, and nothing changes") {
  const auto cache = cache_of(100);
  SerialExecutor executor;
  ClusterIndex index(kShape, small_merges());
  index.build(cache.view(), executor);
  const auto before = index.save();
  CHECK(test::argument_error([&] { index.truncate(101); }) == "ClusterIndex::truncate: num_tokens must be 0 to num_tokens(), got 101");
  CHECK(test::argument_error([&] { index.truncate(-1); }) == "ClusterIndex::truncate: num_tokens must be 0 to num_tokens(), got -1");
  CHECK(test::argument_error([&] { index.erase(-1, 4); }) == "ClusterIndex::erase: begin must be 0 to num_tokens(), got -1");
  CHECK(test::argument_error([&] { index.erase(5, 4); }) == "ClusterIndex::erase: end must be begin to num_tokens(), got 4");
  CHECK(test::argument_error([&] { index.overwrite(0, 101); }) == "ClusterIndex::overwrite: end must be begin to num_tokens(), got 101");
  CHECK(test::argument_error([&] { index.invalidate(101, 101); }) == "ClusterIndex::invalidate: begin must be 0 to num_tokens(), got 101");
  index.erase(40, 40);
  CHECK(index.save() == before);
}
