// Whole segments: what is stored agrees with the members that k-means gave, in the final coordinates; and tasks over segments and heads.
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "quorum/cpu/build_index.hpp"
#include "tests/support/near.hpp"
#include "tests/support/segment_setup.hpp"
#include "tests/support/tokens.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

constexpr int kDim = test::SegmentSetup::kDim;

struct Setup : test::SegmentSetup {
  explicit Setup(int num_tokens) : SegmentSetup(num_tokens, ElementType::f32, test::Layout::interleaved, 0.0f) { options.cluster_size = 8; }
  QueryView prompt() const { return QueryView::contiguous(data.queries.data(), 40, 4, kDim); }

  // One segment with coordinates that stay as they are.
  HeadSegment segment(int kv_head, int begin, int end) {
    HeadSegment out;
    build_head_segment(input(), metric, kv_head, test::token_run(begin, end), out);
    return out;
  }
};

// A number that its segment stores as step * an integer, or without a step as it is.
bool stored(double got, double want, double step) { return test::near(got, want, 0.501 * step + 2e-4); }

// Checks everything that a segment stores of cluster j against the tokens that it says are in it.
void check_cluster(const Setup& setup, const QueryMetric& metric, int kv_head, const HeadSegment& segment, int j) {
  std::vector<double> centroid(kDim, 0.0), value_mean(kDim, 0.0), variance(kDim, 0.0);
  const int first = segment.cluster_indptr[size_t(j)], last = segment.cluster_indptr[size_t(j) + 1];
  const double count = last - first;
  std::vector<std::vector<double>> coordinates;
  for (int at = first; at < last; ++at) {
    const int token = segment.cluster_tokens[size_t(at)];
    coordinates.emplace_back(kDim, 0.0);
    for (int c = 0; c < kDim; ++c) {
      double& x = coordinates.back()[size_t(c)];
      for (int from = 0; from < kDim; ++from)
        x += (setup.cache.keys(kv_head).row(token)[from] - double(metric.mean_key[size_t(from)])) * double(metric.forward(from, c));
      centroid[size_t(c)] += x / count;
      value_mean[size_t(c)] += setup.cache.values(kv_head).row(token)[c] / count;
    }
  }
  double spread = 0.0;
  for (const auto& x : coordinates)
    for (size_t c = 0; c < kDim; ++c) {
      variance[c] += (x[c] - centroid[c]) * (x[c] - centroid[c]) / count;
      spread += (x[c] - centroid[c]) * (x[c] - centroid[c]) / count;
    }
  CHECK(double(segment.size[size_t(j)]) == count);
  CHECK(test::near(double(segment.spread[size_t(j)]), spread, 1e-4 * spread + 1e-6));
  std::vector<float> rotated(32, 0.0f);
  for (size_t c = 0; c < kDim; ++c) rotated[c] = float(centroid[c]);
  simd::rotate(rotated.data(), metric.signs.data(), kDim);
  const bool int8 = setup.options.storage == IndexStorage::int8;
  const double key_step = int8 ? double(segment.centroid_scale[size_t(j)]) : 0.0;
  const double value_step = int8 ? double(segment.value_mean_scale[size_t(j)]) : 0.0;
  for (int c = 0; c < kDim; ++c) {
    const size_t at = size_t(j * kDim + c);
    const double key =
        int8 ? key_step * (int(segment.centroids[size_t(j / 16 * 16 * kDim + c / 4 * 64 + j % 16 * 4 + c % 4)]) - kCentroidZero)
             : double(segment.centroids_f32[at]);
    REQUIRE(stored(key, double(rotated[size_t(c)]), key_step));
    REQUIRE(
        stored(int8 ? value_step * int(segment.value_means[at]) : double(segment.value_means_f32[at]), value_mean[size_t(c)], value_step));
    if (setup.options.variance != VarianceModel::diagonal) continue;
    const double variance_step = double(segment.variance_scale[size_t(j)]);
    REQUIRE(stored(variance_step * int(segment.residual_variance[at]), variance[size_t(c)], variance_step));
  }
}

// Each token of [begin, end) once.
bool covers(const HeadSegment& segment, int begin, int end) {
  std::vector<int> tokens(segment.cluster_tokens.begin(), segment.cluster_tokens.end());
  std::sort(tokens.begin(), tokens.end());
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] != begin + int(i)) return false;
  return int(tokens.size()) == end - begin && segment.cluster_indptr.back() == end - begin;
}

}  // namespace

TEST_CASE("a segment: every token once; centroids, value means, spread and variances are those of its members") {
  Setup setup(300);
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
    for (const VarianceModel model : {VarianceModel::none, VarianceModel::shared, VarianceModel::diagonal}) {
      setup.options.storage = storage;
      setup.options.variance = model;
      const HeadSegment segment = setup.segment(1, 3, 290);
      CHECK(segment.num_clusters == 48);
      CHECK_FALSE(segment.non_finite);
      CHECK(covers(segment, 3, 290));
      CHECK(segment.residual_variance.empty() == (model != VarianceModel::diagonal));
      CHECK(segment.variance_scale.empty() == (model != VarianceModel::diagonal));
      for (int j = 0; j < segment.num_clusters; ++j)
        if (segment.size[size_t(j)] > 0.0f) check_cluster(setup, setup.metric, 1, segment, j);
    }
}

