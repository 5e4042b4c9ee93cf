// The last stage: values by exact weights, the rest by value means, the division.
#include "quorum/cpu/attend_values.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::Stage;

namespace {

constexpr int kHeads = 3, kDim = 72;

BatchSpec spec_of(IndexStorage storage) {
  BatchSpec spec;
  spec.shape = {6, 2, kDim, 0.0f};
  spec.lengths = {900};
  spec.index.storage = storage;
  return spec;
}

// Orders, reads and shares the rest; then clears the accumulators and runs `stage_work(task, state)`.
template <class Work>
cpu::ReadState after_reading(Stage& stage, Work&& stage_work) {
  cpu::ReadState first;
  stage.run([&](const cpu::HeadTask& task) {
    cpu::ReadState state;
    DecodeOptions options;
    options.target_ratio = 0.6f;
    const bool finite = test::order_clusters(task, stage.index(), stage.head(), options.variance, state);
    if (finite) cpu::read_keys(task, stage.head(), options, state);
    cpu::share_rest(task, state);
    for (int g = 0; g < kHeads; ++g) std::fill_n(task.own().accumulated.row(g), padded_dim(kDim), 0.0f);
    stage_work(task, state);
    task.team.sync();
    if (task.team.leads()) first = state;
  });
  return first;
}

double accumulated(const Stage& stage, int workers, int head, int c) {
  double sum = 0.0;
  for (int w = 0; w < workers; ++w) sum += double(stage.worker(w).accumulated.row(head)[c]);
  return sum;
}

}  // namespace

TEST_CASE("share buckets ascend as shares fall, sixteen an octave, in range") {
  int previous = 0;
  for (double share = 4.0; share > 1e-30; share *= 0.99) {
    const int bucket = cpu::share_bucket(float(share));
    CHECK(bucket >= previous);
    CHECK(bucket < cpu::kNumShareBuckets);
    previous = bucket;
  }
  CHECK(cpu::share_bucket(1.0f) == 0);
  CHECK(cpu::share_bucket(7.0f) == 0);
  CHECK(cpu::share_bucket(0.5f) == 16);
  CHECK(cpu::share_bucket(0.0f) == cpu::kNumShareBuckets - 1);
}

TEST_CASE("values of what was read, by its exact weights, split over a team") {
  const Batch batch(spec_of(IndexStorage::int8));
  for (const int workers : {1, 2, 3}) {
    Stage stage(batch, 0, 1, workers);
    const cpu::ReadState state = after_reading(stage, [](const cpu::HeadTask& task, const cpu::ReadState& own) {
      const int listed = own.num_always + own.num_tokens;
      cpu::attend_listed_values(task, task.team.first(listed), task.team.last(listed));
    });
    const auto& values = batch.values(0, 1);
    for (int g = 0; g < kHeads; ++g)
      for (int c = 0; c < kDim; ++c) {
        double want = 0.0, size = 0.0;
        for (int i = 0; i < state.num_always + state.num_tokens; ++i) {
          const double product = double(stage.shared().weights.row(g)[i]) * values.row(stage.shared().tokens[i])[c];
          want += product;
          size += std::fabs(product);
        }
        REQUIRE(test::near(accumulated(stage, workers, g, c), want, 1e-5 * size));
      }
  }
}

