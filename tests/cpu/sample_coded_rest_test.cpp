// The sample of what reading by codes has left: unread tokens only, unbiased, with an honest error, the same for every team.
#include "quorum/cpu/sample_coded_rest.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "tests/support/coded_stage.hpp"
#include "tests/support/sample_moments.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::CodedStage;
using test::CodedToken;

namespace {

BatchSpec noisy_spec(int length = 1200) {
  BatchSpec spec = test::coded_spec(length, 2);
  spec.key_noise = 0.4f;
  return spec;
}

// Reads to a budget once, then samples the rest with one seed after the other.
struct Sampler {
  CodedStage stage;
  std::set<int> unread;
  double true_rest[2] = {};

  static DecodeOptions budget(int tokens, int num_samples, float coverage) {
    DecodeOptions options;
    options.fixed_budget = tokens;
    options.num_samples = num_samples;
    options.candidate_coverage = coverage;
    return options;
  }
  Sampler(const Batch& batch, int workers, const DecodeOptions& options) : stage(batch, workers, options) {
    stage.scan();
    stage.read();
    REQUIRE(stage.finite);
    for (int t = stage.index().indexed_end - stage.index().num_indexed; t < stage.index().indexed_end; ++t) unread.insert(t);
    for (const int token : stage.listed_tokens()) unread.erase(token);
    for (int g = 0; g < 2; ++g) {
      const auto scores = stage.exact_scores(g);
      for (const int token : unread) true_rest[g] += stage.exact_weight(scores, token, g);
    }
  }
  std::vector<SampledRest> sample(uint64_t seed) {
    stage.options.seed = seed;
    std::vector<SampledRest> first(2);
    stage.run([&](const cpu::HeadTask& task) {
      cpu::ReadState own = stage.state;
      SampledRest rest[kMaxGroupSize];
      cpu::sample_coded_rest(task, stage.head(), stage.options, stage.coded, own, rest);
      if (task.team.leads()) {
        CHECK(own.num_sampled == stage.state.num_sampled + samples_per_round(stage.options));
        std::copy_n(rest, 2, first.begin());
      }
      task.team.sync();
    });
    return first;
  }
  // The draws of all workers.
  std::vector<cpu::Draw> draws(uint64_t seed) {
    stage.options.seed = seed;
    std::vector<std::vector<cpu::Draw>> of_worker(static_cast<size_t>(stage.num_workers()));
    stage.run([&](const cpu::HeadTask& task) {
      cpu::Draw draws[cpu::kMaxSamples];
      cpu::share_coded_rest(task, stage.head(), stage.coded);
      const int count = cpu::draw_coded_tokens(task, stage.head(), stage.options, stage.coded, stage.state, draws);
      of_worker[size_t(task.team.worker)].assign(draws, draws + count);
      task.team.sync();
    });
    std::vector<cpu::Draw> out;
    for (const auto& some : of_worker) out.insert(out.end(), some.begin(), some.end());
    return out;
  }
};

}  // namespace

TEST_CASE("published sums: shares and numbers of unread tokens and of clusters that are no candidates") {
  const Batch batch(noisy_spec());
  for (const int workers : {1, 3}) {
    Sampler sampler(batch, workers, Sampler::budget(150, 64, 0.7f));
    const CodedStage& stage = sampler.stage;
    sampler.draws(1);
    double inside = 0.0, outside = 0.0, shares = 0.0, outside_shares = 0.0;
    for (int w = 0; w < workers; ++w) {
      inside += stage.worker(w).size_sum;
      outside += stage.worker(w).outside_size_sum;
      shares += stage.worker(w).share_sum;
      outside_shares += stage.worker(w).outside_share_sum;
    }
    int tokens = 0;
    double want = 0.0, want_outside = 0.0;
    for (const CodedToken& token : stage.coded_tokens()) {
      if (stage.stored_bucket(token) <= stage.coded.listed.bucket) continue;
      ++tokens;
      want += double(bucket_key(stage.stored_bucket(token)));
    }
    for (int j = 0; j < stage.head().num_cluster_slots(); ++j)
      if (!stage.is_candidate(j)) want_outside += double(stage.shared().share[j]) * cluster_at(stage.head(), j).num_tokens();
    CHECK(inside == tokens);
    CHECK(inside + outside == double(sampler.unread.size()));
    CHECK(outside > 0.0);
    CHECK(test::near(shares, want, 1e-5 * want));
    CHECK(test::near(outside_shares, want_outside, 1e-5 * want_outside));
  }
}

