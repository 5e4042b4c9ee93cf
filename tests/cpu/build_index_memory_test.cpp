// What building holds in memory, counted, against what build_bytes() and kmeans_bytes() promise.
#include <doctest/doctest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/held_memory.hpp"
#include "tests/support/random.hpp"
#include "tests/support/skip.hpp"

using namespace quorum;

namespace {

// Most bytes held during `call` beyond those held before.
template <class Call>
int64_t peak_of(Call&& call) {
  const int64_t before = test::held_memory();
  test::forget_most_held_memory();
  call();
  return test::most_held_memory() - before;
}

bool can_count() {
  if (test::counts_held_memory()) return true;
  test::skip("memory cannot be counted here: a sanitizer, or a C library other than glibc");
  return false;
}

struct Case {
  int head_dim, num_kv_heads, num_tokens, segment_tokens, workers;
  bool queries = false;
  VarianceModel variance = VarianceModel::shared;
  IndexStorage storage = IndexStorage::int8;
  int cluster_size = 16;
};

// The allocator rounds large blocks up to pages, and small things such as tables of segments are not in the formula.
constexpr int64_t kSlack = 256 * 1024;

void check_build(const Case& c) {
  const AttentionShape shape{2 * c.num_kv_heads, c.num_kv_heads, c.head_dim, 0.0f};
  IndexOptions options;
  options.segment_tokens = c.segment_tokens;
  options.variance = c.variance;
  options.storage = c.storage;
  options.cluster_size = c.cluster_size;
  const auto data = test::clustered_data({c.num_tokens, shape.num_kv_heads, shape.num_qo_heads, c.head_dim, 64, 121});
  const test::TestCache cache({c.num_tokens, shape.num_kv_heads, c.head_dim, ElementType::f16, test::Layout::nhd}, data.keys, data.values);
  const QueryView prompt = QueryView::contiguous(data.queries.data(), 64, shape.num_qo_heads, c.head_dim);
  ThreadExecutor executor(c.workers);
  ClusterIndex index(shape, options);
  const int64_t peak = peak_of([&] { index.build(cache.view(), c.queries ? &prompt : nullptr, executor); }) - index.bytes();
  const int64_t promised = ClusterIndex::build_bytes(shape, options, c.num_tokens, c.workers);
  const std::string what = "head_dim " + std::to_string(c.head_dim) + ", " + std::to_string(c.num_kv_heads) + " KV heads, " +
                           std::to_string(c.num_tokens) + " tokens in segments of " + std::to_string(c.segment_tokens) + ", " +
                           std::to_string(c.workers) + " workers, queries " + std::to_string(c.queries);
  CAPTURE(what);
  CHECK(double(peak) <= 1.1 * double(promised) + double(kSlack));
  if (c.workers == 1) CHECK(3 * peak >= promised);  // several may happen to work one after the other
}

}  // namespace

TEST_CASE("the counter counts") {
  if (!can_count()) return;
  void* volatile pointer = nullptr;  // compilers may leave out what nothing sees
  CHECK(peak_of([&] {
          pointer = std::malloc(100000);
          pointer = std::realloc(pointer, 300000);
          std::free(pointer);
        }) >= 300000);
  CHECK(peak_of([&] {
          pointer = std::calloc(10, 10000);
          std::free(pointer);
          pointer = std::aligned_alloc(64, 64000);
          std::free(pointer);
        }) >= 100000);
  CHECK(peak_of([&] {
          const std::vector<float> x(50000);
          pointer = const_cast<float*>(x.data());
        }) >= 200000);
  const int64_t before = test::held_memory();
  pointer = std::malloc(5000);
  CHECK(test::held_memory() - before >= 5000);
  std::free(pointer);
  CHECK(test::held_memory() == before);
}

TEST_CASE("k-means holds no more than kmeans_bytes, and not much less") {
  if (!can_count()) return;
  for (const int dim : {8, 64, 72, 128, 256})
    for (const int num_clusters : {1, 16, 130, 500, 2000}) {
      const int n = 2000;
      const auto values = test::gaussian_floats(n * dim, 122);
      CAPTURE(dim);
      CAPTURE(num_clusters);
      const int64_t peak = peak_of([&] { cpu::kmeans(values.data(), n, dim, num_clusters, 4); });
      const int64_t promised = cpu::kmeans_bytes(n, dim, num_clusters);
      CHECK(peak <= promised + 32 * 1024);
      CHECK(2 * peak >= promised);
    }
}

TEST_CASE("k-means of equal rows, with restarts in every round, likewise") {
  if (!can_count()) return;
  const std::vector<float> values(2000 * 64, 1.0f);
  CHECK(peak_of([&] { cpu::kmeans(values.data(), 2000, 64, 1000, 4); }) <= cpu::kmeans_bytes(2000, 64, 1000) + 32 * 1024);
}

