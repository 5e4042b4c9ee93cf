// From keys and values to the bytes that decoding reads.
#include "quorum/cpu/build_index.hpp"

#include <doctest/doctest.h>

#include <numeric>
#include <stdexcept>
#include <vector>

#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

// Keys and values of one sequence, and a segment of them with a given assignment of tokens to clusters.
struct Setup {
  AttentionShape shape{2, 2, 24, 0.0f};
  IndexOptions options;
  test::TestCache cache;
  KvCacheView kv;
  QueryMetric metric;

  explicit Setup(int num_tokens, ElementType type = ElementType::f32)
      : cache({num_tokens, 2, 24, type, test::Layout::interleaved}, test::gaussian_floats(num_tokens * 48, 91),
              test::gaussian_floats(num_tokens * 48, 92)),
        kv(cache.view()) {
    options.cluster_size = 8;
    metric.forward = RowMatrix::Identity(24, 24);
    metric.signs = random_signs(24, 1, 0);
    metric.mean_key.assign(24, 0.0f);
  }
  BuildInput input() { return {&kv, &shape, &options}; }
};

}  // namespace

TEST_CASE("rows are loaded as floats; NaN and Inf become zero rows and are reported") {
  Setup setup(10, ElementType::f16);
  bool non_finite = false;
  const RowMatrix keys = load_rows(setup.input(), false, 1, 2, 9, non_finite);
  CHECK_FALSE(non_finite);
  const auto want = setup.cache.keys(1);
  REQUIRE(keys.rows() == 7);
  for (int i = 0; i < 7; ++i) CHECK(test::largest_difference(keys.row(i).data(), want.row(2 + i), 24) == 0.0);
  setup.cache.set_value(3, 0, 23, -kInfinity);
  const RowMatrix values = load_rows(setup.input(), true, 0, 0, 10, non_finite);
  CHECK(non_finite);
  CHECK(values.row(3).isZero());
  CHECK(values.row(4).allFinite());
  CHECK_FALSE(values.row(4).isZero());
}

TEST_CASE("number of clusters: the mean size is cluster_size, at least one") {
  IndexOptions options;
  options.cluster_size = 16;
  CHECK(num_clusters_for(1, options) == 1);
  CHECK(num_clusters_for(15, options) == 1);
  CHECK(num_clusters_for(16, options) == 1);
  CHECK(num_clusters_for(160, options) == 10);
}

