// Reference, totals and finiteness of the first stage as a whole.
#include "quorum/cpu/weigh_clusters.hpp"

#include <doctest/doctest.h>

#include "tests/support/near.hpp"
#include "tests/support/stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::Stage;

namespace {

struct Weighed {
  bool finite = false;
  cpu::ReadState state;
  cpu::ClusterWeights weights;
};

// What the leader of a team found.
Weighed weigh(const Batch& batch, int kv_head, int num_workers, bool by_tokens) {
  Stage stage(batch, 0, kv_head, num_workers);
  Weighed out;
  stage.run([&](const cpu::HeadTask& task) {
    cpu::ReadState state;
    cpu::ClusterWeights weights;
    const bool finite = cpu::weigh_clusters(task, stage.index(), stage.head(), VarianceModel::shared, by_tokens, state, weights);
    if (task.team.leads()) out = {finite, state, weights};
  });
  return out;
}

BatchSpec spec() {
  BatchSpec spec;
  spec.lengths = {900};
  return spec;
}

}  // namespace

TEST_CASE("always-read weight is exact, log_total is the log of both weights together") {
  const Batch batch(spec());
  for (const int workers : {1, 3}) {
    Stage stage(batch, 0, 1);
    const Weighed got = weigh(batch, 1, workers, false);
    REQUIRE(got.finite);
    for (int g = 0; g < batch.shape().group_size(); ++g) {
      const auto scores = stage.exact_scores(g);
      const int end = stage.index().indexed_end, begin = end - stage.index().num_indexed;
      double always = 0.0;
      for (int i = 0; i < int(scores.size()); ++i)
        if (i < begin || i >= end) always += std::exp(scores[size_t(i)] - double(got.state.reference[g]));
      CHECK(test::near(got.state.read[g], always, 1e-4 * always));
      const double total = std::log(got.state.read[g] + got.state.rest[g]) + double(got.state.reference[g]);
      CHECK(test::near(double(got.weights.log_total[g]), total, 1e-4));
      CHECK(got.state.rest_factor[g] == 1.0);
    }
  }
}

TEST_CASE("with the limited half variance clusters are never expected to weigh more") {
  BatchSpec wide = spec();
  wide.key_noise = 3.0f;  // half variances beyond the limit
  const Batch batch(wide);
  for (int kv_head = 0; kv_head < batch.shape().num_kv_heads; ++kv_head) {
    const Weighed full = weigh(batch, kv_head, 1, false), limited = weigh(batch, kv_head, 1, true);
    for (int g = 0; g < batch.shape().group_size(); ++g) {
      const double full_log = double(full.state.reference[g]) + std::log(full.state.rest[g]);
      const double limited_log = double(limited.state.reference[g]) + std::log(limited.state.rest[g]);
      CHECK(limited_log <= full_log + 1e-4);
    }
  }
}
