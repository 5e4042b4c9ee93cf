// What the kernel does around the choice of a row: paths, rounds, flags, counts. The choice itself: tests/cuda/select_tokens_test.cu.
#include "quorum/cuda/kernel/select_tokens_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/choice_case.cuh"

namespace quorum::test {
namespace {

DecodeOptions certified(MissPolicy policy) {
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = 0.8f;
  options.tail = Tail::estimated;
  options.certificate.enabled = true;
  options.certificate.policy = policy;
  options.certificate.num_samples = 16;
  options.num_samples = 16;
  return options;
}
// Clusters that get lighter with their id, one bucket and more apart.
ChoiceCase falling(const DecodeOptions& options, int group = 2) {
  std::vector<float> log_weights;
  for (int j = 0; j < 48; ++j)
    for (int g = 0; g < group; ++g) log_weights.push_back(-0.1f * float(j) - 0.01f * float(g));
  return ChoiceCase(std::vector<int>(48, 4), log_weights, group, -3.0f, options);
}
// What merge leaves when a head's bound has missed.
void report_miss(ChoiceCase& choice, int g, float read, float rest_factor) {
  cuda::RowPlan plan = choice.plan();
  plan.read[g] = read;
  plan.rest_factor[g] = rest_factor;
  plan.misses[g] = true;
  ChoiceCase::put(choice.params.workspace.plan, std::vector<cuda::RowPlan>{plan});
}

TEST_CASE("cuda selection kernel: shared memory for every group and number of clusters") {
  CHECK(cuda::select_shared_bytes(1, 16) % 16 == 0);
  CHECK(cuda::select_shared_bytes(16, 1024) - cuda::select_shared_bytes(16, 16) == 6 * 1008);
  CHECK(cuda::select_shared_bytes(16, 16) > cuda::select_shared_bytes(1, 16));
  CHECK(cuda::select_shared_bytes(16, 8192) <= 163 * 1024);
}

TEST_CASE("cuda selection kernel: rows that are dense from the start list nothing and attend to everything") {
  const struct {
    DecodePath path;
    void (*change)(ChoiceCase&, FlatHeadView&);
  } cases[] = {{DecodePath::dense_by_length, [](ChoiceCase& c, FlatHeadView&) { c.params.options.dense_below = c.num_tokens(); }},
               {DecodePath::dense_by_length, [](ChoiceCase& c, FlatHeadView&) { c.params.heads = nullptr; }},
               {DecodePath::dense_by_length, [](ChoiceCase&, FlatHeadView& h) { h.num_indexed = 0; }},
               {DecodePath::dense_by_target, [](ChoiceCase& c, FlatHeadView&) { c.params.options.target_ratio = 1.0f; }},
               {DecodePath::dense_by_numerics, [](ChoiceCase&, FlatHeadView& h) { h.non_finite = true; }},
               {DecodePath::dense_by_capacity, [](ChoiceCase& c, FlatHeadView&) { c.params.max_slots = 32; }}};
  for (const auto& one : cases) {
    ChoiceCase choice = falling(certified(MissPolicy::widen));
    std::vector<FlatHeadView> head = ChoiceCase::get(choice.params.heads, 1);
    auto* place = const_cast<FlatHeadView*>(choice.params.heads);
    one.change(choice, head[0]);
    ChoiceCase::put(place, head);
    choice.select();
    const cuda::RowPlan plan = choice.plan();
    CHECK(plan.path == one.path);
    CHECK(plan.complete);
    CHECK(plan.num_listed == choice.num_tokens());
    CHECK(plan.num_sampled == 0);
    CHECK(choice.counts() == std::vector<int32_t>{choice.num_tokens(), 0, 0});
    choice.select(1);
    CHECK(!choice.plan().widens);
    CHECK(choice.counts() == std::vector<int32_t>{0, 0, 0});
  }
}

TEST_CASE("cuda selection kernel: totals that are not finite make a row dense by numerics") {
  for (const float bad : {kNan, kInfinity}) {
    ChoiceCase choice = falling(certified(MissPolicy::widen));
    ChoiceCase::put(choice.params.workspace.always_weight + 1, std::vector<AttentionState>{{bad, 1.0f}});
    choice.select();
    CHECK(choice.plan().path == DecodePath::dense_by_numerics);
    CHECK(choice.counts() == std::vector<int32_t>{choice.num_tokens(), 0, 0});
  }
}

TEST_CASE("cuda selection kernel: a row whose bound held is done") {
  ChoiceCase choice = falling(certified(MissPolicy::dense));
  choice.select();
  const std::vector<int32_t> before = choice.list();
  for (const int round : {1, 2}) {
    choice.select(round);
    CHECK(choice.counts() == std::vector<int32_t>{0, 0, 0});
    CHECK(!choice.plan().widens);
    CHECK(choice.plan().path == DecodePath::sparse);
    CHECK(choice.list() == before);
  }
}

TEST_CASE("cuda selection kernel: a missed bound lists more behind what is listed, once") {
  ChoiceCase choice = falling(certified(MissPolicy::widen));
  choice.select();
  const cuda::RowPlan first = choice.plan();
  const std::vector<int32_t> before = choice.list();
  CHECK(first.num_draws == 16);
  report_miss(choice, 1, 0.7f * first.rest[1], 3.0f);
  choice.select(1);
  const cuda::RowPlan second = choice.plan();
  const std::vector<int32_t> after = choice.list();
  CHECK(second.widens);
  CHECK(second.num_rounds == 1);
  CHECK(second.first_round == 0);
  CHECK(second.num_sampled == 32);
  CHECK(second.first_listed == first.num_listed);
  CHECK(second.num_listed > first.num_listed);
  CHECK(!second.misses[1]);
  CHECK(std::equal(before.begin(), before.end(), after.begin()));
  CHECK(choice.counts() == std::vector<int32_t>{second.num_listed - first.num_listed, second.num_tail, 16});
  std::vector<int> clusters[2];
  for (size_t i = 7; i < after.size(); i += 4) clusters[i < before.size() ? 0 : 1].push_back(choice.cluster_of(after[i]));
  CHECK(after == choice.list_of({clusters[0], clusters[1]}));
  CHECK(clusters[1].front() == clusters[0].back() + 1);
  for (const int32_t j : choice.tail()) CHECK(j > clusters[1].back());
  CHECK(second.rest[1] < first.rest[1]);
}

TEST_CASE("cuda selection kernel: with MissPolicy::dense the last round attends to everything, from the beginning") {
  ChoiceCase choice = falling(certified(MissPolicy::dense));
  choice.select();
  report_miss(choice, 0, choice.plan().read[0], 1.5f);
  choice.select(1);
  report_miss(choice, 0, choice.plan().read[0], 1.5f);
  choice.select(2);
  const cuda::RowPlan plan = choice.plan();
  CHECK(plan.path == DecodePath::dense_by_policy);
  CHECK(plan.widens);
  CHECK(plan.first_round == 2);
  CHECK(plan.first_listed == 0);
  CHECK(choice.counts() == std::vector<int32_t>{choice.num_tokens(), 0, 0});
}

TEST_CASE("cuda selection kernel: the same weights, the same lists and draws") {
  ChoiceCase choice = falling(certified(MissPolicy::widen), 4);
  choice.select();
  const auto list = choice.list(), tail = choice.tail();
  const auto draws = choice.draws();
  choice.select();
  CHECK(choice.list() == list);
  CHECK(choice.tail() == tail);
  const auto again = choice.draws();
  for (size_t i = 0; i < draws.size(); ++i) CHECK((again[i].token == draws[i].token && again[i].scale == draws[i].scale));
}

}  // namespace
}  // namespace quorum::test
