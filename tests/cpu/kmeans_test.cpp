// k-means: finds separated clusters, never worsens, is deterministic, survives every degenerate input.
#include "quorum/cpu/kmeans.hpp"

#include <doctest/doctest.h>

#include <set>
#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

RowMatrix gaussian_rows(int n, int dim, uint64_t seed) {
  const auto values = test::gaussian_floats(int64_t(n) * dim, seed);
  return Eigen::Map<const RowMatrix>(values.data(), n, dim);
}

// Sum of squared distances of rows to the mean of their cluster.
double spread(const RowMatrix& rows, const std::vector<int>& assignment, int num_clusters) {
  Eigen::MatrixXd means = Eigen::MatrixXd::Zero(num_clusters, rows.cols());
  Eigen::VectorXd counts = Eigen::VectorXd::Zero(num_clusters);
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    means.row(assignment[size_t(i)]) += rows.row(i).cast<double>();
    counts[assignment[size_t(i)]] += 1.0;
  }
  double sum = 0.0;
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    const int j = assignment[size_t(i)];
    sum += (rows.row(i).cast<double>() - means.row(j) / counts[j]).squaredNorm();
  }
  return sum;
}

}  // namespace

TEST_CASE("largest element: first of equals, any length, NaN never wins") {
  test::Random random(71);
  for (int n = 1; n <= 70; ++n) {
    std::vector<float> x(size_t(n), 0.0f);
    for (float& element : x) element = float(random.below(5));
    CAPTURE(n);
    CHECK(arg_max(x.data(), n) == int(std::max_element(x.begin(), x.end()) - x.begin()));
  }
  for (const int n : {1, 3, 20, 33}) {
    std::vector<float> x(size_t(n), kNan);
    CHECK(arg_max(x.data(), n) == 0);
    x.back() = -5.0f;
    CHECK(arg_max(x.data(), n) == n - 1);
  }
}

TEST_CASE("rows go to the nearest centroid, and changes are counted") {
  const int n = 600, k = 37, dim = 24;  // more rows than one block of the product
  const RowMatrix rows = gaussian_rows(n, dim, 1), centroids = gaussian_rows(k, dim, 2);
  std::vector<int> assignment(n, -1);
  CHECK(assign_to_nearest(rows, centroids, assignment) == n);
  CHECK(assign_to_nearest(rows, centroids, assignment) == 0);
  int worse = 0;
  for (int i = 0; i < n; ++i) {
    const double got = (rows.row(i) - centroids.row(assignment[size_t(i)])).cast<double>().squaredNorm();
    for (int j = 0; j < k; ++j) worse += (rows.row(i) - centroids.row(j)).cast<double>().squaredNorm() < got - 1e-4;
  }
  CHECK(worse == 0);
}

TEST_CASE("centroids are means; empty clusters keep theirs") {
  RowMatrix rows(4, 8), centroids = RowMatrix::Constant(3, 8, 9.0f);
  for (int i = 0; i < 4; ++i) rows.row(i).setConstant(float(i));
  std::vector<int> counts(3);
  update_centroids(rows, {0, 2, 2, 2}, centroids, counts);
  CHECK(counts == std::vector<int>{1, 0, 3});
  CHECK(centroids(0, 0) == 0.0f);
  CHECK(centroids(1, 0) == 9.0f);
  CHECK(centroids(2, 7) == 2.0f);
}

TEST_CASE("empty clusters restart at the worst represented rows") {
  RowMatrix rows(4, 8);
  const float at[4] = {0.0f, 1.0f, 7.0f, -3.0f};
  for (int i = 0; i < 4; ++i) rows.row(i).setConstant(at[i]);
  RowMatrix centroids = RowMatrix::Zero(3, 8);
  CHECK(restart_empty_clusters(rows, {0, 0, 0, 0}, centroids, {4, 0, 0}));
  CHECK(centroids(0, 0) == 0.0f);
  CHECK(centroids(1, 0) == 7.0f);
  CHECK(centroids(2, 0) == -3.0f);
  CHECK_FALSE(restart_empty_clusters(rows, {0, 1, 2, 0}, centroids, {2, 1, 1}));
}

TEST_CASE("separated clusters are found") {
  const uint64_t seed = 72;
  CAPTURE(seed);
  const int k = 12, each = 30, dim = 16;  // one after the other, so that the uniform start has a row of each
  RowMatrix rows = gaussian_rows(k * each, dim, seed) * 0.1f;
  const RowMatrix centres = gaussian_rows(k, dim, seed + 1) * 10.0f;
  for (int i = 0; i < k * each; ++i) rows.row(i) += centres.row(i / each);
  const auto assignment = kmeans(rows, k, 20);
  std::set<int> used;
  int wrong = 0;
  for (int i = 0; i < k * each; ++i) {
    wrong += assignment[size_t(i)] != assignment[size_t(i / each * each)];
    used.insert(assignment[size_t(i)]);
  }
  CHECK(wrong == 0);
  CHECK(int(used.size()) == k);
}

TEST_CASE("more rounds do not spread clusters further, and it is deterministic") {
  const RowMatrix rows = gaussian_rows(500, 32, 73);
  double previous = double(kInfinity);
  for (const int rounds : {1, 2, 5, 20}) {
    const auto assignment = kmeans(rows, 31, rounds);
    CHECK(assignment == kmeans(rows, 31, rounds));
    const double now = spread(rows, assignment, 31);
    CHECK(now <= previous * 1.001);  // a restart of an empty cluster may cost a little
    previous = now;
  }
  CHECK(previous < 0.9 * spread(rows, std::vector<int>(500, 0), 1));
}

TEST_CASE("degenerate inputs give valid assignments") {
  const auto valid = [](const RowMatrix& rows, int k) {
    const auto assignment = kmeans(rows, k, 10);
    REQUIRE(assignment.size() == size_t(rows.rows()));
    for (const int j : assignment) REQUIRE((j >= 0 && j < k));
  };
  valid(gaussian_rows(1, 8, 1), 1);
  valid(gaussian_rows(20, 8, 2), 20);            // as many clusters as rows
  valid(RowMatrix::Constant(100, 16, 3.0f), 6);  // all equal
  valid(RowMatrix::Zero(100, 16), 6);            // all zero
  valid(RowMatrix::Constant(50, 8, 1e20f), 4);   // squares overflow
  RowMatrix two = RowMatrix::Zero(64, 8);
  two.bottomRows(32).setOnes();
  valid(two, 10);  // fewer different rows than clusters
}
