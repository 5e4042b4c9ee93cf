// Reading in order: exact weights, the first position at which every head has enough, and the budgets.
#include "quorum/cpu/read_keys.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::Stage;

namespace {

BatchSpec spec_of(int length) {
  BatchSpec spec;
  spec.shape = {6, 2, 64, 0.0f};
  spec.lengths = {length};
  spec.index.window_tokens = 11;
  return spec;
}

DecodeOptions options_of(float target) {
  DecodeOptions options;
  options.target_ratio = target;
  options.variance = VarianceModel::shared;
  return options;
}

// Orders and reads; the state is that of the first worker.
cpu::ReadState read(Stage& stage, const DecodeOptions& options) {
  cpu::ReadState first;
  stage.run([&](const cpu::HeadTask& task) {
    cpu::ReadState state;
    const bool finite = test::order_clusters(task, stage.index(), stage.head(), options.variance, state);
    if (finite) cpu::read_keys(task, stage.head(), options, state);
    if (task.team.leads()) first = state;
  });
  return first;
}

}  // namespace

TEST_CASE("weights of a run of scores, any length, and their sum") {
  for (int count = 0; count <= 40; ++count) {
    std::vector<float> scores = test::gaussian_floats(count + 1, 5, 3.0f);
    const std::vector<float> before = scores;
    const float sum = cpu::weigh_scores(scores.data(), count, 1.5f);
    double want = 0.0;
    for (size_t i = 0; i < size_t(count); ++i) {
      CHECK(test::near(scores[i], std::exp(double(before[i]) - 1.5), 1e-6 * std::exp(double(before[i]) - 1.5)));
      want += std::exp(double(before[i]) - 1.5);
    }
    CHECK(test::near(sum, want, 2e-6 * want));
    CHECK(scores[size_t(count)] == before[size_t(count)]);
  }
}

TEST_CASE("what was read has exact weights; tokens lie one cluster after the other behind those always read") {
  for (const int workers : {1, 2, 3}) {
    const Batch batch(spec_of(900));
    Stage stage(batch, 0, 1, workers);
    const cpu::ReadState state = read(stage, options_of(0.9f));
    CHECK(state.stop <= state.scored);
    CHECK(state.scored <= state.num_clusters);
    CHECK(state.num_always == 15);
    for (int g = 0; g < 3; ++g) {
      const auto scores = stage.exact_scores(g);
      const auto weight = [&](int token) { return std::exp(scores[size_t(token)] - double(state.reference[g])); };
      double total = 0.0, worst = 0.0;
      int at = state.num_always;
      for (int i = 0; i < at; ++i) total += weight(stage.shared().tokens[i]);
      for (int position = 0; position < state.scored; ++position) {
        const ClusterRef cluster = cluster_at(stage.head(), stage.shared().cluster[position]);
        double want = 0.0;
        for (int i = 0; i < cluster.num_tokens(); ++i, ++at) {
          REQUIRE(stage.shared().tokens[at] == cluster.tokens()[i]);
          worst = test::larger_error(worst, std::fabs(double(stage.shared().weights.row(g)[at]) / weight(cluster.tokens()[i]) - 1.0));
          want += weight(cluster.tokens()[i]);
        }
        worst = test::larger_error(worst, std::fabs(double(stage.shared().read_weight.row(g)[position]) / want - 1.0));
        if (position < state.stop) total += want;
      }
      CHECK(at == state.num_always + state.scored_tokens);
      CHECK(worst <= 2e-5);
      CHECK(test::near(state.read[g], total, 2e-5 * total));
    }
  }
}

TEST_CASE("the first position at which every head has met its target, and no further") {
  for (const float target : {0.3f, 0.8f, 0.95f, 0.999f}) {
    const Batch batch(spec_of(900));
    Stage stage(batch, 0, 0);
    const cpu::ReadState state = read(stage, options_of(target));
    CAPTURE(target);
    REQUIRE(state.stop > 0);
    bool all_met = true, all_met_before = true;
    for (int g = 0; g < 3; ++g) {
      all_met = all_met && meets_target(state.read[g], state.rest[g], double(target));
      const double last = double(stage.shared().read_weight.row(g)[state.stop - 1]);
      const double estimate = double(stage.shared().ordered.row(g)[state.stop - 1]);
      all_met_before = all_met_before && meets_target(state.read[g] - last, state.rest[g] + estimate, double(target));
    }
    CHECK(all_met);
    CHECK_FALSE(all_met_before);
    int tokens = 0;
    for (int position = 0; position < state.stop; ++position) tokens += stage.shared().size[position];
    CHECK(state.num_tokens == tokens);
  }
}

TEST_CASE("little is read in vain") {
  const Batch batch(spec_of(2000));
  Stage stage(batch, 0, 0);
  const cpu::ReadState state = read(stage, options_of(0.9f));
  CHECK(state.scored_tokens - state.num_tokens <= std::max(128, state.num_tokens / 4));
}

TEST_CASE("a first cluster that was estimated much too heavy: what rounding took of the others' estimate is found again") {
  const Batch batch(spec_of(900));
  Stage stage(batch, 0, 0);
  const DecodeOptions options = options_of(0.9f);
  const int want = read(stage, options).stop;
  cpu::ReadState state;
  stage.run([&](const cpu::HeadTask& task) {
    REQUIRE(test::order_clusters(task, stage.index(), stage.head(), options.variance, state));
    for (int g = 0; g < 3; ++g) {
      float& first = task.shared->ordered.row(g)[0];
      first += 1e20f;
      state.rest[g] += 1e20;
    }
    cpu::read_keys(task, stage.head(), options, state);
  });
  CHECK(state.stop == want);
  for (int g = 0; g < 3; ++g) {
    double rest = 0.0;
    for (int position = state.stop; position < state.num_clusters; ++position) rest += double(stage.shared().ordered.row(g)[position]);
    CHECK(test::near(state.rest[g], rest, 1e-6 * rest));
    CHECK(meets_target(state.read[g], rest, 0.9));
  }
}

TEST_CASE("budgets end the reading; at the end nothing is left") {
  const Batch batch(spec_of(900));
  Stage stage(batch, 0, 0);
  DecodeOptions options = options_of(0.999f);
  options.max_tokens = 100;
  const cpu::ReadState limited = read(stage, options);
  CHECK(limited.num_tokens <= 100);
  CHECK(limited.num_tokens + stage.shared().size[limited.stop] > 100);
  options = options_of(0.5f);
  options.min_tokens = 1 << 20;
  const cpu::ReadState all = read(stage, options);
  CHECK(all.stop == all.num_clusters);
  CHECK(all.num_tokens == 885);
  for (int g = 0; g < 3; ++g) CHECK(all.rest[g] == 0.0);
}

TEST_CASE("teams read the same") {
  const Batch batch(spec_of(900));
  Stage alone(batch, 0, 1);
  const cpu::ReadState want = read(alone, options_of(0.85f));
  for (const int workers : {2, 3, 4}) {
    Stage stage(batch, 0, 1, workers);
    const cpu::ReadState got = read(stage, options_of(0.85f));
    CHECK(std::abs(got.stop - want.stop) <= 1);
    for (int g = 0; g < 3; ++g) CHECK(test::near(got.reference[g], want.reference[g], 1e-5));
  }
}