TEST_CASE("building holds no more than build_bytes besides the index, and not much less") {
  if (!can_count()) return;
  for (const int head_dim : {64, 128, 256})
    for (const int workers : {1, 2})
      for (const bool queries : {false, true}) {
        check_build({head_dim, 2, 2100, 8192, workers, queries});  // one segment
        check_build({head_dim, 2, 4100, 1024, workers, queries});  // several
      }
}

TEST_CASE("the same for every storage and variance model, few heads, many heads, small and large clusters") {
  if (!can_count()) return;
  for (const VarianceModel variance : {VarianceModel::none, VarianceModel::shared, VarianceModel::diagonal})
    for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
      check_build({128, 2, 3000, 1024, 2, true, variance, storage});
  check_build({128, 1, 6000, 8192, 1, true, VarianceModel::diagonal});
  check_build({64, 8, 2000, 512, 2, true, VarianceModel::diagonal});
  check_build({128, 2, 2000, 8192, 1, true, VarianceModel::shared, IndexStorage::int8, 1});
  check_build({128, 2, 2000, 8192, 1, true, VarianceModel::shared, IndexStorage::f32, 4});
  check_build({128, 2, 4000, 8192, 1, true, VarianceModel::shared, IndexStorage::int8, 256});
}

TEST_CASE("an append holds no more than a build of as many tokens") {
  if (!can_count()) return;
  const AttentionShape shape{4, 2, 64, 0.0f};
  const auto data = test::clustered_data({5000, 2, 4, 64, 1, 123});
  const test::TestCache cache({5000, 2, 64, ElementType::f16, test::Layout::nhd}, data.keys, data.values);
  for (const int workers : {1, 2}) {
    ThreadExecutor executor(workers);
    ClusterIndex index(shape, {});
    index.build(cache.view().first(2000), executor);
    const int64_t bytes = index.bytes();
    const int64_t peak = peak_of([&] { index.append(cache.view(), executor); }) - (index.bytes() - bytes);
    REQUIRE(index.view().indexed_end == 5000);
    CHECK(double(peak) <= 1.1 * double(ClusterIndex::build_bytes(shape, {}, 3000, workers)) + double(kSlack));
  }
}

TEST_CASE("bytes() is what an index keeps allocated, but for lists, tables and the allocator's own; a fork keeps next to nothing") {
  if (!can_count()) return;
  for (const int num_kv_heads : {2, 8}) {  // arrays by themselves, and in one block on huge pages
    const AttentionShape shape{num_kv_heads, num_kv_heads, 64, 0.0f};
    const int n = num_kv_heads == 2 ? 3000 : 20000;
    const test::TestCache cache({n, num_kv_heads, 64, ElementType::f16, test::Layout::nhd},
                                test::gaussian_floats(int64_t(n) * num_kv_heads * 64, 5),
                                test::gaussian_floats(int64_t(n) * num_kv_heads * 64, 6));
    ThreadExecutor executor(2);
    const int64_t before = test::held_memory();
    ClusterIndex index(shape, {});
    index.build(cache.view(), executor);
    const auto check = [&](const char* when) {
      const double own = double(test::held_memory() - before), bytes = double(index.bytes());
      CAPTURE(when);
      CHECK(own >= bytes);
      // A block that starts on a huge page reserves addresses on both sides, which nobody touches.
      CHECK(own <= 1.02 * bytes + 64 * 1024 + (bytes >= double(kHugePage) ? 3.0 * double(kHugePage) : 0.0));
    };
    check("built");
    const int64_t with_index = test::held_memory();
    {
      const ClusterIndex fork = index;
      CHECK(test::held_memory() - with_index <= 16 * 1024);
    }
    index.erase(100, 1900);
    check("erased");
    index.append(cache.view(), executor);
    check("appended");
  }
}

TEST_CASE("build_bytes: nothing to build, errors, and growth") {
  const AttentionShape shape{4, 2, 64, 0.0f};
  CHECK(ClusterIndex::build_bytes(shape, {}, 20000, 2) > ClusterIndex::build_bytes(shape, {}, 20000, 1));
  CHECK(ClusterIndex::build_bytes(shape, {}, 20000, 1) > ClusterIndex::build_bytes(shape, {}, 10000, 1));
  CHECK(ClusterIndex::build_bytes(shape, {}, 0, 1) >= 0);
  CHECK_THROWS_AS(ClusterIndex::build_bytes({4, 3, 64, 0.0f}, {}, 100, 1), Error);
  IndexOptions options;
  options.iterations = 0;
  CHECK_THROWS_AS(ClusterIndex::build_bytes(shape, options, 100, 1), Error);
}