TEST_CASE("one draw for every stratum, of unread tokens, which stand for all of them together") {
  const Batch batch(noisy_spec());
  for (const float coverage : {0.5f, 0.9f, 1.0f})
    for (const int workers : {1, 2, 3}) {
      Sampler sampler(batch, workers, Sampler::budget(150, 64, coverage));
      constexpr int kTrials = 200;
      double count = 0.0, square = 0.0;
      std::set<int> seen;
      for (uint64_t seed = 1; seed <= kTrials; ++seed) {
        std::set<int> strata;
        double scales = 0.0;
        for (const cpu::Draw& draw : sampler.draws(seed)) {
          REQUIRE(sampler.unread.count(draw.token) == 1);
          strata.insert(draw.stratum);
          seen.insert(draw.token);
          scales += double(draw.scale);
        }
        CHECK(strata.size() == 64);
        CHECK(*strata.rbegin() == 63);
        count += scales / kTrials;
        square += scales * scales / kTrials;
      }
      const double error = std::sqrt(std::max(0.0, square - count * count) / kTrials);
      CHECK(test::near(count, double(sampler.unread.size()), 5.0 * error + 1e-3 * count));
      CHECK(seen.size() > sampler.unread.size() / 2);
    }
}

TEST_CASE("the mean over many samples is the rest's true weight; the standard error is honest") {
  for (const float coverage : {0.5f, 0.95f})
    for (const int num_samples : {16, 64, 256})
      for (const int budget : {1, 150}) {
        const Batch batch(noisy_spec());
        Sampler sampler(batch, 1, Sampler::budget(budget, num_samples, coverage));
        constexpr int kTrials = 400;
        const test::SampleMoments moments = test::sample_moments(sampler, kTrials);
        for (size_t g = 0; g < 2; ++g) {
          CAPTURE(coverage);
          CAPTURE(num_samples);
          CAPTURE(budget);
          CAPTURE(moments.mean[g]);
          CAPTURE(sampler.true_rest[g]);
          const double true_variance = moments.true_variance[g];
          CHECK(test::near(moments.mean[g], sampler.true_rest[g], 5.0 * std::sqrt(true_variance / kTrials)));
          CHECK(moments.stated_variance[g] >= 0.6 * true_variance);
          CHECK(moments.stated_variance[g] <= 4.0 * true_variance);
          if (num_samples == 256) CHECK(std::sqrt(true_variance) < 0.4 * sampler.true_rest[g]);
        }
      }
}

TEST_CASE("the same seed draws the same weight, whatever the team; later rounds draw other tokens") {
  const Batch batch(noisy_spec());
  Sampler alone(batch, 1, Sampler::budget(150, 64, 0.8f));
  for (const int workers : {2, 3, 5}) {
    // A token on the edge of a bucket shifts all strata behind it: the mean over seeds stays the same, most samples too.
    Sampler team(batch, workers, Sampler::budget(150, 64, 0.8f));
    double want = 0.0, got = 0.0;
    for (uint64_t seed = 1; seed <= 100; ++seed) {
      const float first = team.sample(seed)[0].weight;
      CHECK(team.sample(seed)[0].weight == first);
      got += double(first);
      want += double(alone.sample(seed)[0].weight);
    }
    CHECK(test::near(got, want, 0.1 * want));
  }
  const auto first = alone.sample(1);
  alone.stage.state.num_sampled = 64;
  CHECK(alone.sample(1)[0].weight != first[0].weight);
}

TEST_CASE("nothing read, no candidates: a sample of clusters alone") {
  BatchSpec spec = noisy_spec(600);
  spec.index.window_tokens = 400;
  spec.sharpness = 0.1f;
  const Batch batch(spec);
  DecodeOptions options;
  options.candidate_coverage = options.target_ratio = 0.5f;
  Sampler sampler(batch, 2, options);
  REQUIRE(sampler.stage.coded.candidates.clusters == 0);
  REQUIRE(sampler.unread.size() == 196);
  double mean = 0.0;
  for (uint64_t seed = 1; seed <= 50; ++seed) mean += double(sampler.sample(seed)[1].weight) / 50;
  CHECK(test::near(mean, sampler.true_rest[1], 0.05 * sampler.true_rest[1]));
}
