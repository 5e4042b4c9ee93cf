// What the kernel does around the choice of a row: paths, rounds, flags, counts. The choice itself: tests/cuda/select_tokens_test.cu.
#include "quorum/cuda/kernel/select_tokens_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/choice_case.cuh"
#include "tests/cuda/support/team.cuh"

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
  CHECK(cuda::select_shared_bytes(1, 16, 1) % 16 == 0);
  CHECK(cuda::select_shared_bytes(16, 1024, 1) - cuda::select_shared_bytes(16, 16, 1) == 6 * 1008);
  CHECK(cuda::select_shared_bytes(16, 16, 1) > cuda::select_shared_bytes(1, 16, 1));
  CHECK(cuda::select_shared_bytes(16, 8192, 1) <= 163 * 1024);
}

TEST_CASE("cuda selection kernel: the blocks of a row have room for all of its clusters") {
  for (const int slots : {16, 512, 528, 1024, 4112, 16400})
    for (int blocks = 1; blocks <= cuda::kMaxTeamBlocks; ++blocks) {
      CAPTURE(slots);
      CAPTURE(blocks);
      const int of_block = cuda::select_slots(slots, blocks);
      CHECK(of_block * blocks >= slots);
      CHECK(of_block <= slots);
      // However many of them there are, the runs of threads fit.
      for (int clusters = 16; clusters <= slots; clusters += 48) {
        const int run = int(ceil_div(clusters, blocks * cuda::kSelectThreads));
        CHECK(std::min(clusters, run * cuda::kSelectThreads) <= of_block);
      }
    }
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

// What a round leaves, as far as several blocks must leave what one does: sums of floats differ in their order.
void check_same_round(const ChoiceCase& one, const ChoiceCase& several) {
  const cuda::RowPlan a = one.plan(), b = several.plan();
  CHECK(several.list() == one.list());
  CHECK(several.tail() == one.tail());
  CHECK(several.counts() == one.counts());
  CHECK(b.path == a.path);
  CHECK(b.widens == a.widens);
  CHECK(b.complete == a.complete);
  CHECK(b.first_listed == a.first_listed);
  CHECK(b.num_always == a.num_always);
  CHECK(b.num_rounds == a.num_rounds);
  CHECK(b.num_sampled == a.num_sampled);
  CHECK(b.cut.bucket == a.cut.bucket);
  CHECK(b.cut.rank == a.cut.rank);
  for (int g = 0; g < one.params.group; ++g) {
    CHECK(b.listed_steps[g] == a.listed_steps[g]);
    CHECK(b.read[g] == a.read[g]);
    CHECK(b.rest[g] == a.rest[g]);
    CHECK(b.used_rest[g] == a.used_rest[g]);
    CHECK(!b.misses[g]);
  }
  const auto draws = one.draws(), others = several.draws();
  REQUIRE(others.size() == draws.size());
  size_t same = 0;
  for (size_t i = 0; i < draws.size(); ++i) {
    same += others[i].token == draws[i].token ? 1 : 0;
    CHECK(others[i].scale > 0.0f);
  }
  CHECK(same + draws.size() / 16 >= draws.size());
}

TEST_CASE("cuda selection kernel: several blocks a row choose, list and draw what one does, in every round") {
  // Fewer clusters than threads of a block; threads of the last block with none; runs of three; many equal weights in all.
  for (const auto& [num_clusters, blocks] : {std::pair{48, 2}, {1104, 3}, {2064, 2}}) {
    if (blocks > most_team_blocks()) continue;
    CAPTURE(num_clusters);
    CAPTURE(blocks);
    constexpr int kGroup = 3;
    std::vector<int> sizes;
    std::vector<float> log_weights;
    for (int j = 0; j < num_clusters; ++j) {
      sizes.push_back(j * 7919 % 11 == 0 ? 0 : j % 5 == 0 ? 40 : 1 + j % 7);
      for (int g = 0; g < kGroup; ++g) log_weights.push_back(-float((j * 31 + g * 17) % 23) * 0.125f);
    }
    const DecodeOptions options = certified(MissPolicy::dense);
    ChoiceCase one(sizes, log_weights, kGroup, 1.0f, options), several(sizes, log_weights, kGroup, 1.0f, options);
    several.params.select_blocks = blocks;
    for (const int round : {0, 1, 2}) {
      CAPTURE(round);
      for (ChoiceCase* choice : {&one, &several}) {
        if (round > 0) report_miss(*choice, 1, 0.9f * choice->plan().read[1], 1.2f);
        choice->select(round);
      }
      check_same_round(one, several);
    }
  }
}

TEST_CASE("cuda selection kernel: several blocks of a row that is done, or dense, or not finite") {
  const int blocks = std::min(3, most_team_blocks());
  ChoiceCase done = falling(certified(MissPolicy::widen)), not_finite = falling(certified(MissPolicy::widen)),
             dense = falling(certified(MissPolicy::widen));
  for (ChoiceCase* choice : {&done, &not_finite, &dense}) choice->params.select_blocks = blocks;
  done.select();
  const std::vector<int32_t> before = done.list();
  done.select(1);
  CHECK(done.counts() == std::vector<int32_t>{0, 0, 0});
  CHECK(done.list() == before);
  ChoiceCase::put(not_finite.params.workspace.always_weight + 1, std::vector<AttentionState>{{kNan, 1.0f}});
  not_finite.select();
  CHECK(not_finite.plan().path == DecodePath::dense_by_numerics);
  CHECK(not_finite.counts() == std::vector<int32_t>{not_finite.num_tokens(), 0, 0});
  dense.params.options.dense_below = dense.num_tokens();
  dense.select();
  CHECK(dense.plan().path == DecodePath::dense_by_length);
  CHECK(dense.counts() == std::vector<int32_t>{dense.num_tokens(), 0, 0});
}

}  // namespace
}  // namespace quorum::test
