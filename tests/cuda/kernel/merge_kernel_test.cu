// Partial results made by hand: two of a row's list, one of its tail.
#include "quorum/cuda/kernel/merge_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

struct MergeCase {
  CaseOptions host_options;
  std::unique_ptr<HostCase> host;
  std::unique_ptr<DeviceCase> device;
  std::unique_ptr<StepCase> step;
  cuda::RowPlan plan;
  double read[2], rest[2], upper[2], believed[2];  // weights of both heads
  std::vector<double> read_output[2], tail_output[2];

  explicit MergeCase(const DecodeOptions& options) {
    host_options.shape = {2, 1, 64, 0.0f};
    host_options.num_tokens = {200};
    host = std::make_unique<HostCase>(host_options);
    device = std::make_unique<DeviceCase>(*host);
    step = std::make_unique<StepCase>(*host, *device, options);
    step->params.attend_blocks = 2;
    step->params.num_rounds = 2;
    step->lay_out();
    step->set_lists({std::vector<int32_t>(48, 0)});
    plan = step->plans()[0];
    plan.complete = false;
    plan.num_always = 8;
    plan.num_tail = 5;
    const int num_draws = step->params.num_draws;
    plan.num_draws = plan.num_sampled = num_draws;
    std::vector<float> draw_weights;
    std::vector<cuda::TokenDraw> draws;
    for (int i = 0; i < num_draws; ++i) {
      draws.push_back({100 + i, 1.5f});
      for (int g = 0; g < 2; ++g) draw_weights.push_back(1.0f + 0.01f * float(i) - 0.5f * float(g));
    }
    put_draws(draws, draw_weights);
    // Four tiles for two blocks: three of the list, one of the tail.
    StepCase::put(step->params.workspace.tile_indptr, std::vector<int32_t>{0, 3, 4, 4});
    std::vector<AttentionState> states;
    std::vector<float> outputs;
    for (int partial = 0; partial < 3; ++partial)
      for (int g = 0; g < 2; ++g) {
        states.push_back(partial == 2 ? AttentionState{0.0f, 0.0f}
                                      : AttentionState{3.0f - 2.0f * float(partial) + float(g), 4.0f + float(partial)});
        for (int c = 0; c < 64; ++c) outputs.push_back(0.1f * float(c) - float(partial) + 0.5f * float(g));
      }
    StepCase::put(step->params.workspace.partial_state, states);
    StepCase::put(step->params.workspace.partial_output, outputs);
    for (int g = 0; g < 2; ++g) {
      plan.reference[g] = 2.0f;
      plan.rest[g] = 30.0f + float(g);
      plan.used_rest[g] = 28.0f;
      rest[g] = double(plan.rest[g]) * std::exp(2.0);
      double sum = 0.0, differences = 0.0;
      for (int i = 0; i < num_draws; ++i) {
        const double own = 1.5 * std::exp(double(draw_weights[size_t(2 * i + g)]));
        const double before = i > 0 ? 1.5 * std::exp(double(draw_weights[size_t(2 * i - 2 + g)])) : own;
        sum += own;
        differences += (own - before) * (own - before);
      }
      const double error = num_draws < 2 ? sum : std::sqrt(differences * num_draws / (2.0 * (num_draws - 1)));
      believed[g] = num_draws == 0 ? rest[g] : rest[g] * std::cbrt(std::min(8.0, std::max(0.125, sum / rest[g])));
      upper[g] = std::max(sum, rest[g]) + double(step->params.z) * error;
      read[g] = 0.0;
      read_output[g].assign(64, 0.0);
      tail_output[g].assign(64, 0.0);
      for (int partial = 0; partial < 2; ++partial) {
        const AttentionState state = states[size_t(2 * partial + g)];
        read[g] += double(state.sum) * std::exp(double(state.max));
        for (size_t c = 0; c < 64; ++c)
          read_output[g][c] += std::exp(double(state.max)) * double(outputs[size_t(2 * partial + g) * 64 + c]);
      }
      for (size_t c = 0; c < 64; ++c) tail_output[g][c] = std::exp(2.0) * double(outputs[size_t(4 + g) * 64 + c]);
    }
  }
  void put_draws(const std::vector<cuda::TokenDraw>& draws, const std::vector<float>& weights) const {
    StepCase::put(step->params.workspace.draws, draws);
    StepCase::put(step->params.workspace.draw_weight, weights);
  }
  CaseResult run() const {
    StepCase::put(step->params.workspace.plan, std::vector<cuda::RowPlan>{plan});
    REQUIRE(cuda::launch({dim3(2, 1), cuda::kMergeThreads}, cuda::merge_kernel<cuda::kMergeThreads>, step->params) == cudaSuccess);
    return step->result();
  }
};

