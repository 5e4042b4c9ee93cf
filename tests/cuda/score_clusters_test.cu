#include "quorum/cuda/score_clusters.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/score_reference.hpp"
#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

CaseOptions small_case(int head_dim, int group) {
  CaseOptions options;
  options.shape = {2 * group, 2, head_dim, 0.0f};
  options.num_tokens = {500, 300};
  options.index.window_tokens = 9;
  options.index.recluster_every = 64;
  return options;
}
DecodeOptions sparse_options() {
  DecodeOptions options;
  options.dense_below = 0;
  return options;
}

// Log of the sum of the states that the blocks of a row left for a head.
double lse_of(const std::vector<AttentionState>& states, const cuda::StepParams& p, int row, int g) {
  AttentionState all;
  for (int tile = 0; tile < p.score_tiles; ++tile) all = merge(all, states[size_t((row * p.score_tiles + tile) * p.group + g)]);
  return double(all.lse());
}

void check_row(const HostCase& host, const StepCase& step, int row, bool shared_variance, const CaseResult& always) {
  const cuda::StepParams& p = step.params;
  const int slots = host.index(p.sequence_of(row)).heads[p.kv_head_of(row)].num_cluster_slots();
  const std::vector<float> weights = download(p.workspace.log_weight + int64_t(row) * p.max_slots * p.group, size_t(slots * p.group));
  const size_t num_states = size_t(p.num_rows() * p.score_tiles * p.group);
  const auto of_clusters = download(p.workspace.cluster_weight, num_states), of_always = download(p.workspace.always_weight, num_states);
  const ClusterHeadView& head = host.index(p.sequence_of(row)).heads[p.kv_head_of(row)];
  for (int g = 0; g < p.group; ++g) {
    const int qo_head = p.kv_head_of(row) * p.group + g;
    const ExpectedScores expected = expected_scores(host, p.sequence_of(row), qo_head, shared_variance);
    int wrong = 0;
    double sum = 0.0;
    for (int j = 0; j < slots; ++j) {
      const double got = double(weights[size_t(j * p.group + g)]), wanted = expected.log_weight[size_t(j)];
      if (std::isinf(wanted)) {
        wrong += got == wanted ? 0 : 1;
        continue;
      }
      wrong += std::fabs(got - wanted) <= expected.tolerance[size_t(j)] ? 0 : 1;
      sum += double(cluster_at(head, j).size()) * std::exp(got);
    }
    CHECK(wrong == 0);
    CHECK(std::fabs(lse_of(of_clusters, p, row, g) - std::log(sum)) <= 1e-4);
    const double lse = double(always.lse[size_t(p.sequence_of(row) * p.shape.num_qo_heads + qo_head)]);
    CHECK(std::fabs(lse_of(of_always, p, row, g) - lse) <= 1e-4 * (1.0 + std::fabs(lse)));
  }
}

CaseResult always_only(const HostCase& host) {
  std::vector<std::vector<int32_t>> lists;
  for (int s = 0; s < host.num_sequences(); ++s) lists.insert(lists.end(), size_t(host.options().shape.num_kv_heads), always_read(host, s));
  return host.reference(lists);
}

TEST_CASE("cuda scoring: weights of clusters and of always-read tokens are those of a computation in f64") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const int group : {1, 5, 16}) {
      CAPTURE(head_dim);
      CAPTURE(group);
      const HostCase host(small_case(head_dim, group));
      const DeviceCase device(host);
      const StepCase step(host, device, sparse_options());
      REQUIRE(cuda::prepare_score_clusters(step.params.shape) == cudaSuccess);
      REQUIRE(cuda::score_clusters(step.params, nullptr) == cudaSuccess);
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      const CaseResult always = always_only(host);
      for (int row = 0; row < step.num_rows(); ++row) check_row(host, step, row, true, always);
    }
}

TEST_CASE("cuda scoring: types of keys and queries, the index without codes, no variance model") {
  for (const ElementType query_type : {ElementType::f32, ElementType::f16, ElementType::bf16})
    for (const ElementType type : {ElementType::f16, ElementType::bf16, ElementType::fp8_e4m3}) {
      CaseOptions options = small_case(64, 3);
      options.type = type;
      options.query_type = query_type;
      options.index.residual_codes = type == ElementType::f16;
      DecodeOptions decode = sparse_options();
      decode.variance = type == ElementType::f16 ? VarianceModel::none : VarianceModel::shared;
      const HostCase host(options);
      const DeviceCase device(host);
      const StepCase step(host, device, decode);
      REQUIRE(cuda::score_clusters(step.params, nullptr) == cudaSuccess);
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      const CaseResult always = always_only(host);
      for (int row = 0; row < step.num_rows(); ++row) check_row(host, step, row, decode.variance == VarianceModel::shared, always);
    }
}

}  // namespace
}  // namespace quorum::test
