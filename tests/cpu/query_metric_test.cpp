// The coordinates of the index keep scores, whiten queries and order residuals.
#include "quorum/cpu/query_metric.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

// Queries with a strong direction, for two KV heads of two query heads each.
std::vector<float> anisotropic_queries(int num_rows, int num_qo_heads, int head_dim, uint64_t seed) {
  auto queries = test::gaussian_floats(int64_t(num_rows) * num_qo_heads * head_dim, seed);
  for (size_t i = 0; i < queries.size(); ++i) queries[i] *= i % size_t(head_dim) < 4 ? 5.0f : 0.5f;
  return queries;
}

}  // namespace

TEST_CASE("second moment of the group's queries: trace head_dim") {
  const AttentionShape shape{4, 2, 16, 0.0f};
  const auto queries = anisotropic_queries(300, 4, 16, 81);
  const QueryView view = QueryView::contiguous(queries.data(), 300, 4, 16);
  const Eigen::MatrixXd moment = second_moment(&view, shape, 1);
  CHECK(test::near(moment.trace(), 16.0, 1e-4));
  CHECK((moment - moment.transpose()).cwiseAbs().maxCoeff() <= 1e-5);
  // By hand: mean of q q^T over query heads 2 and 3.
  Eigen::MatrixXd want = Eigen::MatrixXd::Zero(16, 16);
  for (int row = 0; row < 300; ++row)
    for (const int head : {2, 3}) {
      const Eigen::VectorXd q = Eigen::Map<const Eigen::VectorXf>(queries.data() + (row * 4 + head) * 16, 16).cast<double>();
      want += q * q.transpose();
    }
  CHECK((moment - 16.0 / want.trace() * want).cwiseAbs().maxCoeff() <= 1e-4);
}

TEST_CASE("without usable queries the metric is the identity") {
  const AttentionShape shape{2, 1, 8, 0.0f};
  const auto is_identity = [](const Eigen::MatrixXd& m) { return m == Eigen::MatrixXd::Identity(8, 8); };
  CHECK(is_identity(second_moment(nullptr, shape, 0)));
  std::vector<float> queries(3 * 2 * 8, 0.0f);
  QueryView view = QueryView::contiguous(queries.data(), 3, 2, 8);
  CHECK(is_identity(second_moment(&view, shape, 0)));  // all zero
  std::fill(queries.begin(), queries.end(), kNan);
  CHECK(is_identity(second_moment(&view, shape, 0)));
  std::fill(queries.begin(), queries.end(), 1e30f);  // squares overflow
  CHECK(is_identity(second_moment(&view, shape, 0)));
  view.num_rows = 0;
  CHECK(is_identity(second_moment(&view, shape, 0)));
  const MetricFactor factor = factor_metric(second_moment(&view, shape, 0), 0.1f);
  CHECK((factor.forward * factor.forward.transpose() - Eigen::MatrixXd::Identity(8, 8)).cwiseAbs().maxCoeff() <= 1e-12);
}

TEST_CASE("a NaN row is left out") {
  const AttentionShape shape{1, 1, 8, 0.0f};
  auto queries = test::gaussian_floats(10 * 8, 82);
  const QueryView first_nine = QueryView::contiguous(queries.data(), 9, 1, 8), all = QueryView::contiguous(queries.data(), 10, 1, 8);
  const Eigen::MatrixXd want = second_moment(&first_nine, shape, 0);
  queries[9 * 8 + 3] = kNan;
  CHECK((second_moment(&all, shape, 0) - want).cwiseAbs().maxCoeff() <= 1e-6);
}

