#include "quorum/cuda/select_tokens.cuh"

#include <doctest/doctest.h>

#include <random>

#include "tests/cuda/support/choice_case.cuh"

namespace quorum::test {
namespace {

DecodeOptions sparse_options(float target = 0.8f) {
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = target;
  return options;
}

// Clusters of 0 to 9 tokens, a fifth of them empty, with weights over a few nats.
ChoiceCase random_case(int num_clusters, int group, const DecodeOptions& options, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(-6.0f, 0.0f);
  std::vector<int> sizes;
  std::vector<float> log_weights;
  for (int j = 0; j < num_clusters; ++j) {
    sizes.push_back(std::max(0, int(random() % 12) - 2));
    for (int g = 0; g < group; ++g) log_weights.push_back(sizes.back() == 0 ? -kInfinity : uniform(random));
  }
  return ChoiceCase(sizes, log_weights, group, 0.5f, options);
}

void check_choice(ChoiceCase& choice) {
  choice.select();
  const cuda::RowPlan plan = choice.plan();
  CHECK(plan.path == DecodePath::sparse);
  CHECK(plan.num_tokens == choice.num_tokens());
  CHECK(plan.num_always == ChoiceCase::kSinks + ChoiceCase::kWindow);
  CHECK(plan.first_listed == 0);
  CHECK(plan.complete == (plan.num_listed == choice.num_tokens()));
  CHECK(choice.list() == choice.list_of({choice.expected()}));
  CHECK(choice.counts() == std::vector<int32_t>{plan.num_listed, plan.num_tail, plan.num_draws});
}

TEST_CASE("cuda selection: a target is met by the clusters that the order puts first, for every group size and number of clusters") {
  for (const int group : {1, 4, 5, 8, 9, 16})
    for (const int num_clusters : {16, 528}) {
      CAPTURE(group);
      CAPTURE(num_clusters);
      ChoiceCase choice = random_case(num_clusters, group, sparse_options());
      check_choice(choice);
      CHECK(choice.plan().num_listed < choice.num_tokens());
    }
}

TEST_CASE("cuda selection: budget, least and most tokens, in whole clusters") {
  for (const int tokens : {1, 40, 1000000}) {
    CAPTURE(tokens);
    DecodeOptions options = sparse_options(0.5f);
    options.fixed_budget = tokens;
    ChoiceCase budget = random_case(160, 4, options);
    check_choice(budget);
    CHECK(budget.plan().num_listed >= std::min(budget.num_tokens(), tokens + budget.plan().num_always));
    options = sparse_options(0.5f);
    options.min_tokens = tokens;
    ChoiceCase least = random_case(160, 4, options);
    check_choice(least);
    options = sparse_options(0.99f);
    options.max_tokens = tokens;
    ChoiceCase most = random_case(160, 4, options);
    check_choice(most);
    CHECK(most.plan().num_listed - most.plan().num_always <= tokens);
  }
  DecodeOptions none = sparse_options(0.9f);
  none.max_tokens = 0;
  ChoiceCase nothing = random_case(32, 1, none);
  check_choice(nothing);
  CHECK(nothing.plan().num_listed == ChoiceCase::kSinks + ChoiceCase::kWindow);
}

TEST_CASE("cuda selection: what is always read may be enough, and everything may be needed") {
  ChoiceCase enough(std::vector<int>(16, 3), std::vector<float>(16, -9.0f), 1, 2.0f, sparse_options(0.9f));
  check_choice(enough);
  CHECK(enough.plan().num_listed == 7);
  ChoiceCase all(std::vector<int>(16, 3), std::vector<float>(16, 0.0f), 1, -20.0f, sparse_options(0.9999f));
  check_choice(all);
  CHECK(all.plan().complete);
  CHECK(all.plan().num_tail == 0);
}

TEST_CASE("cuda selection: equal weights are taken by cluster id") {
  ChoiceCase equal(std::vector<int>(64, 2), std::vector<float>(128, 0.0f), 2, -20.0f, sparse_options(0.51f));
  check_choice(equal);
  CHECK(equal.plan().num_listed == 7 + 66);
}

TEST_CASE("cuda selection: the tail is every cluster in between, and holds nine tenths of the rest of each head") {
  for (const Tail tail : {Tail::estimated, Tail::drop}) {
    DecodeOptions options = sparse_options();
    options.tail = tail;
    ChoiceCase choice = random_case(320, 3, options, 7);
    choice.select();
    const std::vector<int32_t> clusters = choice.tail();
    if (tail == Tail::drop) {
      CHECK(clusters.empty());
      continue;
    }
    const std::vector<int> chosen = choice.expected();
    CHECK(std::is_sorted(clusters.begin(), clusters.end()));
    const cuda::RowPlan plan = choice.plan();
    int last = -1;
    for (const int j : clusters) last = std::max(last, choice.bucket(j));
    for (int g = 0; g < 3; ++g) {
      double rest = choice.total(g) - choice.always_weight(), used = 0.0;
      for (const int j : chosen) rest -= choice.weight(j, g);
      for (const int j : clusters) used += choice.weight(j, g);
      CHECK(used >= 0.9 * rest - 1e-6);
      const double unit = std::exp(double(plan.reference[g]));
      CHECK(std::fabs(double(plan.rest[g]) * unit / rest - 1.0) <= 1e-4);
      CHECK(std::fabs(double(plan.used_rest[g]) * unit / used - 1.0) <= 1e-4);
    }
    for (int j = 0; j < choice.num_clusters(); ++j) {
      const bool is_chosen = std::find(chosen.begin(), chosen.end(), j) != chosen.end();
      const bool in_tail = std::binary_search(clusters.begin(), clusters.end(), j);
      CHECK(in_tail == (choice.size(j) > 0 && !is_chosen && choice.bucket(j) <= last));
    }
  }
}

TEST_CASE("cuda selection: draws are unread tokens, and stand for all of them") {
  DecodeOptions options = sparse_options(0.51f);
  options.certificate.enabled = true;
  ChoiceCase equal(std::vector<int>(64, 5), std::vector<float>(128, 0.0f), 2, -20.0f, options);
  equal.select();
  const std::vector<int32_t> list = equal.list();
  const auto draws = equal.draws();
  REQUIRE(draws.size() == 128);
  for (const cuda::TokenDraw& draw : draws) {
    CHECK(std::find(list.begin(), list.end(), draw.token) == list.end());
    CHECK(draw.scale == doctest::Approx(155.0 / 128.0).epsilon(1e-3));
  }
  ChoiceCase choice = random_case(320, 3, options, 3);
  choice.select();
  const std::vector<int> chosen = choice.expected();
  const auto drawn = choice.draws();
  double weight = 0.0, rest = choice.total(0) - choice.always_weight();
  for (const int j : chosen) rest -= choice.weight(j, 0);
  for (const cuda::TokenDraw& draw : drawn) {
    const int cluster = choice.cluster_of(draw.token);
    CHECK(std::find(chosen.begin(), chosen.end(), cluster) == chosen.end());
    weight += double(draw.scale) * choice.weight(cluster, 0) / choice.size(cluster);
  }
  CHECK(std::fabs(weight / rest - 1.0) <= 0.1);  // 128 strata, weights as estimated
}

}  // namespace
}  // namespace quorum::test
