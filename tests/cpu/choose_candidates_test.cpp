// Candidates: enough weight for every head, the clusters of highest key, listed by id.
#include "quorum/cpu/choose_candidates.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "tests/support/coded_stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::CodedStage;

namespace {

// Largest over the heads of the expected weight of a token, as a share of the head's total.
double key_of(const CodedStage& stage, int cluster) {
  const double size = cluster_at(stage.head(), cluster).num_tokens();
  double key = 0.0;
  for (int g = 0; g < stage.num_heads() && size > 0.0; ++g) key = std::max(key, stage.estimate(cluster, g) / size / stage.coded.total[g]);
  return key;
}

DecodeOptions with_coverage(float coverage) {
  DecodeOptions options;
  options.candidate_coverage = coverage;
  return options;
}

void check_lists(const CodedStage& stage) {
  const int32_t *cluster = stage.shared().cluster, *first_block = stage.shared().first_block;
  int tokens = 0, blocks = 0;
  for (int i = 0; i < stage.coded.candidates.clusters; ++i) {
    if (i > 0) CHECK(cluster[i - 1] < cluster[i]);
    CHECK(first_block[i] == blocks);
    const int size = cluster_at(stage.head(), cluster[i]).num_tokens();
    CHECK(size > 0);
    tokens += size;
    blocks += (size + 15) / 16;
  }
  CHECK(first_block[stage.coded.candidates.clusters] == blocks);
  CHECK(stage.coded.candidates.tokens == tokens);
  CHECK(stage.coded.candidates.blocks == blocks);
}

// Expected weight of a head's clusters with keys in [low, high).
double weight_between(const CodedStage& stage, int g, float low, float high) {
  double sum = 0.0;
  for (int j = 0; j < stage.head().num_cluster_slots(); ++j)
    if (stage.shared().share[j] >= low && stage.shared().share[j] < high) sum += stage.estimate(j, g);
  return sum;
}

}  // namespace

TEST_CASE("keys: largest share per token over the heads; empty clusters have none") {
  for (const int heads : {1, 2, 3, 5, 8})
    for (const int workers : {1, 3}) {
      BatchSpec spec = test::coded_spec(900, heads);
      spec.index.segment_tokens = 300;
      const Batch batch(spec);
      CodedStage stage(batch, workers);
      stage.scan();
      REQUIRE(stage.finite);
      std::vector<double> weights(size_t(heads), 0.0);
      int64_t clusters = 0, counted = 0;
      for (int j = 0; j < stage.head().num_cluster_slots(); ++j) {
        const double want = key_of(stage, j);
        CHECK(test::near(double(stage.shared().share[j]), want, 1e-5 * want));
        ++clusters;
      }
      for (int w = 0; w < workers; ++w)
        for (int bucket = 0; bucket < kNumKeyBuckets; ++bucket) {
          counted += stage.worker(w).cluster_keys.counts[bucket];
          for (int g = 0; g < heads; ++g)
            weights[size_t(g)] += double(stage.worker(w).cluster_keys.weights[bucket * cpu::bucket_row(heads) + g]);
        }
      CHECK(counted == clusters);
      for (int g = 0; g < heads; ++g) {
        const double want = weight_between(stage, g, 0.0f, kInfinity);
        CHECK(test::near(weights[size_t(g)], want, 1e-5 * want));
      }
    }
}

TEST_CASE("candidates hold the coverage for every head, with no bucket of keys too many") {
  for (const float coverage : {0.5f, 0.8f, 0.95f, 0.99f})
    for (const int workers : {1, 2, 3}) {
      const Batch batch(test::coded_spec(1500, 4));
      CodedStage stage(batch, workers, with_coverage(coverage));
      stage.scan();
      check_lists(stage);
      const float key = stage.coded.candidate_key, next_bucket = bucket_key(key_bucket(key) - 1);
      bool needed = false;
      for (int g = 0; g < 4; ++g) {
        const double total = stage.coded.total[g], wanted = double(coverage) * total;
        const double inside = weight_between(stage, g, key, kInfinity);
        CHECK(stage.state.read[g] + inside >= wanted * (1.0 - 1e-5));
        needed = needed || stage.state.read[g] + weight_between(stage, g, next_bucket, kInfinity) < wanted * (1.0 + 1e-5);
        // What the codes made of the candidates goes for the others too, if it is less.
        const double outside = std::min(1.0, stage.coded.expected[g] / inside) * weight_between(stage, g, 0.0f, key);
        CHECK(test::near(stage.coded.outside[g], outside, 1e-4 * total));
      }
      CHECK(needed);
      for (int j = 0; j < stage.head().num_cluster_slots(); ++j) CHECK(stage.is_candidate(j) == (stage.shared().share[j] >= key));
    }
}

TEST_CASE("of the other clusters, those that enter the output hold nine tenths of what is left out") {
  const Batch batch(test::coded_spec(2500, 4));
  CodedStage stage(batch, 2, with_coverage(0.7f));
  stage.scan();
  const float low = stage.coded.outside_key, high = stage.coded.candidate_key;
  CHECK(low < high);
  int count = 0;
  for (int j = 0; j < stage.head().num_cluster_slots(); ++j) count += stage.shared().share[j] >= low && stage.shared().share[j] < high;
  CHECK(stage.coded.num_outside == count);
  for (int g = 0; g < 4; ++g) {
    const double used = weight_between(stage, g, low, high), total = stage.coded.total[g];
    CHECK(test::near(stage.coded.used_outside[g], used, 1e-5 * total));
    CHECK(stage.state.read[g] + weight_between(stage, g, low, kInfinity) >= (1.0 - 0.3 * 0.1) * total * (1.0 - 1e-5));
  }
}

TEST_CASE("a higher coverage has all candidates of a lower one") {
  const Batch batch(test::coded_spec(1500));
  std::vector<int> before;
  for (const float coverage : {0.5f, 0.7f, 0.9f, 0.99f, 1.0f}) {
    CodedStage stage(batch, 1, with_coverage(coverage));
    stage.scan();
    const std::vector<int> now(stage.shared().cluster, stage.shared().cluster + stage.coded.candidates.clusters);
    CHECK(now.size() >= before.size());
    CHECK(std::includes(now.begin(), now.end(), before.begin(), before.end()));
    before = now;
  }
}

TEST_CASE("no candidate where sinks and window hold the coverage") {
  const Batch batch(test::window_spec());
  for (const int workers : {1, 3}) {
    CodedStage stage(batch, workers, with_coverage(0.5f));
    stage.scan();
    CHECK(stage.finite);
    CHECK(stage.coded.candidates.clusters == 0);
    CHECK(stage.coded.candidate_key == kInfinity);
    check_lists(stage);
    for (int g = 0; g < 3; ++g) {
      CHECK(stage.coded.coded[g] == 0.0);
      CHECK(test::near(stage.coded.outside[g], weight_between(stage, g, 0.0f, kInfinity), 1e-5 * stage.coded.total[g]));
    }
  }
}

TEST_CASE("the same candidates for every team, but for clusters on the edge of a bucket") {
  const Batch batch(test::coded_spec(3000, 4));
  CodedStage alone(batch, 1);
  alone.scan();
  for (const int workers : {2, 3, 5}) {
    CodedStage team(batch, workers);
    team.scan();
    check_lists(team);
    int moved = 0;
    for (int j = 0; j < team.head().num_cluster_slots(); ++j) moved += alone.is_candidate(j) != team.is_candidate(j);
    CHECK(moved <= 1);
  }
}
