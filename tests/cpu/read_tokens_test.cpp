// Choosing tokens by code: the largest, each once, enough of them, and what remains afterwards.
#include "quorum/cpu/read_tokens.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>
#include <vector>

#include "tests/support/coded_stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::CodedStage;
using test::CodedToken;

namespace {

DecodeOptions with_target(float target) {
  DecodeOptions options;
  options.target_ratio = target;
  return options;
}

double exact_total(const CodedStage& stage, int g) {
  const auto scores = stage.exact_scores(g);
  double sum = 0.0;
  for (size_t i = 0; i < scores.size(); ++i) sum += stage.exact_weight(scores, int(i), g);
  return sum;
}

// The list is the tokens of buckets up to the threshold, each once, with exact weights; `read` is the sum of those.
void check_list(const CodedStage& stage) {
  std::vector<int> want;
  for (const CodedToken& token : stage.coded_tokens())
    if (stage.stored_bucket(token) <= stage.coded.listed.bucket) want.push_back(token.token);
  std::sort(want.begin(), want.end());
  CHECK(stage.listed_tokens() == want);
  CHECK(std::adjacent_find(want.begin(), want.end()) == want.end());
  CHECK(int64_t(want.size()) == stage.coded.listed.chosen.count);
  for (int g = 0; g < stage.num_heads(); ++g) {
    const auto scores = stage.exact_scores(g);
    double sum = 0.0;
    for (int i = 0; i < stage.state.num_always + stage.state.num_tokens; ++i) {
      const double weight = stage.exact_weight(scores, stage.shared().tokens[i], g);
      CHECK(test::near(double(stage.shared().weights.row(g)[i]), weight, 1e-4 * weight));
      sum += weight;
    }
    CHECK(test::near(stage.state.read[g], sum, 1e-5 * sum));
  }
}

}  // namespace

TEST_CASE("enough of the expected weight is listed: then the target is met, if the rest weighs what is believed") {
  cpu::CodedState coded;
  cpu::ReadState state;
  for (const double target : {0.5, 0.9})
    for (const double surprise : {1.0, 1.7})
      for (const double factor : {1.0, 1.2, 3.0}) {
        coded.listed.chosen.weight[1] = 2.0;
        coded.expected[1] = 12.0;
        coded.outside[1] = 1.5;
        coded.surprise[1] = surprise;
        state.read[1] = 3.0;
        state.rest[1] = coded.rest(1);
        CHECK(test::near(state.rest[1], surprise * 11.5, 1e-12));
        state.rest_factor[1] = factor;
        const DecodeOptions options = with_target(float(target));
        const double more = cpu::expected_need(options, coded, state, 1) - 2.0, wanted = double(options.target_ratio);
        const double read = state.read[1] + surprise * more, rest = factor * (state.rest[1] - surprise * more);
        CHECK(test::near(read, wanted * (read + rest), 1e-9));
      }
}

TEST_CASE("the tokens of largest coded share are read, each once; groups, head_dims, teams") {
  for (const auto& size : std::vector<std::pair<int, int>>{{1, 64}, {3, 72}, {4, 80}, {8, 64}, {2, 256}})
    for (const int workers : {1, 2, 3})
      for (const float target : {0.5f, 0.9f}) {
        const int heads = size.first, d = size.second;
        const Batch batch(test::coded_spec(1200, heads, d));
        CodedStage stage(batch, workers, with_target(target));
        stage.scan();
        stage.read();
        CAPTURE(heads);
        CAPTURE(workers);
        check_list(stage);
        double least_listed = double(kInfinity), most_unlisted = 0.0;
        for (const CodedToken& token : stage.coded_tokens()) {
          double low = 0.0, high = 0.0;
          for (int g = 0; g < heads; ++g) {
            const double share = stage.coded_weight(token, g) / stage.coded.total[g], error = stage.weight_tolerance(token, g);
            low = std::max(low, share * (1.0 - error));
            high = std::max(high, share * (1.0 + error));
          }
          if (stage.stored_bucket(token) <= stage.coded.listed.bucket)
            least_listed = std::min(least_listed, high);
          else
            most_unlisted = std::max(most_unlisted, low);
        }
        CHECK(least_listed >= most_unlisted);
        for (int g = 0; g < heads; ++g) {
          CHECK(meets_target(stage.state.read[g], stage.state.rest[g] * stage.state.rest_factor[g], double(target)));
          CHECK(stage.state.read[g] > 0.8 * double(target) * exact_total(stage, g));  // codes and clusters are no more than estimates
        }
      }
}

