// The certificate: its bound holds at the stated rate, and each policy does what it says.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

BatchSpec spec_of(float key_noise) {
  BatchSpec spec;
  spec.shape = {4, 2, 64, 0.0f};
  spec.lengths = {1500};
  spec.key_noise = key_noise;
  return spec;
}

DecodeOptions options_of(MissPolicy policy, float confidence) {
  DecodeOptions options;
  options.target_ratio = 0.9f;
  options.dense_below = 0;
  options.certificate.enabled = true;
  options.certificate.policy = policy;
  options.certificate.confidence = confidence;
  return options;
}

// New random queries over the same cache and index, each looking along one key.
void draw_queries(Batch& batch, uint64_t seed) {
  test::Random random(seed);
  for (int h = 0; h < 4; ++h) {
    const double* key = batch.cache(0).keys(h / 2).row(random.below(1500));
    for (int c = 0; c < 64; ++c) batch.queries().set(0, h, c, float(0.9 * key[c] + 2.9 * random.gaussian()));
  }
}

struct Rates {
  int trials = 0;   // KV heads: their query heads share one sample
  int covered = 0;  // by the bound, mean over the query heads of each
  int hits = 0;     // heads whose attained ratio meets the target
};

// Share of trials in which the true attained ratio is at least the reported bound.
Rates rates_of(float key_noise, const DecodeOptions& base, int num_trials) {
  Batch batch(spec_of(key_noise));
  Rates rates;
  DecodeOptions options = base;
  for (int trial = 0; trial < num_trials; ++trial) {
    options.seed = uint64_t(trial) + 1;
    draw_queries(batch, uint64_t(trial) + 100);
    const auto result = batch.decode(options);
    const auto selected = batch.select(options);
    for (int h = 0; h < 4; ++h) {
      const HeadReport& report = result.reports[size_t(h)];
      const double attained = batch.attained_ratio(0, h, selected.rows[size_t(h / 2)]);
      ++rates.trials;
      rates.covered += attained >= double(report.attained_ratio_lower_bound) - 1e-6;
      rates.hits += attained >= double(options.target_ratio) - 1e-6;
    }
  }
  return rates;
}

// The rate minus three standard deviations of a binomial. Query heads in pairs share draws, so that half of the trials count.
double allowed(double rate, int trials) { return rate - 3.0 * std::sqrt(rate * (1.0 - rate) / (trials / 2.0)); }

}  // namespace

TEST_CASE("the bound holds at its stated rate") {
  for (const float key_noise : {0.3f, 0.6f})
    for (const float confidence : {0.8f, 0.95f})
      for (const MissPolicy policy : {MissPolicy::accept, MissPolicy::widen}) {
        const Rates rates = rates_of(key_noise, options_of(policy, confidence), 200);
        CAPTURE(key_noise);
        CAPTURE(confidence);
        CAPTURE(int(policy));
        CAPTURE(rates.covered);
        CAPTURE(rates.hits);
        CHECK(double(rates.covered) / rates.trials >= allowed(double(confidence), rates.trials));
      }
}

TEST_CASE("widening hits the target more often than accepting") {
  const Rates accept = rates_of(0.6f, options_of(MissPolicy::accept, 0.95f), 100);
  const Rates widen = rates_of(0.6f, options_of(MissPolicy::widen, 0.95f), 100);
  CAPTURE(accept.hits);
  CAPTURE(widen.hits);
  CHECK(widen.hits >= accept.hits);
  CHECK(double(widen.hits) / widen.trials >= 0.95);
}

TEST_CASE("accept: the selection is what it would be without a certificate") {
  Batch batch(spec_of(0.5f));
  DecodeOptions options = options_of(MissPolicy::accept, 0.95f), plain = options;
  plain.certificate.enabled = false;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    draw_queries(batch, seed);
    CHECK(batch.select(options).rows == batch.select(plain).rows);
    for (const HeadReport& report : batch.decode(options).reports) CHECK(report.rounds == 0);
  }
}

TEST_CASE("widen: never less than accepting, bounded rounds, no rounds if none are allowed") {
  Batch batch(spec_of(0.6f));
  int widened = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    draw_queries(batch, seed);
    DecodeOptions options = options_of(MissPolicy::accept, 0.99f);
    const auto accepted = batch.select(options).rows;
    options.certificate.policy = MissPolicy::widen;
    for (const int max_rounds : {0, 1, 3, 8}) {
      options.certificate.max_rounds = max_rounds;
      const auto selected = batch.select(options);
      for (size_t r = 0; r < 2; ++r)
        CHECK(std::includes(selected.rows[r].begin(), selected.rows[r].end(), accepted[r].begin(), accepted[r].end()));
      for (const HeadReport& report : selected.reports) {
        CHECK(report.rounds <= max_rounds);
        widened += report.rounds > 0;
        if (max_rounds == 0) CHECK(report.tokens_read == int(accepted[size_t(&report - selected.reports.data()) / 2].size()));
      }
    }
  }
  CHECK(widened > 0);
}

TEST_CASE("dense: the bound holds for every head of a group, or the group is attended densely bit for bit") {
  Batch batch(spec_of(0.8f));
  SerialExecutor executor;
  int dense_groups = 0, sparse_groups = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    draw_queries(batch, seed);
    DecodeOptions options = options_of(MissPolicy::dense, 0.999f);
    options.certificate.max_rounds = int(seed % 3);
    options.max_tokens = seed % 2 == 0 ? 300 : 1 << 20;
    const auto result = batch.decode(options), dense = batch.dense(executor);
    for (size_t kv = 0; kv < 2; ++kv) {
      if (result.reports[2 * kv].path == DecodePath::dense_by_policy) {
        ++dense_groups;
        CHECK(test::largest_difference(&result.output[kv * 128], &dense.output[kv * 128], 128) == 0.0);
        CHECK(result.lse[2 * kv] == dense.lse[2 * kv]);
        CHECK(result.reports[2 * kv].tokens_read == 1500);
        CHECK(result.reports[2 * kv].attained_ratio_lower_bound == 1.0f);
      } else {
        ++sparse_groups;
        for (size_t g = 0; g < 2; ++g) {
          CHECK(result.reports[2 * kv + g].path == DecodePath::sparse);
          CHECK(result.reports[2 * kv + g].attained_ratio_lower_bound >= options.target_ratio - 1e-5f);
        }
      }
    }
  }
  CHECK(dense_groups > 0);
  CHECK(sparse_groups > 0);
}

TEST_CASE("a fixed budget is kept: the certificate only reports") {
  Batch batch(spec_of(0.6f));
  DecodeOptions options = options_of(MissPolicy::widen, 0.99f), plain = options;
  options.fixed_budget = plain.fixed_budget = 100;
  plain.certificate.enabled = false;
  CHECK(batch.select(options).rows == batch.select(plain).rows);
  for (const HeadReport& report : batch.decode(options).reports) {
    CHECK(report.rounds == 0);
    CHECK(report.attained_ratio_lower_bound > 0.0f);
    CHECK(report.confidence == 0.99f);
  }
}

TEST_CASE("a higher confidence, a lower bound") {
  Batch batch(spec_of(0.6f));
  float previous = 1.0f;
  for (const float confidence : {0.6f, 0.8f, 0.95f, 0.999f}) {
    const auto result = batch.decode(options_of(MissPolicy::accept, confidence));
    CHECK(result.reports[0].attained_ratio_lower_bound < previous);
    previous = result.reports[0].attained_ratio_lower_bound;
  }
}
