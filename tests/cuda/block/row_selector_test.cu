#include "quorum/cuda/block/row_selector.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/choice_case.cuh"

namespace quorum::test {
namespace {

TEST_CASE("row selector: the cut is the place in the order where the last head has enough") {
  for (const int group : {1, 4, 7}) {
    CAPTURE(group);
    std::vector<int> sizes;
    std::vector<float> log_weights;
    for (int j = 0; j < 64; ++j) {
      sizes.push_back(1 + j % 4);
      // Many in one bucket, so that ranks within it decide.
      for (int g = 0; g < group; ++g) log_weights.push_back(j % 3 == 0 ? -1.0f : -0.05f * float((j * 7 + g) % 60));
    }
    DecodeOptions options;
    options.dense_below = 0;
    options.target_ratio = 0.6f;
    options.tail = Tail::drop;
    ChoiceCase choice(sizes, log_weights, group, 0.0f, options);
    choice.select();
    const cuda::RowPlan plan = choice.plan();
    const std::vector<int> chosen = choice.expected();
    REQUIRE(!chosen.empty());
    CHECK(plan.cut.bucket == choice.bucket(chosen.back()));
    int rank = 0;
    for (const int j : chosen) rank += choice.bucket(j) == plan.cut.bucket ? 1 : 0;
    CHECK(plan.cut.rank == rank);
    for (int g = 0; g < group; ++g) {
      double share = 0.0;
      for (const int j : chosen) share += choice.weight(j, g) / choice.total(g);
      CHECK(std::fabs(double(plan.listed_steps[g]) / 0x1p30 - share) <= 1e-6);
    }
    CHECK(plan.num_tail == 0);
  }
}

}  // namespace
}  // namespace quorum::test
