// Choosing by a threshold against a sort of the same entries.
#include "quorum/cpu/threshold.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using cpu::Chosen;
using cpu::Threshold;

namespace {

// Entries of several workers and their histograms.
struct Entries {
  int heads, workers;
  std::vector<float> keys;
  std::vector<std::vector<float>> weights;  // [entry][head]
  std::vector<cpu::WorkerScratch> scratch;
  std::vector<std::vector<float>> sums;
  std::vector<std::vector<int32_t>> counts;
  cpu::Barrier barrier;

  Entries(int num_heads, int num_workers, int count, uint64_t seed, double lowest = -40.0)
      : heads(num_heads), workers(num_workers), scratch(size_t(num_workers)) {
    test::Random random(seed);
    for (int i = 0; i < count; ++i) {
      keys.push_back(float(std::exp2(random.uniform(lowest, 6.0))));
      weights.emplace_back();
      for (int g = 0; g < heads; ++g) weights.back().push_back(float(random.uniform()) * keys.back());
    }
    for (int w = 0; w < workers; ++w) {
      sums.emplace_back(size_t((kNumKeyBuckets + 1) * cpu::bucket_row(heads)), kNan);
      counts.emplace_back(size_t(kNumKeyBuckets + 1), -1);
      scratch[size_t(w)].token_keys = {sums.back().data(), counts.back().data()};
      cpu::clear(scratch[size_t(w)].token_keys, heads);
    }
    // Runs of 16 and a shorter one, from worker to worker.
    for (int first = 0, w = 0; first < count; first += 16, w = (w + 1) % workers) {
      const int in_block = std::min(16, count - first);
      uint16_t buckets[16];
      std::vector<float> block(size_t(heads * 16), 0.0f);
      for (int i = 0; i < 16; ++i) {
        buckets[i] = uint16_t(i < in_block ? key_bucket(keys[size_t(first + i)]) : kNumKeyBuckets - 1);
        for (int g = 0; g < heads && i < in_block; ++g) block[size_t(g * 16 + i)] = weights[size_t(first + i)][size_t(g)];
      }
      cpu::add_block(scratch[size_t(w)].token_keys, heads, buckets, block.data(), in_block);
    }
  }
  cpu::HeadTask task(int worker = 0) {
    cpu::HeadTask out;
    out.num_heads = heads;
    out.team = {&barrier, worker, workers};
    out.workers = scratch.data();
    return out;
  }
  template <class Enough>
  Threshold next(const Threshold& from, int64_t max_count, Enough&& enough, int worker = 0) {
    return cpu::next_threshold(task(worker), &cpu::WorkerScratch::token_keys, from, max_count, enough);
  }
  // What a sort says of all entries with at least this key.
  Chosen at_least(float key) const {
    Chosen out;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (keys[i] < key) continue;
      ++out.count;
      for (int g = 0; g < heads; ++g) out.weight[g] += double(weights[i][size_t(g)]);
    }
    return out;
  }
  void check_chosen(const Threshold& got) const {
    const Chosen want = at_least(got.key);
    CHECK(got.chosen.count == want.count);
    for (int g = 0; g < heads; ++g) CHECK(test::near(got.chosen.weight[g], want.weight[g], 1e-5 * want.weight[g]));
  }
};

}  // namespace

TEST_CASE("the highest threshold at which every head has enough; the same for every worker") {
  for (const int heads : {1, 2, 3, 4, 5, 8})
    for (const int workers : {1, 2, 3}) {
      Entries entries(heads, workers, 1003, uint64_t(10 * heads + workers));
      const Chosen all = entries.at_least(0.0f);
      for (const double share : {0.0, 0.1, 0.5, 0.9, 0.999}) {
        const auto enough = [&](const Chosen& chosen) {
          for (int g = 0; g < heads; ++g)
            if (chosen.weight[g] < share * all.weight[g]) return false;
          return true;
        };
        const Threshold got = entries.next({}, kMaxCount, enough);
        CAPTURE(heads);
        CAPTURE(share);
        entries.check_chosen(got);
        CHECK(enough(got.chosen));
        if (got.bucket > 0) CHECK_FALSE(enough(entries.at_least(bucket_key(got.bucket - 1))));
        for (int w = 1; w < workers; ++w) {
          const Threshold other = entries.next({}, kMaxCount, enough, w);
          CHECK(other.bucket == got.bucket);
          CHECK(other.chosen.count == got.chosen.count);
          for (int g = 0; g < heads; ++g) CHECK(other.chosen.weight[g] == got.chosen.weight[g]);
        }
      }
    }
}

