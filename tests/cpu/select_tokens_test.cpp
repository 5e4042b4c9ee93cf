// From a query to tokens: the path of a task, the choice, and selections that own their memory.
#include "quorum/cpu/select_tokens.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "tests/support/stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::Stage;

namespace {

BatchSpec spec_of(int length) {
  BatchSpec spec;
  spec.shape = {6, 2, 64, 0.0f};
  spec.lengths = {length};
  return spec;
}

DecodePath path_of(Stage& stage, const ClusterIndexView* index, const DecodeOptions& options, int max_cluster_slots) {
  DecodePath path = DecodePath::sparse;
  stage.run([&](const cpu::HeadTask& task) { path = cpu::first_path(task, index, options, max_cluster_slots); });
  return path;
}

cpu::Choice choose(Stage& stage, const DecodeOptions& options, float z = 1.645f) {
  cpu::Choice first;
  stage.run([&](const cpu::HeadTask& task) {
    const cpu::Choice choice = cpu::choose_tokens(task, stage.index(), options, z);
    if (task.team.leads()) first = choice;
    task.team.sync();
  });
  return first;
}

std::vector<int> row_of(const SelectionView& view, int sequence, int kv_head) {
  return {view.row(sequence, kv_head), view.row(sequence, kv_head) + view.num_tokens(sequence, kv_head)};
}

}  // namespace

TEST_CASE("the path of a task before anything is computed") {
  const Batch batch(spec_of(600));
  Stage stage(batch, 0, 1);
  DecodeOptions options;
  options.dense_below = 599;
  CHECK(path_of(stage, &stage.index(), options, 1000) == DecodePath::sparse);
  CHECK(path_of(stage, nullptr, options, 1000) == DecodePath::dense_by_length);
  const ClusterIndexView nothing;
  CHECK(path_of(stage, &nothing, options, 1000) == DecodePath::dense_by_length);
  CHECK(path_of(stage, &stage.index(), options, stage.head().num_cluster_slots()) == DecodePath::sparse);
  CHECK(path_of(stage, &stage.index(), options, stage.head().num_cluster_slots() - 1) == DecodePath::dense_by_capacity);
  options.dense_below = 600;
  CHECK(path_of(stage, &stage.index(), options, 1000) == DecodePath::dense_by_length);
  options.dense_below = 0;
  options.target_ratio = 1.0f;
  CHECK(path_of(stage, &stage.index(), options, 1000) == DecodePath::dense_by_target);
  options.fixed_budget = 10;
  CHECK(path_of(stage, &stage.index(), options, 1000) == DecodePath::sparse);
  std::vector<ClusterHeadView> heads(stage.index().heads, stage.index().heads + 2);
  ClusterIndexView poisoned = stage.index();
  poisoned.heads = heads.data();
  heads[0].non_finite = true;
  CHECK(path_of(stage, &poisoned, options, 1000) == DecodePath::sparse);  // another KV head's
  heads[1].non_finite = true;
  CHECK(path_of(stage, &poisoned, options, 1000) == DecodePath::dense_by_numerics);
}

TEST_CASE("the choice of every worker of a team, and of every size of team") {
  const Batch batch(spec_of(900));
  DecodeOptions options;
  options.certificate.enabled = true;
  Stage alone(batch, 0, 0);
  const cpu::Choice want = choose(alone, options);
  CHECK(want.path == DecodePath::sparse);
  CHECK(want.sampled);
  for (const int workers : {2, 3}) {
    Stage stage(batch, 0, 0, workers);
    std::vector<cpu::Choice> choices(static_cast<size_t>(workers));
    stage.run([&](const cpu::HeadTask& task) {
      choices[size_t(task.team.worker)] = cpu::choose_tokens(task, stage.index(), options, 1.645f);
      task.team.sync();
    });
    for (const cpu::Choice& choice : choices) {
      CHECK(choice.path == choices[0].path);
      CHECK(choice.rounds == choices[0].rounds);
      CHECK(choice.state.stop == choices[0].state.stop);
      CHECK(choice.state.num_tokens == choices[0].state.num_tokens);
      for (int g = 0; g < 3; ++g) {
        CHECK(choice.state.read[g] == choices[0].state.read[g]);
        CHECK(choice.sampled_rest[g].weight == choices[0].sampled_rest[g].weight);
        CHECK(test::near(choice.state.read[g], want.state.read[g], 0.05 * want.state.read[g]));
      }
    }
  }
}