TEST_CASE("clusters lose exactly what is listed of them; what remains adds up") {
  for (const float target_error : {0.0f, 0.1f})
    for (const int workers : {1, 3}) {
      const Batch batch(test::coded_spec(1200));
      DecodeOptions options = with_target(0.8f);
      options.target_error = target_error;
      CodedStage stage(batch, workers, options);
      stage.scan();
      if (target_error > 0.0f)
        stage.step([&](const cpu::HeadTask& task, const cpu::ReadState& state, cpu::CodedState& coded) {
          cpu::model_error(task, stage.head(), stage.weights.queries, state, coded);
        });
      const int clusters = stage.coded.candidates.clusters;
      std::vector<double> before;
      for (int i = 0; i < clusters; ++i)
        for (int g = 0; g < 3; ++g) before.push_back(stage.mass(i, g));
      stage.read();
      REQUIRE(stage.state.num_tokens > 20);
      for (int g = 0; g < 3; ++g) {
        std::vector<double> unread(size_t(clusters), 0.0), listed(size_t(clusters), 0.0);
        for (const CodedToken& token : stage.coded_tokens()) {
          auto& sums = stage.stored_bucket(token) <= stage.coded.listed.bucket ? listed : unread;
          sums[size_t(token.candidate)] += stage.coded.total[g] * stage.stored_share(token, g);
        }
        double sum = 0.0, all_listed = 0.0;
        for (int i = 0; i < clusters; ++i) {
          // Shares are f16: a cluster of which nothing was listed keeps its sum of f32 weights.
          const double want = listed[size_t(i)] > 0.0 ? unread[size_t(i)] : before[size_t(i * 3 + g)];
          CHECK(test::near(stage.mass(i, g), want, 1e-5 * want));
          CHECK(test::near(want, unread[size_t(i)], 1e-3 * want + 0x1p-20 * stage.coded.total[g]));
          sum += want;
          all_listed += listed[size_t(i)];
        }
        CHECK(test::near(stage.coded.coded[g], sum, 1e-5 * sum));
        const double left = stage.coded.expected[g] - stage.coded.listed.chosen.weight[g];
        if (target_error == 0.0f) {
          CHECK(test::near(stage.state.rest[g], stage.coded.surprise[g] * (left + stage.coded.outside[g]), 1e-9 * stage.coded.total[g]));
        } else {  // by code alone
          CHECK(stage.state.rest[g] == stage.coded.coded[g] + stage.coded.outside[g]);
          CHECK(stage.coded.pending == stage.state.num_tokens);
          CHECK(test::near(stage.coded.pending_weight[g], all_listed, 1e-5 * all_listed));
        }
      }
    }
}

