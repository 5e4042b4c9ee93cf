// The coded rest: masses and estimates times value means, and what reading takes out of it again.
#include "quorum/cpu/attend_coded_rest.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/coded_stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::CodedStage;

namespace {

constexpr int kHeads = 3, kDim = 72;

BatchSpec spec_of(IndexStorage storage) {
  BatchSpec spec = test::coded_spec(1200, kHeads, kDim);
  spec.index.storage = storage;
  return spec;
}

DecodeOptions options_of(float coverage, int budget) {
  DecodeOptions options;
  options.candidate_coverage = coverage;
  options.fixed_budget = budget;
  return options;
}

constexpr float kUnscaled[kHeads] = {1.0f, 1.0f, 1.0f};

void attend_rest(CodedStage& stage, const float* scale) {
  stage.step([&](const cpu::HeadTask& task, const cpu::ReadState&, const cpu::CodedState& coded) {
    cpu::clear_accumulated(task);
    cpu::attend_coded_rest(task, stage.head(), coded, scale);
  });
}

// Sum over clusters of weight times mean value.
struct Sums {
  const CodedStage& stage;
  const reference::Matrix& values;
  double sum[kHeads][kDim] = {};

  template <class WeightOf>
  void add(ClusterRef cluster, WeightOf&& weight_of) {
    for (int c = 0; c < kDim; ++c) {
      double mean = 0.0;
      for (int i = 0; i < cluster.num_tokens(); ++i) mean += values.row(cluster.tokens()[i])[c] / cluster.num_tokens();
      for (int g = 0; g < kHeads; ++g) sum[g][c] += weight_of(g) * mean;
    }
  }
  double error(int g) const {
    double error = 0.0, norm = 0.0;
    for (int c = 0; c < kDim; ++c) {
      error += std::pow(stage.accumulated(g, c) - sum[g][c], 2);
      norm += sum[g][c] * sum[g][c];
    }
    return std::isnan(error) ? double(kInfinity) : std::sqrt(error / norm);
  }
};

}  // namespace

TEST_CASE("candidates by what is unread of their coded weight, others by estimate, times value means") {
  const float scales[kHeads] = {2.0f, 0.5f, 1.5f};
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
    for (const int workers : {1, 2, 3})
      for (const int budget : {1, 200})
        for (const float* scale : {kUnscaled, scales}) {
          const Batch batch(spec_of(storage));
          CodedStage stage(batch, workers, options_of(0.7f, budget));
          stage.scan();
          stage.read();
          REQUIRE(stage.coded.num_outside > 0);
          attend_rest(stage, scale);
          const auto factor = [&](int g) { return double(scale[g]); };
          Sums want{stage, batch.values(0, 0)};
          for (int i = 0; i < stage.coded.candidates.clusters; ++i)
            want.add(stage.candidate(i), [&](int g) { return factor(g) * std::max(0.0, stage.mass(i, g)); });
          for (int j = 0; j < stage.head().num_cluster_slots(); ++j)
            if (!stage.is_candidate(j) && stage.shared().share[j] >= stage.coded.outside_key)
              want.add(cluster_at(stage.head(), j),
                       [&](int g) { return factor(g) * stage.estimate(j, g) * stage.coded.outside[g] / stage.coded.used_outside[g]; });
          for (int g = 0; g < kHeads; ++g) {
            CHECK(want.error(g) <= (storage == IndexStorage::f32 ? 1e-5 : 0.02));
            for (int i = 0; i < stage.coded.candidates.clusters; ++i)
              CHECK(double(stage.shared().ordered.row(g)[i]) == std::max(0.0, stage.mass(i, g)));
          }
        }
}

TEST_CASE("what is read after the rest was attended can be taken out again") {
  for (const int workers : {1, 3}) {
    const Batch batch(spec_of(IndexStorage::int8));
    CodedStage stage(batch, workers, options_of(0.8f, 250));
    stage.scan();
    attend_rest(stage, kUnscaled);
    stage.read();
    stage.step([&](const cpu::HeadTask& task, const cpu::ReadState&, const cpu::CodedState& coded) {
      cpu::correct_coded_rest(task, stage.head(), coded);
    });
    std::vector<double> corrected;
    for (int g = 0; g < kHeads; ++g)
      for (int c = 0; c < kDim; ++c) corrected.push_back(stage.accumulated(g, c));
    attend_rest(stage, kUnscaled);
    for (int g = 0; g < kHeads; ++g) {
      std::vector<double> want;
      for (int c = 0; c < kDim; ++c) want.push_back(stage.accumulated(g, c));
      CHECK(test::relative_error(&corrected[size_t(g * kDim)], want.data(), kDim) <= 1e-4);
    }
  }
}

TEST_CASE("nothing to attend: the accumulators stay as they are") {
  BatchSpec spec = spec_of(IndexStorage::int8);
  spec.lengths = {600};
  spec.index.window_tokens = 580;
  spec.sharpness = 0.1f;
  const Batch batch(spec);
  DecodeOptions options = options_of(0.5f, 0);
  options.target_ratio = 0.5f;
  CodedStage stage(batch, 2, options);
  stage.scan();
  stage.read();
  REQUIRE(stage.coded.candidates.clusters == 0);
  if (stage.coded.num_outside > 0) return;
  attend_rest(stage, kUnscaled);
  for (int g = 0; g < kHeads; ++g)
    for (int c = 0; c < kDim; ++c) CHECK(stage.accumulated(g, c) == 0.0);
}
