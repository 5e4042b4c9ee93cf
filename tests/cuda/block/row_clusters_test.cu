#include "quorum/cuda/block/row_clusters.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tests/cuda/support/choice_case.cuh"

namespace quorum::test {
namespace {

ChoiceCase uneven_case(int group) {
  std::vector<int> sizes;
  std::vector<float> log_weights;
  for (int j = 0; j < 48; ++j) {
    sizes.push_back(j % 7 == 3 ? 0 : 1 + j % 5);
    for (int g = 0; g < group; ++g) log_weights.push_back(sizes.back() == 0 ? -kInfinity : -0.1f * float((j * 13 + g * 5) % 90));
  }
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = 0.7f;
  options.tail = Tail::estimated;
  return ChoiceCase(sizes, log_weights, group, 0.25f, options);
}

TEST_CASE("row clusters: unit, known weight and rest of every head") {
  for (const int group : {1, 3, 8, 16}) {
    CAPTURE(group);
    ChoiceCase choice = uneven_case(group);
    choice.select();
    const cuda::RowPlan plan = choice.plan();
    double unread[kMaxGroupSize] = {};
    const std::vector<int> chosen = choice.expected();
    for (int j = 0; j < choice.num_clusters(); ++j)
      for (int g = 0; g < group && std::find(chosen.begin(), chosen.end(), j) == chosen.end(); ++g) unread[g] += choice.weight(j, g);
    for (int g = 0; g < group; ++g) {
      const double unit = std::exp(double(plan.reference[g]));
      CHECK(plan.reference[g] == 0.25f);  // the largest maximum of the partial sums
      CHECK(std::fabs(double(plan.read[g]) * unit - choice.always_weight()) <= 1e-5 * choice.always_weight());
      CHECK(std::fabs(double(plan.rest[g]) * unit - unread[g]) <= 1e-4 * choice.total(g));
      CHECK(plan.rest_factor[g] == 1.0f);
    }
  }
}

TEST_CASE("row clusters: clusters below e^-32 of the weight lie in the last bucket and can still be reached") {
  std::vector<float> log_weights(32, -60.0f);
  log_weights[5] = 0.0f;
  DecodeOptions options;
  options.dense_below = 0;
  options.fixed_budget = 40;
  options.tail = Tail::drop;
  ChoiceCase choice(std::vector<int>(32, 3), log_weights, 1, -1.0f, options);
  choice.select();
  CHECK(choice.list() == choice.list_of({choice.expected()}));
  CHECK(choice.plan().num_listed >= 40);
}

}  // namespace
}  // namespace quorum::test
