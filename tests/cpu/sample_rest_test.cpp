// The stratified sample of the unread rest: unbiased, with an honest error, the same for every team.
#include "quorum/cpu/sample_rest.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/sample_moments.hpp"
#include "tests/support/stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::Stage;

namespace {

BatchSpec spec_of(float key_noise) {
  BatchSpec spec;
  spec.shape = {4, 2, 64, 0.0f};
  spec.lengths = {1200};
  spec.key_noise = key_noise;
  return spec;
}

// Reads to a fixed budget once, then samples the rest with one seed after the other.
struct Sampler {
  Stage stage;
  DecodeOptions options;
  cpu::ReadState state;
  double true_rest[2] = {};

  Sampler(const Batch& batch, int workers, int num_samples) : stage(batch, 0, 1, workers) {
    options.fixed_budget = 150;
    options.num_samples = num_samples;
    stage.run([&](const cpu::HeadTask& task) {
      cpu::ReadState own;
      const bool finite = test::order_clusters(task, stage.index(), stage.head(), options.variance, own);
      if (finite) cpu::read_keys(task, stage.head(), options, own);
      cpu::share_rest(task, own);
      if (task.team.leads()) state = own;
    });
    for (int g = 0; g < 2; ++g) {
      const auto scores = stage.exact_scores(g);
      for (int position = state.stop; position < state.num_clusters; ++position) {
        const ClusterRef cluster = cluster_at(stage.head(), stage.shared().cluster[position]);
        for (int i = 0; i < cluster.num_tokens(); ++i)
          true_rest[g] += std::exp(scores[size_t(cluster.tokens()[i])] - double(state.reference[g]));
      }
    }
  }
  std::vector<SampledRest> sample(uint64_t seed) {
    options.seed = seed;
    std::vector<SampledRest> first(2);
    stage.run([&](const cpu::HeadTask& task) {
      cpu::ReadState own = state;
      SampledRest rest[kMaxGroupSize];
      cpu::sample_rest(task, stage.head(), options, own, rest);
      if (task.team.leads()) std::copy_n(rest, 2, first.begin());
      task.team.sync();
    });
    return first;
  }
};

}  // namespace

TEST_CASE("shares of the rest: of every unread cluster, largest over the heads") {
  const Batch batch(spec_of(0.4f));
  for (const int workers : {1, 3}) {
    Sampler sampler(batch, workers, 64);
    double shares = 0.0, sizes = 0.0;
    for (int position = sampler.state.stop; position < sampler.state.num_clusters; ++position) {
      double want = 0.0;
      for (int g = 0; g < 2; ++g) want = std::max(want, double(sampler.stage.shared().ordered.row(g)[position]) / sampler.state.rest[g]);
      CHECK(test::near(sampler.stage.shared().share[position], want, 1e-5 * want));
      shares += want;
      sizes += sampler.stage.shared().size[position];
    }
    double got_shares = 0.0, got_sizes = 0.0;
    for (int w = 0; w < workers; ++w) {
      got_shares += sampler.stage.worker(w).share_sum;
      got_sizes += sampler.stage.worker(w).size_sum;
    }
    CHECK(test::near(got_shares, shares, 1e-4 * shares));
    CHECK(got_sizes == sizes);
    CHECK(shares >= 0.99);  // each head's own shares sum to one
  }
}

TEST_CASE("the mean over many samples is the rest's true weight; the standard error is honest") {
  for (const float key_noise : {0.2f, 0.4f})
    for (const int num_samples : {16, 64, 256}) {
      const Batch batch(spec_of(key_noise));
      Sampler sampler(batch, 1, num_samples);
      constexpr int kTrials = 400;
      const test::SampleMoments moments = test::sample_moments(sampler, kTrials);
      for (size_t g = 0; g < 2; ++g) {
        CAPTURE(key_noise);
        CAPTURE(num_samples);
        CAPTURE(moments.mean[g]);
        CAPTURE(sampler.true_rest[g]);
        const double true_variance = moments.true_variance[g];
        CHECK(test::near(moments.mean[g], sampler.true_rest[g], 5.0 * std::sqrt(true_variance / kTrials)));
        CHECK(moments.stated_variance[g] >= 0.7 * true_variance);
        CHECK(moments.stated_variance[g] <= 4.0 * true_variance);
        // Useful at all: 64 draws know the rest of tight clusters to a third.
        if (num_samples == 64 && key_noise < 0.3f) CHECK(std::sqrt(true_variance) < 0.33 * sampler.true_rest[g]);
      }
    }
}

TEST_CASE("the same seed draws the same tokens, whatever the team") {
  const Batch batch(spec_of(0.4f));
  Sampler alone(batch, 1, 64);
  for (const int workers : {2, 3, 5}) {
    Sampler team(batch, workers, 64);
    REQUIRE(team.state.stop == alone.state.stop);
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      const auto want = alone.sample(seed), got = team.sample(seed);
      for (size_t g = 0; g < 2; ++g) {
        CHECK(test::near(got[g].weight, want[g].weight, 1e-4 * double(want[g].weight)));
        CHECK(test::near(got[g].standard_error, want[g].standard_error, 1e-3 * double(want[g].standard_error)));
      }
    }
  }
}

TEST_CASE("later rounds draw other tokens") {
  const Batch batch(spec_of(0.4f));
  Sampler sampler(batch, 1, 64);
  const auto first = sampler.sample(1);
  sampler.state.num_sampled = 64;
  CHECK(sampler.sample(1)[0].weight != first[0].weight);
}

TEST_CASE("a rest of one cluster: every draw is one of its tokens") {
  BatchSpec spec = spec_of(0.4f);
  spec.lengths = {40};  // two clusters
  const Batch batch(spec);
  Sampler sampler(batch, 2, 32);
  sampler.options.fixed_budget = 1;
  sampler.stage.run([&](const cpu::HeadTask& task) {
    cpu::ReadState own;
    const bool finite = test::order_clusters(task, sampler.stage.index(), sampler.stage.head(), VarianceModel::shared, own);
    if (finite) cpu::read_keys(task, sampler.stage.head(), sampler.options, own);
    cpu::share_rest(task, own);
    if (task.team.leads()) sampler.state = own;
  });
  REQUIRE(sampler.state.stop == 1);
  REQUIRE(sampler.state.num_clusters == 2);
  const auto scores = sampler.stage.exact_scores(0);
  const ClusterRef cluster = cluster_at(sampler.stage.head(), sampler.stage.shared().cluster[1]);
  double smallest = double(kInfinity), largest = 0.0;
  for (int i = 0; i < cluster.num_tokens(); ++i) {
    const double weight = std::exp(scores[size_t(cluster.tokens()[i])] - double(sampler.state.reference[0]));
    smallest = std::min(smallest, weight);
    largest = std::max(largest, weight);
  }
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const double weight = double(sampler.sample(seed)[0].weight);
    CHECK(weight >= cluster.num_tokens() * smallest * 0.999);
    CHECK(weight <= cluster.num_tokens() * largest * 1.001);
  }
}
