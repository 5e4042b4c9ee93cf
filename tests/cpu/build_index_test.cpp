// From keys and values to the bytes that decoding reads: each piece.
#include "quorum/cpu/build_index.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"
#include "tests/support/tokens.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

// Keys and values of one sequence, and coordinates that turn, stretch and shift them.
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
    metric.mean_key.assign(32, 0.0f);
  }
  BuildInput input() { return {&kv, &shape, &options}; }
};

RowMatrix gaussian_matrix(int rows, int cols, uint64_t seed) {
  const auto values = test::gaussian_floats(int64_t(rows) * cols, seed);
  return Eigen::Map<const RowMatrix>(values.data(), rows, cols);
}

// A segment with these members and nothing else.
HeadSegment segment_of(const ClusterMembers& members) {
  HeadSegment out;
  out.num_clusters = int(members.indptr.size()) - 1;
  store_tokens(members, test::token_run(0, int(members.rows.size())), out);
  return out;
}

}  // namespace

TEST_CASE("rows are loaded as floats; NaN and Inf become zero rows and are reported") {
  Setup setup(10, ElementType::f16);
  bool non_finite = false;
  RowMatrix keys = RowMatrix::Constant(8, 24, -777.0f);
  load_rows(setup.input(), false, 1, test::token_run(2, 9), keys.data(), non_finite);
  CHECK_FALSE(non_finite);
  const auto want = setup.cache.keys(1);
  for (int i = 0; i < 7; ++i) CHECK(test::largest_difference(keys.row(i).data(), want.row(2 + i), 24) == 0.0);
  CHECK(keys.row(7).isConstant(-777.0f));
  for (const float element : {-kInfinity, kInfinity, kNan}) {
    setup.cache.set_value(3, 0, 23, element);
    non_finite = false;
    RowMatrix values(10, 24);
    load_rows(setup.input(), true, 0, test::token_run(0, 10), values.data(), non_finite);
    CHECK(non_finite);
    CHECK(values.row(3).isZero(0.0f));
    for (const int i : {2, 4}) CHECK(test::largest_difference(values.row(i).data(), setup.cache.values(0).row(i), 24) == 0.0);
    load_rows(setup.input(), true, 0, test::token_run(4, 10), values.data(), non_finite);
    CHECK(non_finite);  // stays set
  }
}

TEST_CASE("coordinates of keys: less the mean key, through the map, in parts of any number of rows") {
  for (const int num_tokens : {1, kLoadRows - 1, kLoadRows, kLoadRows + 1, 2 * kLoadRows + 5}) {
    CAPTURE(num_tokens);
    Setup setup(num_tokens + 3);
    setup.metric.forward = gaussian_matrix(24, 24, 93);
    for (size_t c = 0; c < 24; ++c) setup.metric.mean_key[c] = float(c) * 0.1f;
    bool non_finite = false;
    const RowMatrix got = key_coordinates(setup.input(), setup.metric, 1, test::token_run(3, 3 + num_tokens), non_finite);
    CHECK_FALSE(non_finite);
    REQUIRE(got.rows() == num_tokens);
    REQUIRE(got.cols() == 24);
    double worst = 0.0;
    for (int i = 0; i < num_tokens; ++i)
      for (int c = 0; c < 24; ++c) {
        double want = 0.0;
        for (int from = 0; from < 24; ++from)
          want +=
              (setup.cache.keys(1).row(3 + i)[from] - double(setup.metric.mean_key[size_t(from)])) * double(setup.metric.forward(from, c));
        worst = test::larger_error(worst, std::fabs(double(got(i, c)) - want));
      }
    CHECK(worst <= 1e-4);
    setup.cache.set_key(num_tokens + 2, 1, 5, kNan);
    CHECK(key_coordinates(setup.input(), setup.metric, 1, test::token_run(3, 3 + num_tokens), non_finite).allFinite());
    CHECK(non_finite);
  }
}

TEST_CASE("number of clusters: the mean size is cluster_size, at least one") {
  IndexOptions options;
  options.cluster_size = 16;
  CHECK(num_clusters_for(1, options.cluster_size) == 1);
  CHECK(num_clusters_for(15, options.cluster_size) == 1);
  CHECK(num_clusters_for(16, options.cluster_size) == 1);
  CHECK(num_clusters_for(160, options.cluster_size) == 10);
}

TEST_CASE("means of clusters; empty ones get zeros") {
  RowMatrix rows(5, 8);
  for (int i = 0; i < 5; ++i) rows.row(i).setConstant(float(i + 1));
  const RowMatrix means = cluster_means(rows, ClusterMembers({2, 0, 2, 2, 0}, 4));
  REQUIRE(means.rows() == 4);
  CHECK(means.row(0).isConstant(3.5f));
  CHECK(means.row(1).isZero(0.0f));
  CHECK(means.row(2).isConstant(8.0f / 3.0f));
  CHECK(means.row(3).isZero(0.0f));
}

