#include "bench/accuracy/ground_truth.hpp"

#include <doctest/doctest.h>

#include "bench/accuracy/clusters.hpp"
#include "tests/support/recorded_traces.hpp"

using accuracy::HeadTruth;
using accuracy::Mask;

namespace {

// The first KV head of the example trace.
const HeadTruth& example_head() {
  static quorum::SerialExecutor executor;
  static const quorum::io::Trace trace = quorum::io::Trace::open(quorum::test::kExampleTrace);
  static const HeadTruth head = accuracy::make_ground_truth(trace, 0, executor);
  return head;
}

}  // namespace

TEST_CASE("accuracy ground truth: all tokens read is no error and everything attained, none read leaves the always read ones") {
  quorum::SerialExecutor executor;
  const HeadTruth& head = example_head();
  const Mask all = Mask::Ones(head.num_queries, head.num_indexed()), none = Mask::Zero(head.num_queries, head.num_indexed());
  const accuracy::Quality full = evaluate(head, all, nullptr, executor), empty = evaluate(head, none, nullptr, executor);
  for (size_t row = 0; row < full.error.size(); ++row) {
    CHECK(full.error[row] < 1e-5);
    CHECK(full.attained[row] == doctest::Approx(1.0).epsilon(1e-5));
    CHECK(empty.attained[row] == doctest::Approx(head.always[Eigen::Index(row)] / head.total[Eigen::Index(row)]));
  }
}

TEST_CASE("accuracy ground truth: an exact tail is no error") {
  quorum::SerialExecutor executor;
  const HeadTruth& head = example_head();
  const Mask none = Mask::Zero(head.num_queries, head.num_indexed());
  const accuracy::TailSum rest{head.weights * head.values, head.weights.cast<double>().rowwise().sum()};
  const accuracy::Quality quality = evaluate(head, none, &rest, executor);
  CHECK(*std::max_element(quality.error.begin(), quality.error.end()) < 1e-5);
}

TEST_CASE("accuracy ground truth: one row by hand") {
  const HeadTruth& head = example_head();
  const int row = head.num_queries + 5, query = 5;
  double sum = 0.0;
  for (int i = 0; i < head.num_indexed(); ++i) {
    double score = 0.0;
    for (int c = 0; c < head.head_dim; ++c) score += double(head.queries(row, c)) * double(head.keys(i, c));
    sum += std::exp(score - head.top[row]);
  }
  CHECK(sum + head.always[row] == doctest::Approx(head.total[row]).epsilon(1e-4));
  CHECK(head.positions[size_t(query)] == head.num_tokens - head.num_queries + query);
}

TEST_CASE("accuracy clusters: every token in one cluster, means and weights add up") {
  quorum::SerialExecutor executor;
  const HeadTruth& head = example_head();
  const accuracy::Clusters clusters = accuracy::make_clusters(head, 0, executor);
  CHECK(clusters.count <= head.num_indexed() / accuracy::kClusterSize);
  CHECK(clusters.size.sum() == head.num_indexed());
  CHECK(clusters.size.minCoeff() >= 1.0);
  CHECK(double(clusters.weights.row(3).sum()) == doctest::Approx(double(head.weights.row(3).sum())).epsilon(1e-4));
  const int token = clusters.tokens[0];
  CHECK(clusters.of_token[size_t(token)] == 0);
  const Mask one = Mask::Zero(1, clusters.count).unaryExpr([](uint8_t) { return uint8_t(1); });
  CHECK(accuracy::tokens_of(clusters, one).cast<int>().sum() == head.num_indexed());
}