TEST_CASE("the tail: value means of clusters that hold most of the rest, scaled to the amount of every head") {
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
    for (const int workers : {1, 3}) {
      const Batch batch(spec_of(storage));
      Stage stage(batch, 0, 1, workers);
      const double amount[kHeads] = {2.0, 0.5, 7.0};
      double used[kMaxGroupSize] = {};
      int clusters = 0, cut = 0;
      const cpu::ReadState state = after_reading(stage, [&](const cpu::HeadTask& task, const cpu::ReadState& own) {
        double own_used[kMaxGroupSize] = {};
        const int own_cut = cpu::cover_tail(task, own);
        task.team.sync();
        const int own_clusters = cpu::attend_tail(task, stage.head(), own, amount, own_used);
        if (!task.team.leads()) return;
        std::copy_n(own_used, kHeads, used);
        clusters = own_clusters;
        cut = own_cut;
      });
      std::vector<int> in_tail;
      double covered = 0.0, total = 0.0;
      for (int position = state.stop; position < state.num_clusters; ++position) {
        const float share = stage.shared().share[position];
        total += double(share);
        if (cpu::share_bucket(share) > cut) continue;
        covered += double(share);
        in_tail.push_back(position);
      }
      CHECK(covered >= double(kTailCoverage) * total * 0.9999);
      CHECK(clusters == int(in_tail.size()));
      CHECK(clusters < state.num_clusters - state.stop);
      const auto& values = batch.values(0, 1);
      for (int g = 0; g < kHeads; ++g) {
        CHECK(used[g] == amount[g]);
        double estimate = 0.0;
        for (const int position : in_tail) estimate += double(stage.shared().ordered.row(g)[position]);
        double error = 0.0, norm = 0.0;
        for (int c = 0; c < kDim; ++c) {
          double want = 0.0;
          for (const int position : in_tail) {
            const ClusterRef cluster = cluster_at(stage.head(), stage.shared().cluster[position]);
            double mean = 0.0;
            for (int i = 0; i < cluster.num_tokens(); ++i) mean += values.row(cluster.tokens()[i])[c] / cluster.num_tokens();
            want += amount[g] * double(stage.shared().ordered.row(g)[position]) / estimate * mean;
          }
          error += std::pow(accumulated(stage, workers, g, c) - want, 2);
          norm += want * want;
        }
        CHECK(std::sqrt(error / norm) <= (storage == IndexStorage::f32 ? 1e-5 : 0.02));
      }
    }
}

TEST_CASE("an amount of zero adds nothing") {
  const Batch batch(spec_of(IndexStorage::int8));
  Stage stage(batch, 0, 0);
  const double amount[kHeads] = {0.0, 0.0, 0.0};
  double used[kMaxGroupSize] = {1.0, 1.0, 1.0};
  after_reading(stage,
                [&](const cpu::HeadTask& task, const cpu::ReadState& own) { cpu::attend_tail(task, stage.head(), own, amount, used); });
  for (int g = 0; g < kHeads; ++g) {
    CHECK(used[g] == 0.0);
    for (int c = 0; c < kDim; ++c) CHECK(accumulated(stage, 1, g, c) == 0.0);
  }
}

TEST_CASE("the division, lse, and every column once") {
  const Batch batch(spec_of(IndexStorage::int8));
  for (const int workers : {1, 2, 5}) {
    Stage stage(batch, 0, 1, workers);
    test::DecodeResult result(batch.shape(), 1);
    const double total[kHeads] = {2.0, 4.0, 0.5};
    const AttentionOutput out = result.out();
    const cpu::ReadState state = after_reading(stage, [&](const cpu::HeadTask& task, const cpu::ReadState& own) {
      for (int g = 0; g < kHeads; ++g)
        for (int c = 0; c < kDim; ++c) task.own().accumulated.row(g)[c] = float(100 * g + c);
      cpu::finish_output(task, own, total, out);
    });
    for (int h = 0; h < 6; ++h) {
      const int g = h - 3;
      for (int c = 0; c < kDim; ++c) {
        const float got = result.output[size_t(h * kDim + c)];
        CHECK(got == (g < 0 ? test::DecodeResult::kSentinel : float(workers * (100 * g + c)) / float(total[g])));
      }
      if (g < 0)
        CHECK(result.lse[size_t(h)] == test::DecodeResult::kSentinel);
      else
        CHECK(test::near(result.lse[size_t(h)], double(state.reference[g]) + std::log(total[g]), 1e-5));
    }
  }
}
