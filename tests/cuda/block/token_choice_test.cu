// The threshold of tokens, from histograms made by hand (algorithm.md eq. 15 and 18).
#include "quorum/cuda/block/token_choice.cuh"

#include <doctest/doctest.h>

#include <random>

#include "quorum/cuda/kernel/choose_tokens_kernel.cuh"
#include "tests/cuda/support/coded_case.cuh"

namespace quorum::test {
namespace {

using Sum = unsigned long long;

DecodeOptions token_options(float target = 0.9f) {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::tokens;
  options.target_ratio = target;
  return options;
}

// One row of three heads whose histogram is replaced: a token a bucket here and there, lighter with the bucket.
struct Choice {
  static constexpr int kGroup = 3;
  HostCase host;
  CodedCase coded;
  std::vector<Sum> histogram = std::vector<Sum>((kGroup + 1) * kNumKeyBuckets, 0);
  cuda::RowPlan plan;

  static CaseOptions case_of() {
    CaseOptions options;
    options.shape = {kGroup, 1, 64, 0.0f};
    options.num_tokens = {800};
    return options;
  }
  explicit Choice(const DecodeOptions& options) : host(case_of()), coded(host, options) {
    coded.scan();
    plan = coded.step.plans()[0];
    std::mt19937 random(11);
    const double unit = double(cuda::token_unit(options));
    int tokens = 0;
    for (int b = 40; b < kNumKeyBuckets && tokens + 6 < plan.num_coded; b += 3) {
      const int count = int(random() % 6);
      for (int g = 0; g < kGroup; ++g) {
        const double share = count * double(bucket_key(b)) * (g == b % kGroup ? 1.0 : 0.6);
        histogram[size_t(g * kNumKeyBuckets + b)] = Sum((options.target_error > 0.0f ? share * share : share) * unit);
      }
      histogram[size_t(kGroup * kNumKeyBuckets + b)] = Sum(count);
      tokens += count;
    }
    for (int g = 0; g < kGroup; ++g) {
      plan.read[g] = 0.1f * plan.total[g];
      plan.outside[g] = 0.02f * plan.total[g];
      plan.used_outside[g] = 0.01f * plan.total[g];
    }
    StepCase::put(coded.params().workspace.token_histogram, histogram);
    // Expected weights by tile: as much as is left, so that what is outside stays as it is.
    std::vector<float> expected(size_t(coded.params().scan_tiles * kGroup), 0.0f);
    for (int g = 0; g < kGroup; ++g) expected[size_t(g)] = float(options.target_error > 0.0f ? 0.88 : share(g, 0, kNumKeyBuckets));
    StepCase::put(coded.params().workspace.unread_weight, expected);
    store();
  }
  void store() { StepCase::put(coded.params().workspace.plan, std::vector<cuda::RowPlan>{plan}); }
  double share(int g, int first, int last) const {
    double sum = 0.0;
    for (int b = first; b < last; ++b) sum += double(histogram[size_t(g * kNumKeyBuckets + b)]);
    return sum / (g == kGroup ? 1.0 : double(cuda::token_unit(coded.params().options)));
  }
  cuda::RowPlan choose(int round = 0) {
    coded.params().round = round;
    REQUIRE(cuda::launch({.threads = cuda::kChoiceThreads}, cuda::choose_tokens_kernel<cuda::kChoiceThreads>, coded.params()) ==
            cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    return coded.step.plans()[0];
  }
  // The first bucket at which enough(what each head has listed, how many tokens) holds.
  template <class Enough>
  int first_bucket(int from, Enough&& enough) const {
    int bucket = from;
    while (bucket < kNumKeyBuckets - 2 && !enough(bucket)) ++bucket;
    return bucket;
  }
};

TEST_CASE("token choice: a target counts what is not seen for 1.2 times, and no further than the worst head needs") {
  for (const float target : {0.3f, 0.5f, 0.7f}) {
    CAPTURE(target);
    Choice choice(token_options(target));
    const cuda::RowPlan plan = choice.choose();
    const int expected = choice.first_bucket(-1, [&](int b) {
      for (int g = 0; g < Choice::kGroup; ++g) {
        const double all = choice.share(g, 0, kNumKeyBuckets), listed = choice.share(g, 0, b + 1), factor = choice.plan.outside[g];
        const double found = std::min(1.0, all / (1.0 - 0.1 - 0.02));
        const double rest = all + found * factor / double(choice.plan.total[g]);
        if (0.1 + listed < double(target) * (0.1 + listed + 1.2 * (rest - listed))) return false;
      }
      return true;
    });
    CHECK(std::abs(plan.token_bucket - expected) <= 3);  // a bucket in three holds something
    CHECK(choice.share(0, 0, plan.token_bucket + 1) >= choice.share(0, 0, expected + 1) - 1e-6);
    CHECK(plan.num_listed - plan.num_always == int(choice.share(Choice::kGroup, 0, plan.token_bucket + 1)));
    for (int g = 0; g < Choice::kGroup; ++g)
      CHECK(std::fabs(double(plan.listed[g]) / double(plan.total[g]) - choice.share(g, 0, plan.token_bucket + 1)) <= 1e-5);
  }
}

TEST_CASE("token choice: budget, least and most tokens, in whole buckets") {
  DecodeOptions options = token_options();
  options.fixed_budget = 40;
  Choice budget(options);
  const cuda::RowPlan plan = budget.choose();
  const auto count = [&](const Choice& c, int bucket) { return int(c.share(Choice::kGroup, 0, bucket + 1)); };
  CHECK(plan.token_bucket == budget.first_bucket(-1, [&](int b) { return count(budget, b) >= 40; }));
  options = token_options(0.01f);
  options.min_tokens = 25;
  Choice least(options);
  CHECK(least.choose().token_bucket == least.first_bucket(-1, [&](int b) { return count(least, b) >= 25; }));
  options = token_options(0.99f);
  options.max_tokens = 30;
  Choice most(options);
  CHECK(most.choose().token_bucket == most.first_bucket(-1, [&](int b) { return count(most, b + 1) > 30; }));
  options.max_tokens = 0;
  Choice none(options);
  CHECK(none.choose().num_listed == none.plan.num_always);
}

TEST_CASE("token choice: a later round takes further tokens for what the tokens read turned out to weigh") {
  Choice choice(token_options(0.5f));
  cuda::RowPlan plan = choice.choose();
  const int before = plan.token_bucket, listed = plan.num_listed;
  // Nothing misses: the row is done.
  choice.plan = plan;
  choice.store();
  CHECK(choice.choose(1).num_listed == listed);
  CHECK(download(choice.coded.params().workspace.counts, 3) == std::vector<int32_t>{0, 0, 0});
  // One head got less than was expected, and its tokens were heavier than their codes.
  choice.plan = plan;
  choice.plan.misses[1] = true;
  for (int g = 0; g < Choice::kGroup; ++g) {
    choice.plan.read[g] = g == 1 ? 0.2f * plan.total[g] : plan.total[g];
    choice.plan.rest_factor[g] = 1.2f;
    choice.plan.surprise[g] = 2.0f;
  }
  choice.store();
  const cuda::RowPlan after = choice.choose(1);
  const double rest = double(plan.rest[1]) / double(plan.total[1]);
  const double need = (0.5 * (0.2 + 1.2 * 2.0 * rest) - 0.2) / (2.0 * (0.5 + 0.5 * 1.2));
  const int expected = choice.first_bucket(before, [&](int b) { return choice.share(1, before + 1, b + 1) >= need - 1e-9; });
  CHECK(after.widens);
  CHECK(after.num_rounds == 1);
  CHECK(after.bucket_before == before);
  CHECK(after.first_listed == listed);
  CHECK(std::abs(after.token_bucket - expected) <= 3);
  CHECK(after.num_listed - listed == int(choice.share(Choice::kGroup, before + 1, after.token_bucket + 1)));
}

TEST_CASE("token choice: an error lists squares until what is left is small enough, once the output's length is known") {
  DecodeOptions options = token_options();
  options.target_error = 0.02f;
  Choice choice(options);
  cuda::RowPlan plan = choice.choose();
  CHECK(plan.num_listed == plan.num_always);  // the survey lists nothing
  choice.plan = plan;
  for (int g = 0; g < Choice::kGroup; ++g) {
    choice.plan.misses[g] = true;
    choice.plan.output_square[g] = 30.0f;
    choice.plan.output_weight[g] = plan.total[g];
  }
  choice.store();
  const cuda::RowPlan after = choice.choose(1);
  const std::vector<cuda::QueryConstants> constants = choice.coded.read(0).constants;
  const ValueMoments moments = choice.coded.head(0).moments;
  CHECK(after.num_listed > after.num_always);
  for (int g = 0; g < Choice::kGroup; ++g) {
    const double total = double(plan.total[g]), unit = total * total;
    const ErrorModel model = ErrorModel::of(moments, double(constants[size_t(g)].square), 30.0, total);
    const double left = choice.share(g, after.token_bucket + 1, kNumKeyBuckets) * unit;
    const double error = model.error(left, double(plan.outside_squares[g]) * unit);
    CHECK(std::fabs(double(after.error_estimate[g]) - error) <= 1e-3 * error);
    CHECK(error <= 0.02);
  }
  // A bucket less would not do.
  double worst = 0.0;
  for (int g = 0; g < Choice::kGroup; ++g) {
    const double total = double(plan.total[g]), unit = total * total;
    const ErrorModel model = ErrorModel::of(moments, double(constants[size_t(g)].square), 30.0, total);
    worst =
        std::max(worst, model.error(choice.share(g, after.token_bucket, kNumKeyBuckets) * unit, double(plan.outside_squares[g]) * unit));
  }
  CHECK(worst > 0.02);
}

TEST_CASE("token choice: half of all tokens are dearer than all, codes that lead astray and sums without end are given up") {
  DecodeOptions options = token_options(0.9f);
  options.unit = ReadUnit::automatic;
  options.min_tokens = 500;
  Choice dear(options);
  dear.histogram[Choice::kGroup * kNumKeyBuckets + 50] = 500;
  StepCase::put(dear.coded.params().workspace.token_histogram, dear.histogram);
  CHECK(dear.choose().path == DecodePath::dense_by_cost);
  Choice astray(token_options(0.9f));
  for (float& outside : astray.plan.outside) outside = 1e4f * astray.plan.total[0];
  astray.plan.num_coded = 0;
  astray.store();
  CHECK(astray.choose().path == DecodePath::dense_by_numerics);
  Choice endless(token_options(0.9f));
  endless.plan.outside[1] = kInfinity;
  endless.store();
  CHECK(endless.choose().path == DecodePath::dense_by_numerics);
  CHECK(download(endless.coded.params().workspace.counts, 3) == std::vector<int32_t>{800, 0, 0});
}

TEST_CASE("token choice: tiles list one after the other") {
  DecodeOptions options = token_options();
  options.fixed_budget = 60;
  CaseOptions large = Choice::case_of();
  large.index.cluster_size = 4;
  const HostCase host(large);
  CodedCase coded(host, options, 8);
  coded.scan();
  coded.select();
  const cuda::StepParams& p = coded.params();
  REQUIRE(p.scan_tiles > 1);
  const cuda::RowPlan plan = coded.step.plans()[0];
  const auto counts = download(p.workspace.tile_counts, size_t(p.scan_tiles) * kNumKeyBuckets);
  const auto starts = download(p.workspace.tile_start, size_t(p.scan_tiles));
  int at = plan.num_always;
  for (int tile = 0; tile < p.scan_tiles; ++tile) {
    CHECK(starts[size_t(tile)] == at);
    for (int b = 0; b <= plan.token_bucket; ++b) at += int(counts[size_t(tile * kNumKeyBuckets + b)]);
  }
  CHECK(at == plan.num_listed);
}

}  // namespace
}  // namespace quorum::test