DecodeOptions with_tail(Tail tail, bool certificate) {
  DecodeOptions options;
  options.dense_below = 0;
  options.tail = tail;
  options.certificate.enabled = certificate;
  options.certificate.num_samples = 40;
  options.num_samples = 40;
  return options;
}

TEST_CASE("cuda merge: parts of the list and the tail become output, lse and report") {
  for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
    for (const bool certificate : {false, true}) {
      CAPTURE(tail_name(tail));
      const MergeCase merge(with_tail(tail, certificate));
      const CaseResult result = merge.run();
      for (int g = 0; g < 2; ++g) {
        const double amount = tail == Tail::drop ? 0.0 : tail == Tail::estimated ? merge.rest[g] : merge.believed[g];
        const double total = merge.read[g] + amount, used = double(merge.plan.used_rest[g]) * std::exp(2.0);
        CHECK(std::fabs(double(result.lse[size_t(g)]) - std::log(total)) <= 1e-4);
        double largest = 0.0;
        for (size_t c = 0; c < 64; ++c) {
          const double expected = (merge.read_output[g][c] + amount / used * merge.tail_output[g][c]) / total;
          largest = std::max(largest, std::fabs(double(result.output[size_t(g) * 64 + c]) - expected));
        }
        CHECK(largest <= 1e-4);
        const HeadReport& report = result.reports[size_t(g)];
        const bool sampled = certificate || tail == Tail::calibrated;
        CHECK(report.tokens_read == 48);
        CHECK(report.tokens_sampled == (sampled ? 40 : 0));
        CHECK(report.clusters_used == 5);
        CHECK(std::fabs(double(report.attained_ratio_estimate) - merge.read[g] / (merge.read[g] + merge.believed[g])) <= 1e-4);
        const double bound = sampled ? merge.read[g] / (merge.read[g] + merge.upper[g]) : 0.0;
        CHECK(std::fabs(double(report.attained_ratio_lower_bound) - bound) <= 1e-4);
        CHECK(report.confidence == (sampled ? 0.95f : 0.0f));
      }
    }
}

TEST_CASE("cuda merge: a head whose bound misses is flagged for the next round, with what is known by then") {
  MergeCase merge(with_tail(Tail::estimated, true));
  const double bounds[2] = {merge.read[0] / (merge.read[0] + merge.upper[0]), merge.read[1] / (merge.read[1] + merge.upper[1])};
  REQUIRE(std::fabs(bounds[0] - bounds[1]) > 1e-3);
  merge.step->params.options.target_ratio = float(0.5 * (bounds[0] + bounds[1]));
  merge.run();
  const cuda::RowPlan plan = merge.step->plans()[0];
  for (int g = 0; g < 2; ++g) {
    CHECK(plan.misses[g] == (bounds[g] < bounds[1 - g]));
    CHECK(std::fabs(double(plan.rest_factor[g]) * merge.rest[g] / merge.upper[g] - 1.0) <= 1e-4);
    CHECK(std::fabs(double(plan.read[g]) * std::exp(2.0) / merge.read[g] - 1.0) <= 1e-4);
  }
  merge.step->params.num_rounds = 1;  // no round follows
  merge.run();
  CHECK(!merge.step->plans()[0].misses[0]);
  CHECK(!merge.step->plans()[0].misses[1]);
}

TEST_CASE("cuda merge: in a later round a row that does not widen keeps its output") {
  MergeCase merge(with_tail(Tail::drop, true));
  const CaseResult before = merge.run();
  merge.step->params.round = 1;
  merge.plan.widens = false;
  StepCase::put(merge.step->params.workspace.partial_state, std::vector<AttentionState>(6, {kNan, kNan}));
  const CaseResult after = merge.run();
  CHECK(after.output == before.output);
  CHECK(after.lse == before.lse);
}

TEST_CASE("cuda merge: nothing read is zero and -inf, a poisoned part poisons its head alone, reports may be absent") {
  MergeCase merge(with_tail(Tail::drop, false));
  merge.plan.complete = true;
  merge.step->params.reports = nullptr;
  StepCase::put(merge.step->params.workspace.partial_state, std::vector<AttentionState>{{1.0f, 2.0f}, {kNan, 1.0f}});
  const CaseResult result = merge.run();
  CHECK(std::isfinite(result.output[0]));
  CHECK(std::isnan(result.output[64]));
  CHECK(std::isnan(result.lse[1]));
  StepCase::put(merge.step->params.workspace.tile_indptr, std::vector<int32_t>{0, 0, 0, 0});
  merge.plan.num_tokens = merge.plan.num_listed = 0;
  merge.plan.path = DecodePath::dense_by_length;
  const CaseResult nothing = merge.run();
  for (const float x : nothing.output) CHECK(x == 0.0f);
  CHECK(nothing.lse[0] == -kInfinity);
}

}  // namespace
}  // namespace quorum::test
