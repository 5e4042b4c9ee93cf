// Decoding by single tokens, which residual codes choose: errors and budgets against what was asked for.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::coded_batch;

namespace {

DecodeOptions token_options() {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::tokens;
  return options;
}

// New random queries over the same caches and indexes, each looking along one key.
void draw_queries(Batch& batch, uint64_t seed) {
  test::Random random(seed);
  for (int s = 0; s < batch.num_sequences(); ++s)
    for (int h = 0; h < batch.shape().num_qo_heads; ++h) {
      const int kv_head = batch.shape().kv_head_of(h);
      const double* key = batch.cache(s).keys(kv_head).row(random.below(batch.spec().lengths[size_t(s)]));
      for (int c = 0; c < batch.shape().head_dim; ++c) batch.queries().set(s, h, c, float(0.9 * key[c] + 2.9 * random.gaussian()));
    }
}

// Outcome of some calls with different queries.
struct Outcome {
  double error = 0.0, tokens = 0.0;               // means over heads
  std::vector<double> errors, estimates;          // of every head
  std::vector<int> indexed_tokens_read, samples;  // of every head
};
Outcome outcome_of(Batch& batch, const DecodeOptions& options, int num_trials) {
  Outcome out;
  const int d = batch.shape().head_dim, heads = batch.shape().num_qo_heads;
  for (int trial = 0; trial < num_trials; ++trial) {
    draw_queries(batch, uint64_t(trial) + 1);
    const auto result = batch.decode(options);
    REQUIRE(result.status == DecodeStatus::ok);
    for (int h = 0; h < heads; ++h) {
      const HeadReport& report = result.reports[size_t(h)];
      CHECK(report.path == DecodePath::sparse_tokens);
      const auto want = batch.attention(0, h);
      out.errors.push_back(test::relative_error(&result.output[size_t(h * d)], want.output.data(), d));
      out.estimates.push_back(double(report.error_estimate));
      out.indexed_tokens_read.push_back(report.tokens_read - batch.spec().index.num_sink_tokens - batch.spec().index.window_tokens);
      out.samples.push_back(report.tokens_sampled);
      out.error += out.errors.back() / (num_trials * heads);
      out.tokens += double(report.tokens_read) / (num_trials * heads);
    }
  }
  return out;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  double mean_a = 0.0, mean_b = 0.0, ab = 0.0, aa = 0.0, bb = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    mean_a += a[i] / double(a.size());
    mean_b += b[i] / double(a.size());
  }
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return ab / std::sqrt(aa * bb);
}

// As test::error_over_selection(), infinite too unless every head read single tokens.
double token_error(const Batch& batch, const DecodeOptions& options) {
  for (const HeadReport& report : batch.decode(options).reports)
    if (report.path != DecodePath::sparse_tokens) return double(kInfinity);
  return test::error_over_selection(batch, options);
}

}  // namespace

TEST_CASE("the output's error falls as the target rises; target 1 is dense") {
  Batch batch(coded_batch({3000}));
  DecodeOptions options = token_options();
  for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated}) {
    options.tail = tail;
    double error = 10.0, tokens = 0.0;
    for (const float target : {0.5f, 0.8f, 0.95f, 0.99f}) {
      options.target_ratio = target;
      const Outcome now = outcome_of(batch, options, 6);
      CAPTURE(int(tail));
      CAPTURE(target);
      CHECK(now.error < error);
      CHECK(now.tokens > tokens);
      error = now.error;
      tokens = now.tokens;
    }
    CHECK(error < 0.02);
  }
  options.target_ratio = 1.0f;
  SerialExecutor executor;
  const auto dense = batch.decode(options);
  CHECK(dense.same_bits(batch.dense(executor)));
  for (const HeadReport& report : dense.reports) CHECK(report.path == DecodePath::dense_by_target);
}

TEST_CASE("the rest by code is worth more than none") {
  Batch batch(coded_batch({3000}));
  DecodeOptions options = token_options();
  options.target_ratio = 0.8f;
  options.tail = Tail::drop;
  const double dropped = outcome_of(batch, options, 6).error;
  options.tail = Tail::calibrated;
  CHECK(outcome_of(batch, options, 6).error < 0.6 * dropped);
}

TEST_CASE("target error: half of it is about half the error; the estimate says which heads err more") {
  Batch batch(coded_batch({3000}));
  DecodeOptions options = token_options();
  double before = 10.0, tokens = 0.0;
  std::vector<double> measured, estimated;
  for (const float target : {0.2f, 0.1f, 0.05f, 0.025f}) {
    options.target_error = target;
    const Outcome now = outcome_of(batch, options, 10);
    CAPTURE(target);
    CAPTURE(now.error);
    CHECK(now.error < 0.8 * before);
    CHECK(now.error < 2.0 * double(target));  // below 0.03 what is outside the candidates sets the limit
    CHECK(now.tokens > tokens);
    before = now.error;
    tokens = now.tokens;
    for (size_t i = 0; i < now.errors.size(); ++i) {
      CHECK(now.estimates[i] > 0.0);
      measured.push_back(std::log(now.errors[i]));
      estimated.push_back(std::log(now.estimates[i]));
    }
  }
  CHECK(correlation(measured, estimated) > 0.6);
}

