// The query metric as a build on another device takes it: factors in floats, from sampled queries. Uses Eigen.
#pragma once

#include <vector>

#include "quorum/core/options.hpp"
#include "quorum/cpu/query_metric.hpp"

namespace quorum {

// Owned factors; see MetricFactorView for shapes.
struct MetricFactors {
  std::vector<float> forward, inverse;
  MetricFactorView view() const { return {forward.data(), inverse.data()}; }
};

// Factors of the metric of every KV head, as ClusterIndex::build finds them from the same queries.
//
// Shapes: prompt_queries as for ClusterIndex::build. Memory: on the host; a device wants copies. Errors: Error(invalid_argument). Cost: an
// eigendecomposition of head_dim x head_dim a KV head, some milliseconds each.
inline MetricFactors metric_factors(const AttentionShape& shape, const IndexOptions& options, const QueryView& prompt_queries) {
  validate(shape, "metric_factors");
  validate(options, "metric_factors");
  require(prompt_queries.num_rows == 0 || prompt_queries.data != nullptr, "metric_factors", "prompt_queries.data", "not null", "null");
  validate(prompt_queries, shape.head_dim, "metric_factors");
  const size_t square = size_t(shape.head_dim) * size_t(shape.head_dim);
  MetricFactors out{std::vector<float>(size_t(shape.num_kv_heads) * square), std::vector<float>(size_t(shape.num_kv_heads) * square)};
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    const cpu::MetricFactor factor = cpu::factor_metric(cpu::second_moment(&prompt_queries, shape, head), options.metric_shrinkage);
    const size_t at = size_t(head) * square;
    Eigen::Map<cpu::RowMatrix>(out.forward.data() + at, shape.head_dim, shape.head_dim) = factor.forward.cast<float>();
    Eigen::Map<cpu::RowMatrix>(out.inverse.data() + at, shape.head_dim, shape.head_dim) = factor.inverse.cast<float>();
  }
  return out;
}

}  // namespace quorum
