#include "quorum/cuda/block/row_lists.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tests/cuda/support/choice_case.cuh"

namespace quorum::test {
namespace {

DecodeOptions sparse_options(Tail tail) {
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = 0.9f;
  options.tail = tail;
  return options;
}

TEST_CASE("row lists: clusters of one to several hundred tokens are listed whole, in the order of their ids") {
  std::vector<int> sizes{1, 31, 32, 33, 64, 65, 500, 2, 95, 96, 97, 0, 7, 128, 129, 3};
  std::vector<float> log_weights;
  for (size_t j = 0; j < sizes.size(); ++j) log_weights.push_back(sizes[j] == 0 ? -kInfinity : -0.2f * float(j % 6));
  ChoiceCase choice(sizes, log_weights, 1, 0.0f, sparse_options(Tail::drop));
  choice.select();
  CHECK(choice.list() == choice.list_of({choice.expected()}));
}

TEST_CASE("row lists: more pieces than are listed at once") {
  const int num_clusters = int(round_up(cuda::kListedAtOnce + 40, kClusterBlock));
  DecodeOptions options = sparse_options(Tail::drop);
  options.fixed_budget = num_clusters;  // all but nothing is left
  ChoiceCase choice(std::vector<int>(size_t(num_clusters), 1), std::vector<float>(size_t(num_clusters), -1.0f), 1, 0.0f, options);
  choice.select();
  CHECK(choice.plan().complete);
  CHECK(choice.list() == choice.list_of({choice.expected()}));
}

TEST_CASE("row lists: over many seeds the draws estimate the number of unread tokens and their weight without bias") {
  std::vector<int> sizes;
  std::vector<float> log_weights;
  for (int j = 0; j < 64; ++j) {
    sizes.push_back(1 + j % 6);
    log_weights.push_back(-0.08f * float(j));
  }
  DecodeOptions options = sparse_options(Tail::calibrated);
  options.target_ratio = 0.5f;
  options.num_samples = 16;
  double tokens = 0.0, weight = 0.0, expected_tokens = 0.0, expected_weight = 0.0;
  constexpr int kSeeds = 40;
  for (int seed = 0; seed < kSeeds; ++seed) {
    options.seed = uint64_t(seed);
    ChoiceCase choice(sizes, log_weights, 1, 0.0f, options);
    choice.select();
    const std::vector<int> chosen = choice.expected();
    for (int j = 0; j < choice.num_clusters(); ++j)
      if (std::find(chosen.begin(), chosen.end(), j) == chosen.end()) {
        expected_tokens += choice.size(j);
        expected_weight += choice.weight(j, 0);
      }
    for (const cuda::TokenDraw& draw : choice.draws()) {
      const int cluster = choice.cluster_of(draw.token);
      CHECK(std::find(chosen.begin(), chosen.end(), cluster) == chosen.end());
      tokens += double(draw.scale);
      weight += double(draw.scale) * choice.weight(cluster, 0) / choice.size(cluster);
    }
  }
  CHECK(std::fabs(tokens / expected_tokens - 1.0) <= 0.05);
  CHECK(std::fabs(weight / expected_weight - 1.0) <= 0.05);
}

}  // namespace
}  // namespace quorum::test