TEST_CASE("the factor of the metric, and its inverse") {
  const AttentionShape shape{1, 1, 24, 0.0f};
  const auto queries = anisotropic_queries(200, 1, 24, 83);
  const QueryView view = QueryView::contiguous(queries.data(), 200, 1, 24);
  const Eigen::MatrixXd moment = second_moment(&view, shape, 0), identity = Eigen::MatrixXd::Identity(24, 24);
  const MetricFactor factor = factor_metric(moment, 0.05f);
  CHECK((factor.inverse * factor.forward - identity).cwiseAbs().maxCoeff() <= 1e-9);
  // The square root of the moment, scaled to trace 24 and shrunk: M' - a I squared is the moment again, up to its scale.
  const Eigen::MatrixXd metric = factor.forward * factor.forward.transpose();
  CHECK(test::near(metric.trace(), 24.0, 1e-9));
  Eigen::MatrixXd square = (metric - double(0.05f) * identity) * (metric - double(0.05f) * identity);
  square *= 24.0 / square.trace();
  CHECK((square - moment).cwiseAbs().maxCoeff() <= 1e-9);
  // Shrunk all the way it is plain L2.
  const MetricFactor plain = factor_metric(moment, 1.0f);
  CHECK((plain.forward * plain.forward.transpose() - identity).cwiseAbs().maxCoeff() <= 1e-12);
}

TEST_CASE("signs are random, of one head and seed, and the same again") {
  const auto signs = random_signs(256, 1, 0);
  double sum = 0.0;
  for (const float sign : signs) {
    CHECK(std::fabs(sign) == 1.0f);
    sum += double(sign);
  }
  CHECK(std::fabs(sum) <= 5.0 * 16.0);
  CHECK(signs == random_signs(256, 1, 0));
  CHECK(signs != random_signs(256, 1, 1));
  CHECK(signs != random_signs(256, 2, 0));
}

TEST_CASE("the packed inverse: blocks of 16 outputs, f16, zero beyond head_dim") {
  const int d = 24;
  const auto values = test::gaussian_floats(d * d, 84);
  const Eigen::MatrixXd inverse = Eigen::Map<const RowMatrix>(values.data(), d, d).cast<double>();
  const auto packed = pack_inverse(inverse);
  REQUIRE(packed.size() == size_t(32 * d));
  int wrong = 0;
  for (int out = 0; out < 32; ++out)
    for (int in = 0; in < d; ++in) {
      const float got = to_float(packed[size_t((out / 16 * d + in) * 16 + out % 16)]);
      wrong += !test::near(got, out < d ? inverse(out, in) : 0.0, out < d ? std::fabs(inverse(out, in)) * 0x1p-10 : 0.0);
    }
  CHECK(wrong == 0);
}

TEST_CASE("the turn makes the residual moment diagonal with trace 1") {
  const int d = 16;
  const auto values = test::gaussian_floats(d * 40, 85);
  const Eigen::MatrixXd rows = Eigen::Map<const RowMatrix>(values.data(), 40, d).cast<double>();
  const Eigen::MatrixXd moment = rows.transpose() * rows;
  AlignedVector<float> eigenvalues;
  const Eigen::MatrixXd turn = align_to_residuals(moment, eigenvalues);
  CHECK((turn.transpose() * turn - Eigen::MatrixXd::Identity(d, d)).cwiseAbs().maxCoeff() <= 1e-10);
  Eigen::MatrixXd turned = turn.transpose() * moment * turn / moment.trace();
  double sum = 0.0;
  for (int c = 0; c < d; ++c) {
    CHECK(test::near(turned(c, c), double(eigenvalues[size_t(c)]), 1e-6));
    sum += double(eigenvalues[size_t(c)]);
    turned(c, c) = 0.0;
  }
  CHECK(turned.cwiseAbs().maxCoeff() <= 1e-10);
  CHECK(test::near(sum, 1.0, 1e-5));
}

TEST_CASE("a zero or non-finite residual moment changes nothing") {
  for (const double element : {0.0, double(kNan), double(kInfinity)}) {
    AlignedVector<float> eigenvalues;
    const Eigen::MatrixXd turn = align_to_residuals(Eigen::MatrixXd::Constant(8, 8, element), eigenvalues);
    CHECK(turn == Eigen::MatrixXd::Identity(8, 8));
    for (int c = 0; c < 8; ++c) CHECK(eigenvalues[size_t(c)] == 0.125f);
  }
}
