// What the kernel leaves for the merge: partial results by block and segment, scores of draws, sums of value means. Whole results:
// tests/cuda/sparse_attention_test.cu.
#include "quorum/cuda/kernel/attend_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

using Policy = cuda::AttendPolicy<4, 2, 2>;

CaseOptions small_case() {
  CaseOptions options;
  options.shape = {6, 2, 64, 0.0f};
  options.type = ElementType::f16;
  options.num_tokens = {200, 120};
  return options;
}
DecodeOptions sampling() {
  DecodeOptions options;
  options.dense_below = 0;
  options.num_samples = 19;
  return options;
}
void attend(const cuda::StepParams& p) {
  const int64_t shared = cuda::attend_shared_bytes<f16, 64, 1, Policy>(p.num_rows());
  const auto kernel = cuda::attend_kernel<f16, 64, 1, Policy>;
  REQUIRE(cuda::allow_dynamic_shared(kernel, shared) == cudaSuccess);
  REQUIRE(cuda::launch({dim3(unsigned(p.attend_blocks)), Policy::kThreads, shared}, kernel, p) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

// One head's sum over the partial results of a segment, in units of exp(max).
struct Joined {
  AttentionState state;
  std::vector<double> output = std::vector<double>(64);
};
Joined join(const cuda::StepParams& p, int segment, int g) {
  const int segments = 3 * p.num_rows();
  const auto indptr = download(p.workspace.tile_indptr + p.round * (segments + 1), size_t(segments) + 1);
  const int begin = indptr[size_t(segment)], end = indptr[size_t(segment) + 1], total = indptr.back();
  Joined joined;
  if (begin == end) return joined;
  for (int block = cuda::block_of_tile(begin, p.attend_blocks, total); block <= cuda::block_of_tile(end - 1, p.attend_blocks, total);
       ++block) {
    const int64_t at = cuda::partial_of(p, p.round, block, segment) * p.group + g;
    const AttentionState own = download(p.workspace.partial_state + at, 1)[0], all = merge(joined.state, own);
    const std::vector<float> output = download(p.workspace.partial_output + at * 64, 64);
    for (size_t c = 0; c < 64; ++c)
      joined.output[c] = joined.output[c] * double(rescale_factor(joined.state.max, all.max)) +
                         double(output[c]) * double(rescale_factor(own.max, all.max));
    joined.state = all;
  }
  return joined;
}

TEST_CASE("cuda attend kernel: parts of a list add up to it, whatever the number of blocks and the round") {
  const HostCase host(small_case());
  const DeviceCase device(host);
  std::vector<std::vector<int32_t>> lists(4);
  for (int i = 0; i < 150; ++i) lists[0].push_back(199 - i);
  lists[2] = {5};
  for (int i = 0; i < 48; ++i) lists[3].push_back(2 * i);
  const CaseResult expected = host.reference(lists);
  for (const int blocks : {1, 2, 5, 40})
    for (const int round : {0, 1}) {
      CAPTURE(blocks);
      StepCase step(host, device, sampling());
      cuda::StepParams& p = step.params;
      p.attend_blocks = blocks;
      p.num_rounds = 2;
      p.round = round;
      step.lay_out();
      step.set_lists(lists);
      attend(p);
      const auto indptr = download(p.workspace.tile_indptr + round * 13, 13);
      CHECK(indptr == std::vector<int32_t>{0, 10, 10, 10, 10, 10, 10, 11, 11, 11, 14, 14, 14});
      for (int row = 0; row < 4; ++row)
        for (int g = 0; g < 3; ++g) {
          const Joined joined = join(p, 3 * row, g);
          const size_t at = size_t(row * 3 + g);
          if (lists[size_t(row)].empty()) {
            CHECK(joined.state.sum == 0.0f);
            continue;
          }
          CHECK(std::fabs(joined.state.lse() - expected.lse[at]) <= 1e-3f);
          double largest = 0.0;
          for (size_t c = 0; c < 64; ++c)
            largest = std::max(largest, std::fabs(joined.output[c] / double(joined.state.sum) - double(expected.output[at * 64 + c])));
          CHECK(largest <= 2e-3);
        }
    }
}

TEST_CASE("cuda attend kernel: entries before first_listed are left out") {
  const HostCase host(small_case());
  const DeviceCase device(host);
  StepCase step(host, device, sampling());
  std::vector<std::vector<int32_t>> lists(4);
  for (int i = 0; i < 90; ++i) lists[1].push_back(i);
  step.set_lists(lists);
  std::vector<cuda::RowPlan> plans = step.plans();
  plans[1].first_listed = 37;
  StepCase::put(step.params.workspace.plan, plans);
  StepCase::put(step.params.workspace.counts + 3, std::vector<int32_t>{53});
  attend(step.params);
  lists[1].erase(lists[1].begin(), lists[1].begin() + 37);
  CHECK(std::fabs(join(step.params, 3, 2).state.lse() - host.reference(lists).lse[5]) <= 1e-3f);
}

TEST_CASE("cuda attend kernel: the scores of drawn tokens") {
  const HostCase host(small_case());
  const DeviceCase device(host);
  StepCase step(host, device, sampling());
  const cuda::StepParams& p = step.params;
  REQUIRE(p.num_draws >= 19);
  step.set_lists({{}, {}, {}, {}});
  std::vector<cuda::RowPlan> plans = step.plans();
  plans[2].num_draws = 19;
  StepCase::put(p.workspace.plan, plans);
  StepCase::put(p.workspace.counts + 8, std::vector<int32_t>{19});
  std::vector<cuda::TokenDraw> draws;
  for (int i = 0; i < 19; ++i) draws.push_back({(i * 23) % 120, 1.0f});
  StepCase::put(p.workspace.draws + 2 * p.num_draws, draws);
  attend(p);
  const std::vector<float> weights = download(p.workspace.draw_weight + 2 * p.num_draws * 3, 19 * 3);
  for (size_t i = 0; i < 19; ++i) {
    const CaseResult one = host.reference({{}, {}, {draws[i].token}, {}});  // of one token, lse is its score
    for (size_t g = 0; g < 3; ++g) CHECK(std::fabs(weights[i * 3 + g] - one.lse[6 + g]) <= 1e-3f * (1.0f + std::fabs(one.lse[6 + g])));
  }
}

TEST_CASE("cuda attend kernel: the tail is the sum of value means by expected weight, in units of the reference") {
  const HostCase host(small_case());
  const DeviceCase device(host);
  StepCase step(host, device, sampling());
  const cuda::StepParams& p = step.params;
  const ClusterHeadView& head = host.index(1).heads[1];
  std::vector<int32_t> tail;
  for (int j = 0; j < head.num_cluster_slots(); ++j)
    if (cluster_at(head, j).size() > 0) tail.push_back(j);
  REQUIRE(tail.size() > 1);
  std::vector<float> log_weight;
  for (int j = 0; j < p.max_slots; ++j)
    for (int g = 0; g < 3; ++g) log_weight.push_back(2.0f + 0.05f * float(j) - 0.3f * float(g));
  step.set_lists({{}, {}, {}, {}});
  std::vector<cuda::RowPlan> plans = step.plans();
  plans[3].num_tail = int32_t(tail.size());
  for (int g = 0; g < 3; ++g) plans[3].reference[g] = 2.0f;
  StepCase::put(p.workspace.plan, plans);
  StepCase::put(p.workspace.counts + 10, std::vector<int32_t>{plans[3].num_tail});
  StepCase::put(p.workspace.log_weight + 3 * p.max_slots * 3, log_weight);
  StepCase::put(p.workspace.tail_clusters + 3 * p.max_slots, tail);
  attend(p);
  for (int g = 0; g < 3; ++g) {
    std::vector<double> expected(64);
    double scale = 0.0, largest = 0.0;
    for (const int j : tail) {
      const ClusterRef at = cluster_at(head, j);
      const double weight = at.size() * std::exp(double(log_weight[size_t(j * 3 + g)]) - 2.0);
      for (int c = 0; c < 64; ++c)
        expected[size_t(c)] += weight * double(at.segment->value_mean_scale[at.local]) * double(at.segment->value_means[at.local * 64 + c]);
      scale += weight;
    }
    const Joined joined = join(p, 10, g);
    CHECK(joined.state.max == 0.0f);
    for (size_t c = 0; c < 64; ++c) largest = std::max(largest, std::fabs(joined.output[c] - expected[c]));
    CHECK(largest <= 6e-3 * scale);  // weights are rounded to bf16
  }
}

}  // namespace
}  // namespace quorum::test