TEST_CASE("without a target error there is no estimate of it") {
  Batch batch(coded_batch({1500}));
  for (const double estimate : outcome_of(batch, token_options(), 2).estimates) CHECK(estimate == 0.0);
}

TEST_CASE("a budget reads that many tokens, to the end of a bucket of keys") {
  Batch batch(coded_batch({3000}));
  DecodeOptions options = token_options();
  for (const bool certify : {false, true})
    for (const int budget : {16, 100, 400}) {
      options.fixed_budget = budget;
      options.certificate.enabled = certify;
      for (const int read : outcome_of(batch, options, 5).indexed_tokens_read) {
        CAPTURE(budget);
        CHECK(read >= budget);
        CHECK(read < 1.1 * budget + 32);
      }
    }
}

TEST_CASE("bounds on the tokens chosen: of a target ratio and of a target error") {
  Batch batch(coded_batch({3000}));
  for (const float target_error : {0.0f, 0.02f})
    for (const int bound : {0, 1, 50, 200}) {
      DecodeOptions options = token_options();
      options.target_ratio = 0.99f;
      options.target_error = target_error;
      options.max_tokens = bound;
      for (const int read : outcome_of(batch, options, 3).indexed_tokens_read) CHECK(read <= bound);
      options.max_tokens = kMaxCount;
      options.target_ratio = 0.05f;
      options.target_error = target_error > 0.0f ? 0.9f : 0.0f;
      options.min_tokens = bound;
      for (const int read : outcome_of(batch, options, 3).indexed_tokens_read) CHECK(read >= bound);
    }
}

TEST_CASE("the certified bound holds; widening hits the target") {
  for (const MissPolicy policy : {MissPolicy::accept, MissPolicy::widen}) {
    BatchSpec spec = coded_batch({1500});
    spec.key_noise = 0.5f;
    Batch batch(spec);
    DecodeOptions options = token_options();
    options.certificate.enabled = true;
    options.certificate.policy = policy;
    int trials = 0, covered = 0, hits = 0;
    for (uint64_t trial = 1; trial <= 150; ++trial) {
      options.seed = trial;
      draw_queries(batch, trial + 100);
      const auto result = batch.decode(options);
      const auto selected = batch.select(options);
      for (int h = 0; h < 4; ++h, ++trials) {
        const double attained = batch.attained_ratio(0, h, selected.rows[size_t(h / 2)]);
        CHECK(result.reports[size_t(h)].tokens_sampled > 0);
        CHECK(result.reports[size_t(h)].confidence == 0.95f);
        CHECK(result.reports[size_t(h)].attained_ratio_lower_bound <= result.reports[size_t(h)].attained_ratio_estimate);
        covered += attained >= double(result.reports[size_t(h)].attained_ratio_lower_bound) - 1e-6;
        hits += attained >= 0.9 - 1e-6;
      }
    }
    CAPTURE(covered);
    CAPTURE(hits);
    CAPTURE(trials);
    CHECK(covered >= 0.95 * trials);
    if (policy == MissPolicy::widen) CHECK(hits >= 0.9 * trials);
  }
}

TEST_CASE("decode reads what select chooses: shapes, types, layouts") {
  for (const auto& size : std::vector<std::array<int, 3>>{{3, 3, 64}, {4, 2, 72}, {6, 2, 80}, {7, 1, 64}, {16, 2, 64}, {4, 2, 256}}) {
    BatchSpec spec = coded_batch({900, 400});
    spec.shape = {size[0], size[1], size[2], 0.0f};
    CAPTURE(size[2]);
    CHECK(token_error(Batch(spec), token_options()) <= 1.0);
  }
  for (const ElementType type : {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::q8_0, ElementType::fp8_e4m3})
    for (const test::Layout layout : {test::Layout::nhd, test::Layout::hnd, test::Layout::interleaved}) {
      BatchSpec spec = coded_batch({500});
      spec.type = spec.query_type = type;
      spec.layout = layout;
      const std::string what = std::string(element_name(type)) + ' ' + layout_name(layout);
      CAPTURE(what);
      CHECK(token_error(Batch(spec), token_options()) <= 1.0);
    }
}

TEST_CASE("decode reads what select chooses: by budget, by target error, with a certificate") {
  const Batch batch(coded_batch({1500}));
  DecodeOptions budget = token_options(), error = token_options(), certified = token_options();
  budget.fixed_budget = 200;
  error.target_error = 0.05f;
  certified.certificate.enabled = true;
  for (const DecodeOptions& options : {budget, error, certified}) CHECK(token_error(batch, options) <= 1.0);
}