TEST_CASE("surprise: the second half of a choice against what its codes said") {
  for (const float target : {0.5f, 0.6f, 0.7f, 0.8f, 0.9f})
    for (const int workers : {1, 2}) {
      BatchSpec spec = test::coded_spec(1500);
      spec.key_noise = 0.5f;
      const Batch batch(spec);
      CodedStage stage(batch, workers, with_target(target));
      stage.scan();
      cpu::Threshold next;
      stage.step([&](const cpu::HeadTask& task, const cpu::ReadState& state, const cpu::CodedState& coded) {
        const cpu::Threshold own = cpu::next_token_threshold(task, stage.options, coded, state);
        if (task.team.leads()) next = own;
      });
      stage.options.max_tokens = int(next.chosen.count);  // one choice
      stage.read();
      REQUIRE(stage.coded.listed.bucket == next.bucket);
      const int count = stage.state.num_tokens, half = std::min(count / 2, count - kFewestSurprised);
      std::vector<int> by_bucket(size_t(kNumKeyBuckets), 0);
      for (const CodedToken& token : stage.coded_tokens()) ++by_bucket[size_t(stage.stored_bucket(token))];
      int middle = -1, front = 0;
      while (front < half) front += by_bucket[size_t(++middle)];
      for (int g = 0; g < 3; ++g) {
        const auto scores = stage.exact_scores(g);
        double exact = 0.0, expected = 0.0;
        for (const CodedToken& token : stage.coded_tokens())
          if (stage.stored_bucket(token) > middle && stage.stored_bucket(token) <= next.bucket)
            exact += stage.exact_weight(scores, token.token, g);
        for (int w = 0; w < workers; ++w)
          for (int bucket = middle + 1; bucket <= next.bucket; ++bucket)
            expected += double(stage.worker(w).token_keys.weights[bucket * cpu::bucket_row(3) + g]);
        const double want = count - front >= kFewestSurprised ? code_surprise(exact, expected, count - front) : 1.0;
        CHECK(test::near(stage.coded.surprise[g], want, 1e-4 * want));
      }
    }
}

TEST_CASE("a budget is read once, to the end of a bucket; no candidate left, no more tokens") {
  const Batch batch(test::coded_spec(1500));
  for (const int budget : {1, 64, 300, 100000})
    for (const int workers : {1, 3}) {
      DecodeOptions options;
      options.fixed_budget = budget;
      CodedStage stage(batch, workers, options);
      stage.scan();
      stage.read();
      check_list(stage);
      CAPTURE(budget);
      if (budget > 1500) {
        CHECK(stage.coded.listed.bucket == kNumKeyBuckets - 2);
      } else {
        CHECK(stage.state.num_tokens >= budget);
        int last = 0;
        for (const CodedToken& token : stage.coded_tokens()) last += stage.stored_bucket(token) == stage.coded.listed.bucket;
        CHECK(stage.state.num_tokens - last < budget);
      }
    }
}

TEST_CASE("bounds on the number of tokens: the upper one is never passed") {
  const Batch batch(test::coded_spec(1500));
  for (const int bound : {1, 10, 77, 200}) {
    DecodeOptions options = with_target(0.95f);
    options.max_tokens = bound;
    CodedStage at_most(batch, 2, options);
    at_most.scan();
    at_most.read();
    check_list(at_most);
    CHECK(at_most.state.num_tokens <= bound);
    options = with_target(0.1f);
    options.min_tokens = bound;
    CodedStage at_least(batch, 2, options);
    at_least.scan();
    at_least.read();
    check_list(at_least);
    CHECK(at_least.state.num_tokens >= bound);
  }
}

TEST_CASE("sinks and window are enough: nothing is listed") {
  const Batch batch(test::window_spec());
  for (const float coverage : {0.5f, 1.0f}) {
    DecodeOptions options = with_target(0.5f);
    options.candidate_coverage = coverage;
    CodedStage stage(batch, 2, options);
    stage.scan();
    stage.read();
    CHECK(stage.state.num_tokens == 0);
    CHECK(stage.coded.listed.bucket == -1);
  }
}

TEST_CASE("the same tokens for every team, but for those on the edge of a bucket") {
  const Batch batch(test::coded_spec(2000, 4));
  CodedStage alone(batch, 1);
  alone.scan();
  alone.read();
  const auto want = alone.listed_tokens();
  for (const int workers : {2, 3}) {
    CodedStage team(batch, workers);
    team.scan();
    team.read();
    std::vector<int> moved;
    const auto got = team.listed_tokens();
    std::set_symmetric_difference(got.begin(), got.end(), want.begin(), want.end(), std::back_inserter(moved));
    CHECK(moved.size() <= want.size() / 50);
  }
}