TEST_CASE("a choice that certified itself holds its bound") {
  const Batch batch(spec_of(900));
  for (const float target : {0.5f, 0.8f, 0.95f}) {
    Stage stage(batch, 0, 1);
    DecodeOptions options;
    options.target_ratio = target;
    options.certificate.enabled = true;
    options.certificate.max_rounds = 8;
    const cpu::Choice choice = choose(stage, options);
    for (int g = 0; g < 3; ++g) CHECK(meets_target(choice.state.read[g], choice.rest_bound(g, 1.645f), double(target)));
  }
}

TEST_CASE("NaN in a query is noticed before anything is chosen") {
  Batch batch(spec_of(600));
  batch.queries().set(0, 4, 9, kNan);
  Stage poisoned(batch, 0, 1), other(batch, 0, 0);
  CHECK(choose(poisoned, {}).path == DecodePath::dense_by_numerics);
  CHECK(choose(other, {}).path == DecodePath::sparse);
}

TEST_CASE("a selection keeps its own copy, from both forms") {
  std::vector<int32_t> padded{3, 5, -1, 7, -1, -1, -1, -1, -1, 0, 1, 2}, counts{2, 1, 0, 3};
  const TokenSelection from_padded(SelectionView{padded.data(), nullptr, counts.data(), 3, 2, 2});
  std::vector<int32_t> tokens{3, 5, 7, 0, 1, 2};
  std::vector<int64_t> indptr{0, 2, 3, 3, 6};
  const TokenSelection from_compressed(SelectionView{tokens.data(), indptr.data(), nullptr, 0, 2, 2});
  padded.assign(12, -5);
  tokens.assign(6, -5);
  for (const TokenSelection* selection : {&from_padded, &from_compressed}) {
    const SelectionView view = selection->view();
    CHECK(view.num_sequences == 2);
    CHECK(view.num_kv_heads == 2);
    CHECK(row_of(view, 0, 0) == std::vector<int>{3, 5});
    CHECK(row_of(view, 0, 1) == std::vector<int>{7});
    CHECK(row_of(view, 1, 0).empty());
    CHECK(row_of(view, 1, 1) == std::vector<int>{0, 1, 2});
  }
  const TokenSelection copy = from_padded;
  CHECK(row_of(copy.view(), 0, 0) == std::vector<int>{3, 5});
  CHECK(copy.view().tokens != from_padded.view().tokens);
}

TEST_CASE("union over the KV heads of a sequence: each token once, ascending") {
  const std::vector<int32_t> tokens{3, 5, 9, 1, 3, 9, 0, 2};
  const std::vector<int64_t> indptr{0, 3, 6, 6, 8};
  const TokenSelection all = union_over_heads({tokens.data(), indptr.data(), nullptr, 0, 2, 2});
  CHECK(all.view().num_sequences == 2);
  CHECK(all.view().num_kv_heads == 1);
  CHECK(row_of(all.view(), 0, 0) == std::vector<int>{1, 3, 5, 9});
  CHECK(row_of(all.view(), 1, 0) == std::vector<int>{0, 2});
  const int64_t empty_indptr[2] = {0, 0};
  CHECK(row_of(union_over_heads({nullptr, empty_indptr, nullptr, 0, 1, 1}).view(), 0, 0).empty());
}

TEST_CASE("the union of what select chose holds every row") {
  const Batch batch(spec_of(700));
  DecodeOptions options;
  options.dense_below = 0;
  const auto rows = batch.select(options).rows;
  std::vector<int32_t> tokens;
  std::vector<int64_t> indptr{0};
  for (const auto& row : rows) {
    tokens.insert(tokens.end(), row.begin(), row.end());
    indptr.push_back(int64_t(tokens.size()));
  }
  const TokenSelection all = union_over_heads({tokens.data(), indptr.data(), nullptr, 0, 1, 2});
  const auto joined = row_of(all.view(), 0, 0);
  for (const auto& row : rows) CHECK(std::includes(joined.begin(), joined.end(), row.begin(), row.end()));
  CHECK(joined.size() <= rows[0].size() + rows[1].size());
}
