// The error model's sums, and that the output it is made from is the one that reading corrects.
#include "quorum/cpu/model_error.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/coded_stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::CodedStage;
using test::CodedToken;

namespace {

constexpr int kHeads = 3, kDim = 80;

BatchSpec spec_of(int window) {
  BatchSpec spec = test::coded_spec(1200, kHeads, kDim);
  spec.index.window_tokens = window;
  return spec;
}

DecodeOptions with_error(float target_error, float coverage = 0.0f) {
  DecodeOptions options;
  options.target_error = target_error;
  options.candidate_coverage = coverage;
  return options;
}

void model(CodedStage& stage) {
  stage.step([&](const cpu::HeadTask& task, const cpu::ReadState& state, cpu::CodedState& coded) {
    cpu::model_error(task, stage.head(), stage.weights.queries, state, coded);
  });
}

std::vector<double> accumulated(const CodedStage& stage) {
  std::vector<double> out;
  for (int g = 0; g < kHeads; ++g)
    for (int c = 0; c < kDim; ++c) out.push_back(stage.accumulated(g, c));
  return out;
}

}  // namespace

TEST_CASE("squares of coded weights, of clusters outside, and the output's length") {
  const Batch batch(spec_of(30));
  for (const int workers : {1, 2, 3}) {
    CodedStage stage(batch, workers, with_error(0.05f, 0.7f));
    stage.scan();
    model(stage);
    CHECK(stage.coded.attended);
    const auto output = accumulated(stage);
    for (int g = 0; g < kHeads; ++g) {
      double squares = 0.0, bound = 0.0, outside = 0.0, length = 0.0;
      for (const CodedToken& token : stage.coded_tokens()) {
        const double square = std::pow(stage.coded_weight(token, g), 2);
        squares += square;
        bound += square * (std::pow(1.0 + stage.weight_tolerance(token, g), 2) - 1.0);
      }
      for (int j = 0; j < stage.head().num_cluster_slots(); ++j) {
        const int size = cluster_at(stage.head(), j).num_tokens();
        if (size > 0 && !stage.is_candidate(j)) outside += std::pow(stage.estimate(j, g), 2) / size;
      }
      for (int c = 0; c < kDim; ++c) length += std::pow(output[size_t(g * kDim + c)], 2);
      CHECK(outside > 0.0);
      outside *= std::pow(stage.coded.outside_factor[g], 2);
      CHECK(test::near(stage.coded.squares[g], squares, bound));
      CHECK(test::near(stage.coded.outside_squares[g], outside, 1e-5 * outside));
      const double total = stage.state.read[g] + stage.coded.coded[g] + stage.coded.outside[g];
      const ErrorModel want =
          ErrorModel::of(stage.head().moments, double(stage.weights.queries.square[g]), length / (total * total), total);
      CHECK(test::near(stage.coded.error_model[g].per_square, want.per_square, 1e-4 * want.per_square));
      CHECK(test::near(stage.coded.error_model[g].per_outside, want.per_outside, 1e-4 * want.per_outside));
    }
  }
}

TEST_CASE("the output is not far from the true one already") {
  const Batch batch(spec_of(30));
  CodedStage stage(batch, 2, with_error(0.05f));
  stage.scan();
  model(stage);
  const auto output = accumulated(stage);
  for (int g = 0; g < kHeads; ++g) {
    const double total = stage.state.read[g] + stage.coded.coded[g] + stage.coded.outside[g];
    std::vector<double> got;
    for (int c = 0; c < kDim; ++c) got.push_back(output[size_t(g * kDim + c)] / total);
    CHECK(test::relative_error(got.data(), batch.attention(0, g).output.data(), kDim) < 0.9);
  }
}

TEST_CASE("reading and correcting equals attending the rest after reading") {
  for (const int workers : {1, 2, 3})
    for (const float target : {0.02f, 0.1f}) {
      const Batch batch(spec_of(30));
      CodedStage stage(batch, workers, with_error(target));
      stage.scan();
      model(stage);
      stage.read();
      REQUIRE(stage.state.num_tokens > 0);
      stage.step([&](const cpu::HeadTask& task, const cpu::ReadState& state, const cpu::CodedState& coded) {
        cpu::correct_coded_rest(task, stage.head(), coded);
        cpu::attend_listed_values(task, state.num_always + task.team.first(state.num_tokens),
                                  state.num_always + task.team.last(state.num_tokens));
      });
      const auto got = accumulated(stage);
      stage.step([&](const cpu::HeadTask& task, const cpu::ReadState& state, const cpu::CodedState& coded) {
        const int listed = state.num_always + state.num_tokens;
        const float unscaled[kHeads] = {1.0f, 1.0f, 1.0f};
        cpu::clear_accumulated(task);
        cpu::attend_coded_rest(task, stage.head(), coded, unscaled);
        cpu::attend_listed_values(task, task.team.first(listed), task.team.last(listed));
      });
      const auto want = accumulated(stage);
      for (int g = 0; g < kHeads; ++g) CHECK(test::relative_error(&got[size_t(g * kDim)], &want[size_t(g * kDim)], kDim) <= 1e-4);
    }
}

TEST_CASE("tokens are listed until the estimate is the target, within a bucket; less error, more tokens") {
  const Batch batch(spec_of(0));
  int before = 0;
  for (const float target : {0.3f, 0.1f, 0.05f, 0.02f}) {
    CodedStage stage(batch, 2, with_error(target, 1.0f));
    stage.scan();
    model(stage);
    stage.read();
    CHECK(stage.state.num_tokens >= before);
    before = stage.state.num_tokens;
    double worst = 0.0;
    for (int g = 0; g < kHeads; ++g) worst = std::max(worst, stage.coded.error(g));
    CHECK(worst <= double(target) * 1.001);
  }
  CHECK(before > 100);
}
