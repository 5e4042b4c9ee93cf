// Weights of coded tokens against their formula in double, and what is summed up of them on the way.
#include "quorum/cpu/scan_codes.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/support/coded_stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::CodedStage;
using test::CodedToken;

namespace {

// Rounding of a share to f16; below 2^-14 its step stays the same.
double share_tolerance(double share) { return share * 0x1p-11 + 0x1p-25; }

// Largest error of stored shares in units of what tables and f16 may change, of masses and sums by the same.
double largest_error(const CodedStage& stage) {
  double worst = 0.0;
  for (int g = 0; g < stage.num_heads(); ++g) {
    std::vector<double> mass(size_t(stage.coded.candidates.clusters), 0.0), mass_bound = mass;
    double sum = 0.0, sum_bound = 0.0;
    for (const CodedToken& token : stage.coded_tokens()) {
      const double weight = stage.coded_weight(token, g), bound = weight * stage.weight_tolerance(token, g);
      const double share = weight / stage.coded.total[g];
      const double allowed = bound / stage.coded.total[g] + share_tolerance(share);
      worst = test::larger_error(worst, std::fabs(stage.stored_share(token, g) - share) / allowed);
      mass[size_t(token.candidate)] += weight;
      mass_bound[size_t(token.candidate)] += bound;
      sum += weight;
      sum_bound += bound;
    }
    for (int i = 0; i < stage.coded.candidates.clusters; ++i)
      worst = test::larger_error(worst, std::fabs(stage.mass(i, g) - mass[size_t(i)]) / mass_bound[size_t(i)]);
    if (stage.coded.candidates.clusters > 0) worst = test::larger_error(worst, std::fabs(stage.coded.coded[g] - sum) / sum_bound);
  }
  return worst;
}

// Factor from a coded weight to the expected one.
double expectation(const CodedStage& stage, const CodedToken& token, int g, int head_dim) {
  const ClusterRef cluster = stage.candidate(token.candidate);
  const double spread = double(cluster.segment->spread[cluster.local]);
  const double lost = (1.0 - 2.0 / std::acos(-1.0)) * double(stage.weights.queries.square[g]) / head_dim * spread;
  return std::exp(double(limited_half_variance(float(0.5 * lost))));
}

}  // namespace

TEST_CASE("weights by centroid and code: groups, head_dims, teams") {
  for (const auto& size : std::vector<std::pair<int, int>>{
           {1, 64}, {2, 64}, {3, 72}, {4, 80}, {5, 64}, {6, 64}, {7, 72}, {8, 64}, {2, 256}, {4, 8}, {1, 128}, {16, 64}})
    for (const int workers : {1, 2, 3}) {
      const int heads = size.first, d = size.second;
      BatchSpec spec = test::coded_spec(800, heads, d);
      spec.index.segment_tokens = 300;
      const Batch batch(spec);
      CodedStage stage(batch, workers);
      stage.scan();
      REQUIRE(stage.finite);
      REQUIRE(stage.coded.candidates.clusters > 0);
      const std::string what =
          std::to_string(heads) + " heads, head_dim " + std::to_string(d) + ", " + std::to_string(workers) + " workers";
      CAPTURE(what);
      CHECK(largest_error(stage) <= 1.0);
    }
}

TEST_CASE("variance models and storages: codes stand for the second-order term") {
  for (const VarianceModel model : {VarianceModel::none, VarianceModel::shared})
    for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32}) {
      BatchSpec spec = test::coded_spec(700);
      spec.index.storage = storage;
      const Batch batch(spec);
      DecodeOptions options;
      options.variance = model;
      CodedStage stage(batch, 2, options);
      stage.scan();
      CHECK(largest_error(stage) <= 1.0);
      // Without a model nothing is expected to be heavier than its code says.
      for (int g = 0; g < 3; ++g) CHECK((stage.coded.expected[g] > stage.coded.coded[g]) == (model == VarianceModel::shared));
    }
}

TEST_CASE("buckets are those of the largest share over the heads; beyond the last token lies the last bucket") {
  const Batch batch(test::coded_spec(1000, 4));
  CodedStage stage(batch, 2);
  stage.scan();
  std::vector<int> filled(size_t(stage.coded.candidates.blocks * 16), 0);
  for (const CodedToken& token : stage.coded_tokens()) {
    double low = 0.0, high = 0.0;
    for (int g = 0; g < 4; ++g) {
      const double share = stage.coded_weight(token, g) / stage.coded.total[g], error = stage.weight_tolerance(token, g);
      low = std::max(low, share * (1.0 - error));
      high = std::max(high, share * (1.0 + error));
    }
    CHECK(stage.stored_bucket(token) >= key_bucket(float(high)));
    CHECK(stage.stored_bucket(token) <= key_bucket(float(std::max(low, 0.0))));
    filled[size_t(token.scan_block * 16 + token.lane)] = 1;
  }
  for (size_t i = 0; i < filled.size(); ++i)
    if (filled[i] == 0) CHECK(stage.shared().token_bucket[i] == kNumKeyBuckets - 1);
}