TEST_CASE("tokens in compressed rows: ascending inside a cluster, empty and padding clusters") {
  HeadSegment out;
  out.num_clusters = 4;
  store_tokens(ClusterMembers({2, 0, 2, 0, 0, 3}, 4), test::token_run(100, 106), out);
  REQUIRE(out.cluster_indptr.size() == 17);
  CHECK(std::vector<int>(out.cluster_tokens.begin(), out.cluster_tokens.end()) == std::vector<int>{101, 103, 104, 100, 102, 105});
  const int want_indptr[6] = {0, 3, 3, 5, 6, 6};
  for (int j = 0; j < 6; ++j) CHECK(out.cluster_indptr[size_t(j)] == want_indptr[j]);
  CHECK(out.cluster_indptr.back() == 6);
  CHECK(std::vector<float>(out.size.begin(), out.size.end()) == std::vector<float>{3, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("scale of a row: its largest magnitude is 127 steps, and a row of zeros has one too") {
  const float row[8] = {1.0f, -254.0f, 3.0f, 0.0f, 127.0f, -1.0f, 2.0f, 253.0f};
  CHECK(row_scale(row, 8) == 2.0f);
  CHECK(test::near(double(row_scale(row, 1)), 1.0 / 127.0, 1e-9));
  CHECK(row_scale(row + 3, 1) > 0.0f);
}

TEST_CASE("centroids are stored rotated, in both storages") {
  const uint64_t seed = 94;
  CAPTURE(seed);
  for (const int dim : {8, 24, 64}) {
    const int k = 19;
    RowMatrix centroids = gaussian_matrix(k, dim, seed);
    centroids.row(3).setZero();
    QueryMetric metric;
    metric.signs = random_signs(dim, 1, 0);
    for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32}) {
      HeadSegment out = segment_of(ClusterMembers(std::vector<int>(30, 2), k));
      store_centroids(centroids, metric, storage, out);
      const bool int8 = storage == IndexStorage::int8;
      CHECK(out.centroids.size() == (int8 ? size_t(32 * dim) : 0));
      CHECK(out.centroid_scale.size() == (int8 ? 32 : 0));
      CHECK(out.centroids_f32.size() == (int8 ? 0 : size_t(k * dim)));
      for (int j = 0; j < k; ++j) {
        std::vector<float> x(size_t(padded_dim(dim)), 0.0f);
        std::copy_n(centroids.row(j).data(), dim, x.data());
        simd::rotate(x.data(), metric.signs.data(), dim);
        const double step = int8 ? double(out.centroid_scale[size_t(j)]) : 0.0;
        for (int c = 0; c < dim; ++c) {
          const double got = int8 ? step * (int(out.centroids[size_t(j / 16 * 16 * dim + c / 4 * 64 + j % 16 * 4 + c % 4)]) - kCentroidZero)
                                  : double(out.centroids_f32[size_t(j * dim + c)]);
          REQUIRE(test::near(got, double(x[size_t(c)]), 0.501 * step));
        }
      }
      for (size_t j = k; int8 && j < 32; ++j) CHECK(out.centroid_scale[j] == 0.0f);
    }
  }
}

TEST_CASE("means of values, in both storages") {
  const int k = 19, dim = 24;
  RowMatrix means = gaussian_matrix(k, dim, 95);
  means.row(7).setZero();
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32}) {
    HeadSegment out = segment_of(ClusterMembers(std::vector<int>(30, 2), k));
    store_value_means(means, storage, out);
    const bool int8 = storage == IndexStorage::int8;
    CHECK(out.value_mean_scale.size() == (int8 ? 32 : 0));
    REQUIRE((int8 ? out.value_means.size() : out.value_means_f32.size()) == size_t(k * dim));
    CHECK((int8 ? out.value_means_f32.empty() : out.value_means.empty()));
    for (int j = 0; j < k; ++j)
      for (int c = 0; c < dim; ++c) {
        const size_t at = size_t(j * dim + c);
        const double step = int8 ? double(out.value_mean_scale[size_t(j)]) : 0.0;
        const double got = int8 ? step * int(out.value_means[at]) : double(out.value_means_f32[at]);
        REQUIRE(test::near(got, double(means(j, c)), 0.501 * step));
      }
  }
}