TEST_CASE("enough from the start chooses nothing") {
  Entries entries(2, 2, 100, 1);
  const Threshold got = entries.next({}, kMaxCount, [](const Chosen&) { return true; });
  CHECK(got.bucket == -1);
  CHECK(got.key == kInfinity);
  CHECK(got.chosen.count == 0);
}

TEST_CASE("it stops before the threshold that would choose too many") {
  Entries entries(3, 2, 700, 2, -10.0);
  for (const int64_t most : {0, 1, 50, 333, 699, 700}) {
    const Threshold got = entries.next({}, most, [](const Chosen&) { return false; });
    CAPTURE(most);
    CHECK(got.chosen.count <= most);
    entries.check_chosen(got);
    if (most < 700) CHECK(entries.at_least(bucket_key(got.bucket + 1)).count > most);
  }
}

TEST_CASE("the last bucket is never chosen") {
  Entries entries(1, 1, 500, 3);
  REQUIRE(entries.at_least(0.0f).count == 500);
  const Threshold got = entries.next({}, kMaxCount, [](const Chosen&) { return false; });
  CHECK(got.bucket == kNumKeyBuckets - 2);
  CHECK(got.chosen.count == entries.at_least(bucket_key(kNumKeyBuckets - 2)).count);
  CHECK(got.chosen.count < 500);
  CHECK(entries.next(got, kMaxCount, [](const Chosen&) { return false; }).bucket == got.bucket);
}

TEST_CASE("going on from a threshold ends where one step would have") {
  Entries entries(4, 3, 900, 4);
  const auto by_count = [&](int64_t count) { return [count](const Chosen& chosen) { return chosen.count >= count; }; };
  const Threshold first = entries.next({}, kMaxCount, by_count(200)), second = entries.next(first, kMaxCount, by_count(600));
  const Threshold whole = entries.next({}, kMaxCount, by_count(600));
  CHECK(first.chosen.count >= 200);
  CHECK(second.bucket == whole.bucket);
  CHECK(second.key == whole.key);
  CHECK(second.chosen.count == whole.chosen.count);
  entries.check_chosen(second);
}

TEST_CASE("NaN and keys above all buckets are chosen first") {
  Entries entries(1, 1, 0, 5);
  const float keys[16] = {kNan, 1e9f, 0.5f}, weights[16] = {1.0f, 2.0f, 4.0f};
  uint16_t buckets[16];
  simd::key_buckets(keys, buckets);
  cpu::add_block(entries.scratch[0].token_keys, 1, buckets, weights, 3);
  const Threshold got = entries.next({}, kMaxCount, [](const Chosen& chosen) { return chosen.count >= 1; });
  CHECK(got.bucket == 0);
  CHECK(got.chosen.count == 2);
  CHECK(got.chosen.weight[0] == 3.0);
}

TEST_CASE("all entries of all workers add up, those of the last bucket too") {
  for (const int workers : {1, 3}) {
    Entries entries(5, workers, 1000, 91, -60.0);  // a third lies below the last bucket's bound
    double want[5] = {}, got[5];
    for (const auto& weights : entries.weights)
      for (int g = 0; g < 5; ++g) want[g] += double(weights[size_t(g)]);
    cpu::add_up(entries.task(), &cpu::WorkerScratch::token_keys, got);
    for (int g = 0; g < 5; ++g) CHECK(test::near(got[g], want[g], 1e-5 * want[g]));
  }
}