TEST_CASE("tokens in compressed rows: ascending inside a cluster, empty and padding clusters") {
  HeadSegment out;
  out.num_clusters = 4;
  store_tokens({2, 0, 2, 0, 0, 3}, 100, out);
  REQUIRE(out.cluster_indptr.size() == 17);
  CHECK(std::vector<int>(out.cluster_tokens.begin(), out.cluster_tokens.end()) == std::vector<int>{101, 103, 104, 100, 102, 105});
  const int want_indptr[6] = {0, 3, 3, 5, 6, 6};
  for (int j = 0; j < 6; ++j) CHECK(out.cluster_indptr[size_t(j)] == want_indptr[j]);
  CHECK(out.cluster_indptr.back() == 6);
  CHECK(std::vector<float>(out.size.begin(), out.size.end()) == std::vector<float>{3, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("a segment: centroids, value means, spread and variances of its clusters, in both storages") {
  Setup setup(70);
  setup.options.variance = VarianceModel::diagonal;
  const int begin = 3, end = 67, num_clusters = 8;  // 64 tokens, clusters of 8
  std::vector<int> assignment;
  for (int i = begin; i < end; ++i) assignment.push_back(i * 5 % 7);  // cluster 7 stays empty
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32}) {
    setup.options.storage = storage;
    const HeadSegment segment = encode_segment(setup.input(), setup.metric, 1, begin, end, assignment);
    CHECK(segment.num_clusters == num_clusters);
    CHECK_FALSE(segment.non_finite);
    CHECK(segment.centroids.empty() == (storage == IndexStorage::f32));
    CHECK(segment.centroids_f32.empty() == (storage == IndexStorage::int8));
    const auto keys = setup.cache.keys(1), values = setup.cache.values(1);
    for (int j = 0; j < num_clusters; ++j) {
      CAPTURE(j);
      std::vector<double> key_mean(24, 0.0), value_mean(24, 0.0), variance(24, 0.0);
      double count = 0.0;
      for (int i = begin; i < end; ++i)
        if (assignment[size_t(i - begin)] == j) ++count;
      for (int c = 0; c < 24 && count > 0.0; ++c) {
        for (int i = begin; i < end; ++i) {
          if (assignment[size_t(i - begin)] != j) continue;
          key_mean[size_t(c)] += keys.row(i)[c] / count;
          value_mean[size_t(c)] += values.row(i)[c] / count;
        }
        for (int i = begin; i < end; ++i)
          if (assignment[size_t(i - begin)] == j) variance[size_t(c)] += std::pow(keys.row(i)[c] - key_mean[size_t(c)], 2) / count;
      }
      CHECK(double(segment.size[size_t(j)]) == count);
      CHECK(test::near(segment.spread[size_t(j)], std::accumulate(variance.begin(), variance.end(), 0.0), 1e-4));
      std::vector<float> x(32, 0.0f);
      for (size_t c = 0; c < 24; ++c) x[c] = float(key_mean[c]);
      simd::rotate(x.data(), setup.metric.signs.data(), 24);
      const bool int8 = storage == IndexStorage::int8;
      // A row scale is the largest magnitude / 127, rounding half of it.
      const double key_step = int8 ? double(segment.centroid_scale[size_t(j)]) : 0.0;
      const double value_step = int8 ? double(segment.value_mean_scale[size_t(j)]) : 0.0;
      const double variance_step = double(segment.variance_scale[size_t(j)]);
      for (int c = 0; c < 24; ++c) {
        const size_t at = size_t(j * 24 + c);
        const double centroid = int8 ? key_step * (int(segment.centroids[size_t((c / 4) * 64 + j * 4 + c % 4)]) - kCentroidZero)
                                     : double(segment.centroids_f32[at]);
        const double mean = int8 ? value_step * int(segment.value_means[at]) : double(segment.value_means_f32[at]);
        CHECK(test::near(centroid, double(x[size_t(c)]), 0.501 * key_step + 1e-5));
        CHECK(test::near(mean, value_mean[size_t(c)], 0.501 * value_step + 1e-5));
        CHECK(test::near(variance_step * int(segment.residual_variance[at]), variance[size_t(c)], 0.501 * variance_step + 1e-5));
      }
    }
  }
}

TEST_CASE("variances are stored for the diagonal model alone") {
  Setup setup(40);
  const std::vector<int> assignment(40, 0);
  for (const VarianceModel model : {VarianceModel::none, VarianceModel::shared}) {
    setup.options.variance = model;
    const HeadSegment segment = encode_segment(setup.input(), setup.metric, 0, 0, 40, assignment);
    CHECK(segment.residual_variance.empty());
    CHECK(segment.variance_scale.empty());
    CHECK_FALSE(segment.spread.empty());
  }
}

TEST_CASE("a segment with NaN is marked, and its other clusters are as they would be") {
  Setup setup(40);
  const std::vector<int> assignment(40, 0);
  setup.cache.set_key(7, 1, 3, kNan);
  CHECK(encode_segment(setup.input(), setup.metric, 1, 0, 40, assignment).non_finite);
  CHECK_FALSE(encode_segment(setup.input(), setup.metric, 0, 0, 40, assignment).non_finite);
  setup.cache.set_value(9, 0, 3, kInfinity);
  CHECK(encode_segment(setup.input(), setup.metric, 0, 0, 40, assignment).non_finite);
}

TEST_CASE("mean key") {
  Setup setup(20);
  const auto mean = mean_key(setup.input(), 1, 4, 20);
  const auto keys = setup.cache.keys(1);
  for (int c = 0; c < 24; ++c) {
    double want = 0.0;
    for (int i = 4; i < 20; ++i) want += keys.row(i)[c] / 16.0;
    CHECK(test::near(mean[size_t(c)], want, 1e-6));
  }
}

TEST_CASE("runs of tokens are cut into segments") {
  Setup setup(10);
  setup.options.segment_tokens = 16;
  const auto segments = empty_segments(setup.input(), 4, 40);
  REQUIRE(segments.size() == 3);
  CHECK(segments[0]->begin_token == 4);
  CHECK(segments[0]->end_token == 20);
  CHECK(segments[2]->begin_token == 36);
  CHECK(segments[2]->end_token == 40);
  CHECK(segments[1]->heads.size() == 2);
  CHECK(empty_segments(setup.input(), 4, 4).empty());
}

TEST_CASE("an exception in a task is thrown to the caller after all tasks have ended") {
  ThreadExecutor executor(3);
  std::atomic<int> ran{0};
  bool caught = false;
  try {
    for_each_head_segment(executor, 4, 5, [&](int segment, int head) {
      ran.fetch_add(1);
      if (segment == 2 && head == 1) throw std::length_error("too long");
    });
  } catch (const std::length_error& error) {
    caught = std::string(error.what()) == "too long";
  }
  CHECK(caught);
  CHECK(ran.load() == 20);
}