TEST_CASE("the residual moment of a segment is that of its members around their centroids") {
  Setup setup(200);
  HeadSegment segment;
  const auto tokens = test::token_run(0, 200);
  HeadSegmentBuild build(setup.input(), setup.metric, 0, tokens, segment);
  while (build.advance_clusters(setup.input())) {
  }
  const RowMatrix centroids = build.centroids();
  const Eigen::MatrixXd moment = moment_of(build.residuals());
  Eigen::MatrixXd want = Eigen::MatrixXd::Zero(kDim, kDim);
  for (int j = 0; j < segment.num_clusters; ++j)
    for (int at = segment.cluster_indptr[size_t(j)]; at < segment.cluster_indptr[size_t(j) + 1]; ++at) {
      Eigen::RowVectorXd residual(kDim);
      for (int c = 0; c < kDim; ++c) residual[c] = setup.cache.keys(0).row(segment.cluster_tokens[size_t(at)])[c] - double(centroids(j, c));
      want += residual.transpose() * residual;
    }
  CHECK((moment - want).norm() <= 1e-5 * want.norm());
}

TEST_CASE("a segment with NaN or Inf is marked, complete, and finite in what it stores") {
  for (const bool in_key : {true, false}) {
    Setup setup(120);
    setup.options.storage = IndexStorage::f32;
    if (in_key)
      setup.cache.set_key(7, 1, 3, kNan);
    else
      setup.cache.set_value(7, 1, 3, kInfinity);
    CHECK_FALSE(setup.segment(0, 0, 120).non_finite);
    CHECK_FALSE(setup.segment(1, 8, 120).non_finite);
    const HeadSegment segment = setup.segment(1, 0, 120);
    CHECK(segment.non_finite);
    CHECK(covers(segment, 0, 120));
    for (const float x : segment.centroids_f32) CHECK(std::isfinite(x));
    for (const float x : segment.value_means_f32) CHECK(std::isfinite(x));
    for (const float x : segment.spread) CHECK(std::isfinite(x));
  }
}

TEST_CASE("first segments and further ones agree with their members in the final coordinates") {
  Setup setup(700);
  setup.options.segment_tokens = 150;
  setup.options.variance = VarianceModel::diagonal;
  const QueryView prompt = setup.prompt();
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
    for (const bool with_queries : {true, false}) {
      setup.options.storage = storage;
      std::vector<QueryMetric> metrics(2);
      SerialExecutor executor;
      auto segments = build_first_segments(setup.input(), with_queries ? &prompt : nullptr, test::token_run(4, 500), metrics, executor, {});
      CHECK(segments.size() == 4);
      for (auto& segment : build_segments(setup.input(), test::token_run(500, 700), metrics, executor, {})) segments.push_back(segment);
      REQUIRE(segments.size() == 6);
      int begin = 4;
      for (const auto& segment : segments) {
        CHECK(segment->begin_token == begin);
        begin = segment->end_token;
        for (int head = 0; head < 2; ++head) {
          const HeadSegment& own = segment->heads[size_t(head)];
          CHECK(covers(own, segment->begin_token, segment->end_token));
          for (int j = 0; j < own.num_clusters; ++j)
            if (own.size[size_t(j)] > 0.0f) check_cluster(setup, metrics[size_t(head)], head, own, j);
        }
      }
      CHECK(begin == 700);
      for (const QueryMetric& metric : metrics) {
        double trace = 0.0;
        for (const float eigenvalue : metric.eigenvalues) trace += double(eigenvalue);
        CHECK(test::near(trace, 1.0, 1e-5));
        CHECK((metric.forward.transpose() * metric.forward).isIdentity(1e-4f) == !with_queries);  // plain L2 is turned alone
      }
    }
}

TEST_CASE("every pair of segment and head is done once") {
  for (const int workers : {1, 3}) {
    ThreadExecutor executor(workers);
    std::vector<std::atomic<int>> ran(20);
    for_each_head_segment(executor, 4, 5, {}, [&](int segment, int head) { ran[size_t(segment * 5 + head)].fetch_add(1); });
    for (const auto& count : ran) CHECK(count.load() == 1);
    for_each_head_segment(executor, 0, 5, {}, [&](int, int) { FAIL("there is no segment"); });
  }
}

TEST_CASE("an exception in a task is thrown to the caller once what has begun has ended; the rest is left out") {
  for (const int workers : {1, 3}) {
    ThreadExecutor executor(workers);
    std::atomic<int> begun{0}, ended{0};
    int reports = 0;
    std::string message;
    try {
      for_each_head_segment(
          executor, 4, 5,
          [&](int, int) {
            ++reports;
            return true;
          },
          [&](int segment, int head) {
            begun.fetch_add(1);
            if (segment == 2 && head == 1) throw std::length_error("too long");
            ended.fetch_add(1);
          });
    } catch (const std::length_error& error) {
      message = error.what();
    }
    CHECK(message == "too long");
    CHECK(begun.load() == ended.load() + 1);
    CHECK(reports <= ended.load());
    if (workers == 1) {
      CHECK(ended.load() == 11);
      CHECK(reports == 11);
    }
  }
}