TEST_CASE("spread: the mean squared residual of each cluster") {
  const int n = 60, k = 7, dim = 16;
  const RowMatrix rows = gaussian_matrix(n, dim, 96), centroids = gaussian_matrix(k, dim, 97);
  std::vector<int> assignment;
  for (int i = 0; i < n; ++i) assignment.push_back(i * 5 % 11 % 6);  // the last cluster is empty
  const ClusterMembers members(assignment, k);
  HeadSegment out = segment_of(members);
  store_spread(cluster_residuals(rows, members, centroids), out);
  REQUIRE(out.spread.size() == 16);
  for (int j = 0; j < 16; ++j) {
    double sum = 0.0, count = 0.0;
    for (int i = 0; i < n; ++i) {
      if (assignment[size_t(i)] != j) continue;
      sum += (rows.row(i) - centroids.row(j)).cast<double>().squaredNorm();
      ++count;
    }
    CAPTURE(j);
    CHECK(test::near(double(out.spread[size_t(j)]), count > 0.0 ? sum / count : 0.0, 1e-5 * sum));
  }
}

TEST_CASE("variances: of each coordinate of the keys around their centroid, to a step of the cluster's largest / 255") {
  Setup setup(70);
  setup.metric.forward = gaussian_matrix(24, 24, 97) * 0.3f;
  const int begin = 3, end = 67, k = 8;
  std::vector<int> assignment;
  for (int i = begin; i < end; ++i) assignment.push_back(i * 5 % 7);  // cluster 7 is empty
  const ClusterMembers members(assignment, k);
  HeadSegment out;
  out.num_clusters = k;
  store_tokens(members, test::token_run(begin, end), out);
  bool ignored = false;
  const RowMatrix x = key_coordinates(setup.input(), setup.metric, 1, test::token_run(begin, end), ignored);
  const RowMatrix centroids = cluster_means(x, members);
  store_residual_variance(cluster_residuals(x, members, centroids), out);
  REQUIRE(out.residual_variance.size() == size_t(k * 24));
  REQUIRE(out.variance_scale.size() == 16);
  for (int j = 0; j < k; ++j) {
    std::vector<double> variance(24, 0.0);
    for (int i = 0; i < end - begin; ++i)
      for (int c = 0; c < 24 && assignment[size_t(i)] == j; ++c)
        variance[size_t(c)] += std::pow(double(x(i, c)) - double(centroids(j, c)), 2) / members.size(j);
    const double step = double(out.variance_scale[size_t(j)]);
    CAPTURE(j);
    CHECK(test::near(step, *std::max_element(variance.begin(), variance.end()) / 255.0, 1e-5 * step + 1e-13));
    for (int c = 0; c < 24; ++c)
      CHECK(test::near(step * int(out.residual_variance[size_t(j * 24 + c)]), variance[size_t(c)], 0.501 * step));
  }
}

TEST_CASE("second moment of residuals: plain for few rows, close for many") {
  const uint64_t seed = 98;
  CAPTURE(seed);
  const int dim = 24;
  for (const int n : {1, 40, 16 * dim, 2 * 16 * dim - 1, 2 * 16 * dim, 2000, 5003}) {
    CAPTURE(n);
    RowMatrix rows = gaussian_matrix(n, dim, seed);
    for (int c = 0; c < dim; ++c) rows.col(c) *= std::pow(0.7f, float(c));
    const Eigen::MatrixXd exact = rows.cast<double>().transpose() * rows.cast<double>();
    const Eigen::MatrixXd got = moment_of(rows);
    REQUIRE(got.rows() == dim);
    CHECK((got - got.transpose()).norm() == 0.0);
    // At least 16 rows a coordinate are taken. Their sum of squares has a standard deviation of sqrt(2 / 384) = 7 % at most.
    const double tolerance = n < 2 * 16 * dim ? 1e-5 : 0.3;
    CHECK((got - exact).norm() <= tolerance * exact.norm());
    CHECK(test::near(got.trace(), exact.trace(), tolerance * exact.trace()));
  }
}

TEST_CASE("mean key: of the finite keys") {
  for (const int end : {20, 4 + kLoadRows, 5 + kLoadRows}) {
    Setup setup(end + 2);
    const auto mean = mean_key(setup.input(), 1, test::token_run(4, end));
    REQUIRE(mean.size() == 32);
    for (int c = 0; c < 32; ++c) {
      double want = 0.0;
      for (int i = 4; i < end && c < 24; ++i) want += setup.cache.keys(1).row(i)[c] / (end - 4);
      CHECK(test::near(double(mean[size_t(c)]), want, 1e-6));
    }
    setup.cache.set_key(end - 1, 1, 3, kNan);
    for (const float x : mean_key(setup.input(), 1, test::token_run(4, end))) CHECK(std::isfinite(x));
  }
}

TEST_CASE("runs of tokens are cut into segments") {
  Setup setup(10);
  setup.options.segment_tokens = 16;
  const auto segments = empty_segments(setup.input(), test::token_run(4, 40));
  REQUIRE(segments.size() == 3);
  CHECK(segments[0]->begin_token == 4);
  CHECK(segments[0]->end_token == 20);
  CHECK(segments[2]->begin_token == 36);
  CHECK(segments[2]->end_token == 40);
  CHECK(segments[1]->heads.size() == 2);
  CHECK(empty_segments(setup.input(), {}).empty());
}
