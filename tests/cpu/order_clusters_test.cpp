// The reading order: every cluster once, by share per token, ties by id, the same for every team.
#include "quorum/cpu/order_clusters.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "tests/support/stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::Stage;

namespace {

// Orders the clusters of a stage; returns how many there are.
int order(Stage& stage, cpu::ReadState* state = nullptr) {
  cpu::ReadState last;
  stage.run([&](const cpu::HeadTask& task) {
    cpu::ReadState own;
    const bool finite = test::order_clusters(task, stage.index(), stage.head(), VarianceModel::shared, own);
    if (!task.team.leads()) return;
    REQUIRE(finite);
    last = own;
  });
  if (state != nullptr) *state = last;
  return last.num_clusters;
}

BatchSpec spec_of(int length) {
  BatchSpec spec;
  spec.shape = {6, 2, 64, 0.0f};
  spec.lengths = {length};
  spec.index.segment_tokens = 300;
  return spec;
}

}  // namespace

TEST_CASE("every cluster that is not empty has one position; what lies beside it is its own") {
  for (const int length : {6, 40, 700}) {
    const Batch batch(spec_of(length));
    Stage stage(batch, 0, 1);
    const int count = order(stage);
    std::vector<int> seen(size_t(stage.head().num_cluster_slots()), 0);
    for (int position = 0; position < count; ++position) {
      const int cluster = stage.shared().cluster[position];
      ++seen[size_t(cluster)];
      CHECK(stage.shared().size[position] == cluster_at(stage.head(), cluster).num_tokens());
      for (int g = 0; g < 3; ++g)
        CHECK(stage.shared().ordered.row(g)[position] == stage.shared().estimate[(int64_t(cluster / 16) * 3 + g) * 16 + cluster % 16]);
    }
    for (int j = 0; j < stage.head().num_cluster_slots(); ++j)
      CHECK(seen[size_t(j)] == (cluster_at(stage.head(), j).num_tokens() > 0 ? 1 : 0));
  }
}

TEST_CASE("by the largest share per token of the group's heads, within a bucket's width; ties by id") {
  const Batch batch(spec_of(900));
  Stage stage(batch, 0, 0);
  cpu::ReadState state;
  const int count = order(stage, &state);
  const auto share_per_token = [&](int position) {
    double largest = 0.0;
    for (int g = 0; g < 3; ++g) {
      const double total = state.read[g] + state.rest[g];
      largest = std::max(largest, double(stage.shared().ordered.row(g)[position]) / stage.shared().size[position] / total);
    }
    return largest;
  };
  for (int position = 1; position < count; ++position) {
    CHECK(share_per_token(position) <= share_per_token(position - 1) * std::exp(1.001 / kOrderBucketsPerNat));
    const int before = stage.shared().bucket[stage.shared().cluster[position - 1]];
    const int own = stage.shared().bucket[stage.shared().cluster[position]];
    CHECK(before <= own);
    if (before == own) CHECK(stage.shared().cluster[position - 1] < stage.shared().cluster[position]);
  }
  CHECK(share_per_token(0) > 100.0 * share_per_token(count - 1));
}

TEST_CASE("the order does not depend on the team") {
  const Batch batch(spec_of(900));
  std::vector<int> first;  // bucket of every cluster
  for (const int workers : {1, 2, 3, 5}) {
    Stage stage(batch, 0, 1, workers);
    order(stage);
    const std::vector<int> now(stage.shared().bucket, stage.shared().bucket + stage.head().num_cluster_slots());
    if (first.empty()) first = now;
    int moved = 0;
    for (size_t j = 0; j < now.size(); ++j) {
      CHECK(std::abs(now[j] - first[j]) <= 1);
      moved += now[j] != first[j];
    }
    CHECK(moved <= 2);  // totals differ by rounding, and with them a share at the very edge of a bucket
  }
}

TEST_CASE("weights of tokens that are always read, and estimates of the rest") {
  BatchSpec spec = spec_of(600);
  spec.index.window_tokens = 25;
  const Batch batch(spec);
  for (const int workers : {1, 3}) {
    Stage stage(batch, 0, 1, workers);
    cpu::ReadState state;
    order(stage, &state);
    CHECK(state.num_always == 29);
    for (int g = 0; g < 3; ++g) {
      const auto scores = stage.exact_scores(g);
      double always = 0.0, rest = 0.0;
      for (int i = 0; i < 600; ++i) (i < 4 || i >= 575 ? always : rest) += std::exp(scores[size_t(i)] - double(state.reference[g]));
      CHECK(test::near(state.read[g], always, 1e-5 * always));
      CHECK(state.rest[g] > 0.5 * rest);
      CHECK(state.rest[g] < 2.0 * rest);
    }
  }
}
