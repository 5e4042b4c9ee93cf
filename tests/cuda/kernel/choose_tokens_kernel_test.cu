// What the kernel does around the choice of tokens: which rows, which rounds, what they get to do. The choice itself:
// tests/cuda/block/token_choice_test.cu.
#include "quorum/cuda/kernel/choose_tokens_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/coded_case.cuh"

namespace quorum::test {
namespace {

CaseOptions small_case() {
  CaseOptions options;
  options.shape = {4, 2, 64, 0.0f};
  options.num_tokens = {400, 300};
  return options;
}
DecodeOptions token_options() {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::tokens;
  options.target_ratio = 0.7f;
  return options;
}
std::vector<int32_t> counts(const CodedCase& coded, int row) { return download(coded.params().workspace.counts + 3 * row, 3); }

TEST_CASE("cuda choice kernel: counts are the list's, the tail's and no draws; without a tail none is attended") {
  for (const Tail tail : {Tail::calibrated, Tail::drop}) {
    DecodeOptions options = token_options();
    options.tail = tail;
    const HostCase host(small_case());
    CodedCase coded(host, options);
    coded.scan();
    coded.select();
    for (int row = 0; row < coded.params().num_rows(); ++row) {
      const cuda::RowPlan plan = coded.step.plans()[size_t(row)];
      CHECK(counts(coded, row) == std::vector<int32_t>{plan.num_listed, plan.num_tail, 0});
      CHECK(plan.num_listed > plan.num_always);
      CHECK((plan.num_tail > 0) == (tail != Tail::drop));
      CHECK(!plan.complete);
      CHECK(plan.num_rounds == 0);
    }
  }
}

TEST_CASE("cuda choice kernel: later rounds are for rows that miss; the dense one attends to everything") {
  const HostCase host(small_case());
  CodedCase coded(host, token_options());
  coded.params().dense_round = 2;
  coded.scan();
  coded.select();
  std::vector<cuda::RowPlan> plans = coded.step.plans();
  for (size_t row = 0; row < plans.size(); ++row)
    for (int g = 0; g < 2; ++g) {
      plans[row].misses[g] = row == 1 && g == 1;
      plans[row].surprise[g] = 1.0f;
      plans[row].rest_factor[g] = 4.0f;
    }
  StepCase::put(coded.params().workspace.plan, plans);
  coded.select(1);
  const std::vector<cuda::RowPlan> after = coded.step.plans();
  CHECK(counts(coded, 0) == std::vector<int32_t>{0, 0, 0});
  CHECK(!after[0].widens);
  CHECK(after[1].widens);
  CHECK(after[1].num_listed > plans[1].num_listed);
  CHECK(counts(coded, 1) == std::vector<int32_t>{after[1].num_listed - plans[1].num_listed, after[1].num_tail, 0});
  CHECK(!after[1].misses[1]);
  plans = after;
  plans[2].misses[0] = true;
  StepCase::put(coded.params().workspace.plan, plans);
  coded.select(2);
  CHECK(coded.step.plans()[2].path == DecodePath::dense_by_policy);
  CHECK(coded.step.plans()[2].first_round == 2);
  CHECK(counts(coded, 2) == std::vector<int32_t>{300, 0, 0});
  CHECK(counts(coded, 1) == std::vector<int32_t>{0, 0, 0});
}

TEST_CASE("cuda choice kernel: everything indexed may be wanted") {
  DecodeOptions options = token_options();
  options.min_tokens = kMaxCount;
  options.candidate_coverage = 1.0f;
  CaseOptions flat = small_case();
  flat.spread = 0.02f;  // no token is negligible
  const HostCase host(flat);
  CodedCase coded(host, options);
  coded.scan();
  coded.select();
  const cuda::RowPlan plan = coded.step.plans()[0];
  CHECK(plan.complete);
  CHECK(plan.num_listed == 400);
  CHECK(counts(coded, 0) == std::vector<int32_t>{400, 0, 0});
}

}  // namespace
}  // namespace quorum::test