TEST_CASE("the histogram counts every token once, with its expected weight or its squared coded weight") {
  const int d = 64;
  const Batch batch(test::coded_spec(1000, 5, d));
  for (const float target_error : {0.0f, 0.05f})
    for (const int workers : {1, 3}) {
      DecodeOptions options;
      options.target_error = target_error;
      CodedStage stage(batch, workers, options);
      stage.scan();
      std::vector<int> counts(kNumKeyBuckets, 0);
      for (const CodedToken& token : stage.coded_tokens()) ++counts[size_t(stage.stored_bucket(token))];
      for (int g = 0; g < 5; ++g) {
        std::vector<double> want(kNumKeyBuckets, 0.0), bound = want;
        double expected = 0.0;
        for (const CodedToken& token : stage.coded_tokens()) {
          const double weight = stage.coded_weight(token, g), error = stage.weight_tolerance(token, g);
          const double counted = target_error > 0.0f ? weight * weight : weight * expectation(stage, token, g, d);
          want[size_t(stage.stored_bucket(token))] += counted;
          bound[size_t(stage.stored_bucket(token))] += counted * (target_error > 0.0f ? std::pow(1.0 + error, 2) - 1.0 : error);
          expected += weight * expectation(stage, token, g, d);
        }
        double sum = 0.0, sum_bound = 0.0;
        for (int bucket = 0; bucket < kNumKeyBuckets; ++bucket) {
          double got = 0.0;
          int count = 0;
          for (int w = 0; w < workers; ++w) {
            got += double(stage.worker(w).token_keys.weights[bucket * cpu::bucket_row(5) + g]);
            count += stage.worker(w).token_keys.counts[bucket];
          }
          CHECK(count == counts[size_t(bucket)]);
          CHECK(test::near(got, want[size_t(bucket)], bound[size_t(bucket)] + 1e-4 * want[size_t(bucket)]));
          sum += got;
          sum_bound += bound[size_t(bucket)];
        }
        if (target_error == 0.0f) {
          CHECK(test::near(sum, expected, sum_bound));
          CHECK(test::near(stage.coded.expected[g], sum, 1e-4 * sum));
        }
      }
    }
}

TEST_CASE("clusters of one token: nothing but their centroids") {
  BatchSpec spec = test::coded_spec(300);
  spec.index.cluster_size = 1;
  spec.index.storage = IndexStorage::f32;
  const Batch batch(spec);
  for (const int workers : {1, 2}) {
    CodedStage stage(batch, workers);
    stage.scan();
    CHECK(largest_error(stage) <= 1.0);
    for (int g = 0; g < 3; ++g) {
      const auto scores = stage.exact_scores(g);
      for (const CodedToken& token : stage.coded_tokens()) {
        const ClusterRef cluster = stage.candidate(token.candidate);
        if (cluster.num_tokens() > 1) continue;
        CHECK(stage.code_scale(token) < 1e-5);
        const double want = stage.exact_weight(scores, token.token, g);
        CHECK(test::near(stage.mass(token.candidate, g), want, 0.02 * want));
      }
    }
  }
}

TEST_CASE("no candidates: nothing is scanned, everything is zero") {
  BatchSpec spec = test::coded_spec(600);
  spec.index.window_tokens = 560;
  spec.sharpness = 0.1f;
  const Batch batch(spec);
  DecodeOptions options;
  options.candidate_coverage = 0.5f;
  for (const int workers : {1, 3}) {
    CodedStage stage(batch, workers, options);
    stage.scan();
    REQUIRE(stage.coded.candidates.clusters == 0);
    for (int g = 0; g < 3; ++g) {
      CHECK(stage.coded.coded[g] == 0.0);
      CHECK(stage.coded.expected[g] == 0.0);
      CHECK(stage.state.rest[g] == stage.coded.outside[g]);
    }
    for (int w = 0; w < workers; ++w)
      for (int bucket = 0; bucket < kNumKeyBuckets; ++bucket) CHECK(stage.worker(w).token_keys.counts[bucket] == 0);
  }
}

TEST_CASE("workers share the scan blocks about evenly, each candidate once") {
  const Batch batch(test::coded_spec(3000));
  for (const int workers : {1, 2, 3, 7}) {
    CodedStage stage(batch, workers);
    stage.scan();
    std::vector<cpu::CandidateRange> ranges(static_cast<size_t>(workers));
    stage.step([&](const cpu::HeadTask& task, const cpu::ReadState&, const cpu::CodedState& coded) {
      ranges[size_t(task.team.worker)] = cpu::candidate_range(task, coded.candidates);
    });
    int next = 0;
    for (const cpu::CandidateRange& range : ranges) {
      CHECK(range.first == next);
      next = range.last;
      const int blocks = stage.shared().first_block[range.last] - stage.shared().first_block[range.first];
      CHECK(std::abs(blocks - stage.coded.candidates.blocks / workers) <= 20);  // a cluster of up to a few hundred tokens
    }
    CHECK(next == stage.coded.candidates.clusters);
  }
}

TEST_CASE("soft-capping bounds coded scores as it bounds exact ones") {
  test::BatchSpec spec = test::coded_spec(600);
  spec.shape.logit_softcap = 4.0f;
  const test::Batch batch(spec);
  test::CodedStage stage(batch);
  stage.scan();
  REQUIRE(stage.finite);
  for (int g = 0; g < stage.num_heads(); ++g) {
    double want = 0.0, uncapped = 0.0, bound = 0.0;
    for (const test::CodedToken& at : stage.coded_tokens()) {
      const double score = std::log(stage.coded_weight(at, g)) + double(stage.state.reference[g]);
      const double weight = std::exp(4.0 * std::tanh(score / 4.0) - double(stage.state.reference[g]));
      want += weight;
      uncapped += stage.coded_weight(at, g);
      bound += weight * stage.weight_tolerance(at, g);
    }
    CHECK(std::fabs(stage.coded.coded[g] - want) <= bound);
    CHECK(std::fabs(uncapped - want) > bound);
  }
}
