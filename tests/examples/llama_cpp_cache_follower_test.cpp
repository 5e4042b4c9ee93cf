// What llama.cpp does to its cache, and that the follower finds out by looking. At a target so high that all is read, a step must give what
// dense attention gives, whatever the index held before.
#include "../../examples/llama_cpp/cache_follower.hpp"

#include <doctest/doctest.h>

#include "quorum/cpu/decode.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using quorum_ggml::CacheFollower;
using quorum_ggml::Check;

namespace {

constexpr AttentionShape kShape{4, 2, 32, 0.0f};
constexpr int kCells = 2048, kRow = 2 * 32;

// A cache of so many cells whose rows can be written.
struct Cells {
  Cells() : keys(size_t(kCells) * kRow), values(keys.size()) {}
  void write(int begin, int end, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (size_t i = size_t(begin) * kRow; i < size_t(end) * kRow; ++i) {
      keys[i] = from_float<f16>(normal(random));
      values[i] = from_float<f16>(normal(random));
    }
  }
  KvCacheView view(int cells = kCells) const { return KvCacheView::nhd(keys.data(), values.data(), cells, 2, 32); }
  std::vector<f16> keys, values;
};

struct Setup {
  Setup() : follower(kShape, options()) { cells.write(0, kCells, 1); }
  static IndexOptions options() {
    IndexOptions options;
    options.cluster_size = 16;
    options.segment_tokens = options.merge_tokens = 512;
    return options;
  }
  bool step(int extent, Check check, int shown = kCells) {
    const bool changed = follower.compare(cells.view(shown), extent, check);
    follower.follow(cells.view(shown), extent, 0, true, executor);
    return changed;
  }
  // Whether clusters and lists hold what the cache does: every live cell is in one place, and sparse is close to dense.
  void check_decode(int extent) {
    DecodeOptions options;
    options.target_ratio = 0.999f;
    options.dense_below = 0;
    options.unit = ReadUnit::clusters;
    Decoder decoder(kShape, options, {1, kCells, 0, 1, 1});
    std::vector<float> query(4 * 32), sparse(4 * 32), dense(4 * 32);
    std::mt19937_64 random(7);
    std::normal_distribution<float> normal;
    for (float& x : query) x = 0.7f * normal(random);
    const auto queries = QueryView::contiguous(query.data(), 1, 4, 32);
    const SequenceView sequence{cells.view(extent), follower.view()};
    REQUIRE(decoder.decode(queries, {&sequence, 1}, {sparse.data()}, {}, executor) == DecodeStatus::ok);
    const KvCacheView kv = cells.view(extent);
    dense_attention(kShape, queries, {&kv, 1}, {dense.data()}, executor);
    for (size_t i = 0; i < dense.size(); ++i) CHECK(!(std::fabs(sparse[i] - dense[i]) > 0.02f));
  }
  Cells cells;
  CacheFollower follower;
  SerialExecutor executor;
};

}  // namespace

TEST_CASE("follower: a prompt, then token by token") {
  Setup s;
  CHECK_FALSE(s.step(300, Check::all));
  CHECK(s.follower.view() == nullptr);  // too short for an index
  s.step(900, Check::all);
  REQUIRE(s.follower.view() != nullptr);
  for (int end = 901; end < 1100; ++end) CHECK_FALSE(s.step(end, Check::some));
  CHECK(s.follower.num_tokens() == 1099);
  CHECK(s.follower.view()->num_indexed > 900);
  s.check_decode(1099);
}

TEST_CASE("follower: cells that are written again leave their clusters at once") {
  Setup s;
  s.step(1500, Check::all);
  s.cells.write(700, 701, 2);  // one cell, freed and used again
  CHECK(s.step(1501, Check::all));
  s.check_decode(1501);
  s.cells.write(1490, 1501, 3);  // the newest are always looked at
  CHECK(s.step(1501, Check::some));
  s.check_decode(1501);
}

TEST_CASE("follower: a partial look finds a change within 16 steps") {
  Setup s;
  s.step(1500, Check::all);
  s.cells.write(100, 101, 4);
  int steps = 1;
  while (!s.step(1500, Check::some) && steps < 100) ++steps;
  CHECK(steps <= 16);
}

TEST_CASE("follower: taken back, and the cells beyond what the engine shows are gone") {
  Setup s;
  s.step(1500, Check::all);
  const int indexed_end = s.follower.view()->indexed_end;
  CHECK_FALSE(s.step(indexed_end, Check::all));  // only waiting cells are beyond: they are forgotten
  CHECK(s.follower.num_tokens() == indexed_end);
  CHECK_FALSE(s.step(600, Check::all));  // clusters hold what is beyond: it may be another sequence's
  CHECK(s.follower.num_tokens() == indexed_end);
  CHECK_FALSE(s.step(700, Check::all, 768));
  CHECK(s.follower.num_tokens() <= 768);
  s.check_decode(768);
  s.step(100, Check::all, 256);
  CHECK(s.follower.view() == nullptr);
  s.step(1500, Check::all);
  s.check_decode(1500);
}

TEST_CASE("follower: another cache, as after a restored state or rotated keys, is indexed anew") {
  Setup s;
  s.step(1500, Check::all);
  s.cells.write(0, kCells, 5);
  CHECK(s.step(1501, Check::some));
  s.check_decode(1501);
  s.follower.drop();
  CHECK(s.follower.view() == nullptr);
  s.step(1501, Check::all);
  s.check_decode(1501);
}

TEST_CASE("follower: a first index may be put off, the queries of a prompt are sampled") {
  Setup s;
  CHECK_FALSE(s.follower.compare(s.cells.view(), 1500, Check::all));
  s.follower.follow(s.cells.view(), 1500, 2, false, s.executor);
  CHECK(s.follower.view() == nullptr);
  std::vector<float> queries(size_t(512) * 4 * 32, 0.5f);
  for (int i = 0; i < 5; ++i) s.follower.sample_queries(QueryView::contiguous(queries.data(), 512, 4, 32));
  s.follower.follow(s.cells.view(), 1500, 2, true, s.executor);
  CHECK(s.follower.view() != nullptr);
  s.check_decode(1500);
}
