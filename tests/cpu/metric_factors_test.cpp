#include "quorum/cpu/metric_factors.hpp"

#include <doctest/doctest.h>

#include "tests/support/error_message.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

constexpr AttentionShape kShape{4, 2, 16, 0.0f};

std::vector<float> skewed_queries(int rows) {
  test::Random random(3);
  std::vector<float> queries(size_t(rows * 4 * 16));
  for (size_t i = 0; i < queries.size(); ++i) queries[i] = float(random.gaussian()) * (i % 16 < 3 ? 5.0f : 1.0f);
  return queries;
}

}  // namespace

TEST_CASE("metric factors: forward times its transpose is the metric, inverse undoes forward, for every KV head") {
  const auto queries = skewed_queries(40);
  const auto view = QueryView::contiguous(queries.data(), 40, 4, 16);
  const IndexOptions options;
  const MetricFactors factors = metric_factors(kShape, options, view);
  CHECK(factors.forward.size() == 2 * 16 * 16);
  CHECK(factors.view().forward == factors.forward.data());
  CHECK(factors.view().inverse == factors.inverse.data());
  for (int h = 0; h < 2; ++h) {
    const cpu::MetricFactor factor = cpu::factor_metric(cpu::second_moment(&view, kShape, h), options.metric_shrinkage);
    const Eigen::MatrixXd metric = factor.forward * factor.forward.transpose();
    const float *forward = factors.forward.data() + h * 256, *inverse = factors.inverse.data() + h * 256;
    for (int a = 0; a < 16; ++a)
      for (int b = 0; b < 16; ++b) {
        double product = 0.0, identity = 0.0;
        for (int c = 0; c < 16; ++c) {
          product += double(forward[a * 16 + c]) * double(forward[b * 16 + c]);
          identity += double(inverse[a * 16 + c]) * double(forward[c * 16 + b]);
        }
        CHECK(test::near(product, metric(a, b), 1e-4));
        CHECK(test::near(identity, a == b ? 1.0 : 0.0, 1e-5));
      }
  }
}

TEST_CASE("metric factors: without queries plain L2") {
  const MetricFactors factors = metric_factors(kShape, {}, {});
  for (int a = 0; a < 16; ++a)
    for (int b = 0; b < 16; ++b) {
      double product = 0.0;
      for (int c = 0; c < 16; ++c) product += double(factors.forward[size_t(a * 16 + c)]) * double(factors.forward[size_t(b * 16 + c)]);
      CHECK(test::near(product, a == b ? 1.0 : 0.0, 1e-6));
    }
}

TEST_CASE("metric factors: errors") {
  CHECK(test::argument_error([] {
          metric_factors({3, 2, 16, 0.0f}, {}, {});
        }) == "metric_factors: shape.num_qo_heads must be a multiple of shape.num_kv_heads, got 3");
  IndexOptions options;
  options.metric_shrinkage = 2.0f;
  CHECK(test::argument_error([&] { metric_factors(kShape, options, {}); }) ==
        "metric_factors: options.metric_shrinkage must be in [1e-4, 1], got 2");
  QueryView view;
  view.num_rows = 3;
  CHECK(test::argument_error([&] { metric_factors(kShape, {}, view); }) ==
        "metric_factors: prompt_queries.data must be not null, got null");
}
