// Draws from what codes leave: only unread tokens, and over many seeds as many and as heavy as there are (algorithm.md eq. 16).
#include "quorum/cuda/kernel/draw_tokens_kernel.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "tests/cuda/support/coded_case.cuh"

namespace quorum::test {
namespace {

CaseOptions small_case() {
  CaseOptions options;
  options.shape = {2, 1, 64, 0.0f};
  options.num_tokens = {400};
  options.index.cluster_size = 12;
  return options;
}
DecodeOptions certified(uint64_t seed = 1) {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::tokens;
  options.target_ratio = 0.6f;
  options.certificate.enabled = true;
  options.certificate.num_samples = options.num_samples = 32;
  options.seed = seed;
  return options;
}

TEST_CASE("cuda draw kernel: unread tokens are drawn without bias, those of candidates and of other clusters") {
  const HostCase host(small_case());
  CodedCase coded(host, certified());
  coded.scan();
  coded.select();
  cuda::StepParams& p = coded.params();
  const CodedRow r = coded.read(0);
  REQUIRE(r.plan.num_draws == 32);
  CHECK(r.plan.num_sampled == 32);
  CHECK(download(p.workspace.counts, 3)[2] == 32);
  const auto listed = download(p.workspace.tokens, size_t(r.plan.num_listed));
  const std::set<int32_t> read(listed.begin(), listed.end());
  std::set<int32_t> of_others;
  for (int j = 0; j < coded.num_clusters(0); ++j)
    if (r.cluster_key[size_t(j)] >= cuda::kEntersOutside) {
      const ClusterRef ref = cluster_at(coded.head(0), j);
      of_others.insert(ref.tokens(), ref.tokens() + ref.size());
    }
  const int unread = host.index(0).num_indexed - (r.plan.num_listed - r.plan.num_always), unread_outside = int(of_others.size());
  double tokens = 0.0, outside = 0.0;
  int wrong = 0;
  constexpr int kSeeds = 60;
  for (int seed = 0; seed < kSeeds; ++seed) {
    p.options.seed = uint64_t(seed);
    REQUIRE(cuda::launch({.threads = cuda::kDrawThreads}, cuda::draw_tokens_kernel<cuda::kDrawThreads>, p) == cudaSuccess);
    for (const cuda::TokenDraw& draw : download(p.workspace.draws, 32)) {
      wrong += read.count(draw.token) == 0 && draw.scale > 0.0f && draw.token < host.index(0).indexed_end ? 0 : 1;
      tokens += double(draw.scale);
      if (of_others.count(draw.token) > 0) outside += double(draw.scale);
    }
  }
  CHECK(wrong == 0);
  REQUIRE(unread_outside > 0);
  INFO("tokens ", tokens / kSeeds, " of ", unread, ", outside ", outside / kSeeds, " of ", unread_outside);
  CHECK(std::fabs(tokens / kSeeds / unread - 1.0) <= 0.1);
  CHECK(std::fabs(outside / kSeeds / unread_outside - 1.0) <= 0.2);
}

TEST_CASE("cuda draw kernel: the same seed draws the same tokens, another round others; rows that are done draw none") {
  const HostCase host(small_case());
  CodedCase coded(host, certified()), again(host, certified());
  for (CodedCase* one : {&coded, &again}) {
    one->scan();
    one->select();
  }
  const auto tokens_of = [](const CodedCase& c) {
    std::vector<int32_t> tokens;
    for (const cuda::TokenDraw& draw : download(c.params().workspace.draws, 32)) tokens.push_back(draw.token);
    return tokens;
  };
  const std::vector<int32_t> first = tokens_of(coded);
  CHECK(first == tokens_of(again));
  std::vector<cuda::RowPlan> plans = coded.step.plans();
  for (int g = 0; g < 2; ++g) {
    plans[0].misses[g] = true;
    plans[0].surprise[g] = 1.0f;
    plans[0].rest_factor[g] = 2.0f;
  }
  StepCase::put(coded.params().workspace.plan, plans);
  coded.select(1);
  CHECK(coded.step.plans()[0].num_sampled == 64);
  CHECK(tokens_of(coded) != first);
  again.select(1);  // nothing misses
  CHECK(download(again.params().workspace.counts, 3) == std::vector<int32_t>{0, 0, 0});
  CHECK(tokens_of(again) == first);
}

}  // namespace
}  // namespace quorum::test
