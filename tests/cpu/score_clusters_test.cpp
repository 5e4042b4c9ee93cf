// Scores of centroids in the index's coordinates, and the weight each cluster is expected to hold.
#include "quorum/cpu/score_clusters.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/support/stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::Stage;

namespace {

// Log weights of every cluster slot for one query head of the group.
std::vector<float> log_weights(Stage& stage, VarianceModel model, int head_of_group, int group) {
  stage.run([&](const cpu::HeadTask& task) {
    const cpu::Team& team = task.team;
    cpu::load_queries(task);
    const int blocks = padded_dim(task.head_dim()) / 16;
    cpu::transform_blocks(task, stage.head().metric, team.first(blocks), team.last(blocks));
    team.sync();
    const cpu::IndexQueries queries = cpu::prepare_queries(task, stage.head().metric);
    cpu::score_blocks(task, stage.head(), model, queries, team.first(stage.head().num_blocks()), team.last(stage.head().num_blocks()));
  });
  std::vector<float> out;
  for (int block = 0; block < stage.head().num_blocks(); ++block)
    for (int lane = 0; lane < kClusterBlock; ++lane)
      out.push_back(stage.shared().log_weight[(int64_t(block) * group + head_of_group) * kClusterBlock + lane]);
  return out;
}

// Mean and variance of the exact scores of a cluster's tokens, and the log of their mean weight.
struct Exact {
  double mean = 0.0, variance = 0.0, log_mean_weight = 0.0;
};
Exact exact(const ClusterRef& cluster, const std::vector<double>& scores) {
  Exact out;
  double weight = 0.0;
  const int n = cluster.num_tokens();
  for (int i = 0; i < n; ++i) out.mean += scores[size_t(cluster.tokens()[i])] / n;
  for (int i = 0; i < n; ++i) {
    out.variance += std::pow(scores[size_t(cluster.tokens()[i])] - out.mean, 2) / n;
    weight += std::exp(scores[size_t(cluster.tokens()[i])]) / n;
  }
  out.log_mean_weight = std::log(weight);
  return out;
}

double standard_deviation(const std::vector<double>& x) {
  double mean = 0.0, sum = 0.0;
  for (const double v : x) mean += v / double(x.size());
  for (const double v : x) sum += (v - mean) * (v - mean) / double(x.size());
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("the score of a centroid is the mean score of its tokens: head_dims, storages, with and without prompt queries") {
  for (const int d : {8, 64, 72, 80, 96, 128, 192, 256})
    for (const IndexStorage storage : {IndexStorage::f32, IndexStorage::int8})
      for (const int prompt : {0, 40}) {
        BatchSpec spec;
        spec.shape = {6, 2, d, 0.0f};
        spec.lengths = {500};
        spec.index.storage = storage;
        spec.index.segment_tokens = 200;
        spec.num_prompt_queries = prompt;
        const Batch batch(spec);
        const bool int8 = storage == IndexStorage::int8;
        CAPTURE(d);
        CAPTURE(int8);
        CAPTURE(prompt);
        Stage stage(batch, 0, 1, 2);
        for (int g = 0; g < 3; ++g) {
          const auto log_weight = log_weights(stage, VarianceModel::none, g, 3);
          const auto scores = stage.exact_scores(g);
          double square = 0.0;
          int clusters = 0;
          for (int j = 0; j < stage.head().num_cluster_slots(); ++j) {
            const ClusterRef cluster = cluster_at(stage.head(), j);
            if (cluster.num_tokens() == 0) {
              CHECK(log_weight[size_t(j)] == -kInfinity);
              continue;
            }
            square += std::pow(double(log_weight[size_t(j)]) - exact(cluster, scores).mean, 2);
            ++clusters;
          }
          // f16 factors of the transform err by 2^-12 each, int8 queries and centroids by up to a half of 1/127 of the largest coordinate
          // each: at most 0.041 of the scores' deviation over these shapes, with either compiler.
          const double error = std::sqrt(square / clusters) / standard_deviation(scores);
          CHECK(error <= (int8 ? 0.05 : 0.002));
        }
      }
}

TEST_CASE("second-order models estimate the mean weight far better than the centroid alone") {
  BatchSpec spec;
  spec.shape = {4, 2, 64, 0.0f};
  spec.lengths = {1500};
  spec.key_noise = 0.5f;
  spec.index.variance = VarianceModel::diagonal;
  const Batch batch(spec);
  Stage stage(batch, 0, 0);
  double bias[3] = {};  // of the log of the weight, over clusters
  double half_variance[3] = {}, want_half_variance = 0.0;
  for (int g = 0; g < 2; ++g) {
    const auto scores = stage.exact_scores(g);
    const auto none = log_weights(stage, VarianceModel::none, g, 2);
    for (const VarianceModel model : {VarianceModel::none, VarianceModel::shared, VarianceModel::diagonal}) {
      const auto log_weight = log_weights(stage, model, g, 2);
      for (int j = 0; j < stage.head().num_cluster_slots(); ++j) {
        const ClusterRef cluster = cluster_at(stage.head(), j);
        if (cluster.num_tokens() == 0) continue;
        const Exact want = exact(cluster, scores);
        bias[int(model)] += double(log_weight[size_t(j)]) - want.log_mean_weight;
        half_variance[int(model)] += double(log_weight[size_t(j)]) - double(none[size_t(j)]);
        if (model == VarianceModel::none) want_half_variance += want.variance / 2.0;
      }
    }
  }
  CHECK(bias[0] < 0.0);  // Jensen
  CHECK(std::fabs(bias[1]) < 0.3 * std::fabs(bias[0]));
  CHECK(std::fabs(bias[2]) < 0.3 * std::fabs(bias[0]));
  CHECK(test::near(half_variance[1], want_half_variance, 0.15 * want_half_variance));
  CHECK(test::near(half_variance[2], want_half_variance, 0.15 * want_half_variance));
}

TEST_CASE("expected weights: size times mean weight, in units of the reference; their sum") {
  BatchSpec spec;
  spec.shape = {7, 1, 64, 0.0f};
  spec.lengths = {700};
  const Batch batch(spec);
  Stage stage(batch, 0, 0);
  const auto log_weight = log_weights(stage, VarianceModel::shared, 5, 7);
  std::vector<float> reference(7, 2.5f);
  stage.run([&](const cpu::HeadTask& task) { cpu::weigh_blocks(task, stage.head(), reference.data(), 0, stage.head().num_blocks()); });
  double sum = 0.0;
  for (int j = 0; j < stage.head().num_cluster_slots(); ++j) {
    const double want = cluster_at(stage.head(), j).num_tokens() * std::exp(double(log_weight[size_t(j)]) - 2.5);
    const float got = stage.shared().estimate[(int64_t(j / 16) * 7 + 5) * 16 + j % 16];
    CHECK(test::near(got, want, 1e-5 * want));
    sum += want;
  }
  CHECK(test::near(stage.worker(0).estimate[5], sum, 1e-5 * sum));
}

TEST_CASE("the largest log weight of every head is published") {
  BatchSpec spec;
  spec.lengths = {400};
  const Batch batch(spec);
  Stage stage(batch, 0, 1, 3);
  for (int g = 0; g < 2; ++g) {
    float want = -kInfinity, got = -kInfinity;
    for (const float x : log_weights(stage, VarianceModel::shared, g, 2)) want = std::max(want, x);
    for (int w = 0; w < 3; ++w) got = std::max(got, stage.worker(w).max_score[g]);
    CHECK(got == want);
  }
}
