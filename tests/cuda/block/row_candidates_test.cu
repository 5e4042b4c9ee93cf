// Which clusters become candidates: made by hand, against the rule in double precision (algorithm.md eq. 14).
#include "quorum/cuda/block/row_candidates.cuh"

#include <doctest/doctest.h>

#include <random>
#include <utility>

#include "quorum/cuda/kernel/choose_candidates_kernel.cuh"
#include "tests/cuda/support/choice_case.cuh"
#include "tests/cuda/support/team.cuh"

namespace quorum::test {
namespace {

DecodeOptions token_options(float target, int budget = 0) {
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = target;
  options.fixed_budget = budget;
  options.tail = Tail::estimated;
  return options;
}

// A row of clusters whose codes are never looked at: choosing candidates asks for estimates alone.
struct Candidates {
  ChoiceCase choice;
  DeviceArray<int32_t> code_indptr;
  cuda::DeviceBuffer memory;
  std::vector<int> buckets;  // of the clusters' keys, by the exact share

  Candidates(const std::vector<int>& sizes, const std::vector<float>& log_weights, int group, const DecodeOptions& options)
      : choice(sizes, log_weights, group, 0.5f, options), code_indptr(blocks_of(sizes)) {
    cuda::StepParams& p = choice.params;
    std::vector<FlatHeadView> head = ChoiceCase::get(p.heads, 1);
    head[0].residual_codes = true;
    head[0].clusters.code_indptr = code_indptr.data();
    ChoiceCase::put(const_cast<FlatHeadView*>(p.heads), head);
    const std::vector<AttentionState> of_clusters = ChoiceCase::get(p.workspace.cluster_weight, size_t(group)),
                                      of_always = ChoiceCase::get(p.workspace.always_weight, size_t(group));
    p.by_tokens = true;
    p.candidate_coverage = candidate_coverage(options);
    p.scan_tiles = 1;
    const cuda::DeviceTuning device{1, true};
    memory = cuda::DeviceBuffer(cuda::lay_out(nullptr, device, p));
    cuda::lay_out(memory.as<>(), device, p);
    ChoiceCase::put(p.workspace.log_weight, log_weights);
    ChoiceCase::put(p.workspace.cluster_weight, of_clusters);
    ChoiceCase::put(p.workspace.always_weight, of_always);
    for (int j = 0; j < choice.num_clusters(); ++j) {
      double key = 0.0;
      for (int g = 0; g < group; ++g) key = std::max(key, choice.weight(j, g) / choice.total(g) / choice.size(j));
      buckets.push_back(key_bucket(float(key)));
    }
  }
  static std::vector<int32_t> blocks_of(const std::vector<int>& sizes) {
    std::vector<int32_t> indptr{0};
    for (const int n : sizes) indptr.push_back(indptr.back() + num_code_blocks(n));
    return indptr;
  }
  void run() {
    const cuda::StepParams& p = choice.params;
    const int64_t shared = cuda::RowCandidates<16>::shared_bytes(p.group, p.max_slots, p.select_blocks);
    const unsigned blocks = unsigned(p.select_blocks);
    const auto with = [&](auto kernel) {
      REQUIRE(cuda::allow_dynamic_shared(kernel, shared) == cudaSuccess);
      REQUIRE(cuda::launch({{blocks, 1, 1}, cuda::kSelectThreads, shared, nullptr, false, p.select_blocks}, kernel, p) == cudaSuccess);
    };
    if (p.group <= 4)
      with(cuda::choose_candidates_kernel<4>);
    else if (p.group <= 8)
      with(cuda::choose_candidates_kernel<8>);
    else
      with(cuda::choose_candidates_kernel<16>);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
  std::vector<uint16_t> marks() const { return ChoiceCase::get(choice.params.workspace.cluster_key, size_t(choice.num_clusters())); }

  int bucket(int cluster) const { return buckets[size_t(cluster)]; }
  // The first threshold, not above `from`, at which enough(cluster, its bucket <= threshold ...) holds for what is chosen.
  template <class Enough>
  int threshold(int from, Enough&& enough) const {
    int at = from;
    while (at < kNumKeyBuckets - 2 && !enough(at)) ++at;
    return at;
  }
  double covered(int threshold, int g) const {
    double sum = choice.always_weight();
    for (int j = 0; j < choice.num_clusters(); ++j)
      if (choice.size(j) > 0 && bucket(j) <= threshold) sum += choice.weight(j, g);
    return sum / choice.total(g);
  }
  int cover(double share, int from) const {
    return threshold(from, [&](int at) {
      for (int g = 0; g < choice.params.group; ++g)
        if (covered(at, g) < share) return false;
      return true;
    });
  }
};

Candidates random_case(int num_clusters, int group, const DecodeOptions& options, uint64_t seed = 3) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(-9.0f, 0.0f);
  std::vector<int> sizes;
  std::vector<float> log_weights;
  for (int j = 0; j < num_clusters; ++j) {
    sizes.push_back(std::max(0, int(random() % 40) - 5));
    for (int g = 0; g < group; ++g) log_weights.push_back(sizes.back() == 0 ? -kInfinity : uniform(random));
  }
  return Candidates(sizes, log_weights, group, options);
}

// Marks, lists and sums of a cut; clusters whose key lies at a bucket's edge may fall on either side.
void check_cut(const Candidates& row, int candidates, int outside) {
  const ChoiceCase& choice = row.choice;
  const std::vector<uint16_t> marks = row.marks();
  const cuda::RowPlan plan = choice.plan();
  CHECK(plan.path == DecodePath::sparse_tokens);
  int tokens = 0, blocks = 0, wrong = 0;
  std::vector<int32_t> tail;
  for (int j = 0; j < choice.num_clusters(); ++j) {
    const int bucket = choice.size(j) == 0 ? kNumKeyBuckets : row.bucket(j);
    const uint16_t expected = bucket <= candidates ? 0 : bucket <= outside ? cuda::kEntersOutside : cuda::kNoCandidate;
    wrong += marks[size_t(j)] == expected ? 0 : 1;
    if (bucket <= candidates) tokens += choice.size(j), blocks += num_code_blocks(choice.size(j));
    if (bucket <= outside) tail.push_back(j);
  }
  CHECK(wrong == 0);
  CHECK(plan.num_coded == tokens);
  CHECK(plan.num_code_blocks == blocks);
  CHECK(choice.tail() == tail);
  for (int g = 0; g < choice.params.group; ++g) {
    CAPTURE(g);
    const double unit = std::exp(double(plan.reference[g])), total = choice.total(g);
    CHECK(std::fabs(double(plan.total[g]) * unit / total - 1.0) <= 1e-5);
    CHECK(std::fabs(double(plan.log_total[g]) - std::log(total)) <= 1e-5);
    CHECK(std::fabs(double(plan.outside[g]) * unit / total - (1.0 - row.covered(candidates, g))) <= 1e-5);
    CHECK(std::fabs(double(plan.used_outside[g]) * unit / total - (row.covered(outside, g) - row.covered(candidates, g))) <= 1e-5);
  }
}

TEST_CASE("row candidates: whole buckets until every head is covered, and further until nine tenths of what is left is") {
  for (const int group : {1, 4, 5, 8, 9, 16})
    for (const auto& [num_clusters, blocks] : {std::pair{16, 1}, {528, 1}, {1040, 3}}) {
      if (blocks > most_team_blocks() || (blocks > 1 && group != 5)) continue;
      CAPTURE(group);
      CAPTURE(num_clusters);
      Candidates row = random_case(num_clusters, group, token_options(0.7f));
      row.choice.params.select_blocks = blocks;
      row.run();
      const double coverage = 0.97;
      const int candidates = row.cover(coverage, -1);
      check_cut(row, candidates, row.cover(1.0 - (1.0 - coverage) * 0.1, candidates));
      if (num_clusters > 16) CHECK(row.choice.plan().num_coded < row.choice.num_indexed());
    }
}

TEST_CASE("row candidates: a budget takes twice as many clusters, and one, until they hold it") {
  for (const int budget : {1, 3000, 1000000}) {
    CAPTURE(budget);
    Candidates row = random_case(256, 3, token_options(0.9f, budget));
    row.choice.params.select_blocks = budget == 3000 ? std::min(2, most_team_blocks()) : 1;
    row.run();
    const auto count = [&](int threshold, bool of_tokens) {
      int sum = 0;
      for (int j = 0; j < row.choice.num_clusters(); ++j)
        if (row.choice.size(j) > 0 && row.bucket(j) <= threshold) sum += of_tokens ? row.choice.size(j) : 1;
      return sum;
    };
    int candidates = row.cover(0.95, -1);
    const int first = candidates;
    while (count(candidates, true) < budget && candidates < kNumKeyBuckets - 2) {
      const int twice = 2 * count(candidates, false) + 1;
      candidates = row.threshold(candidates, [&](int at) { return count(at, false) >= twice; });
    }
    double covered = 1.0;
    for (int g = 0; g < 3; ++g) covered = std::min(covered, row.covered(candidates, g));
    if (candidates == first) covered = 0.95;
    check_cut(row, candidates, row.cover(1.0 - (1.0 - std::max(0.95, covered)) * 0.1, candidates));
  }
}

TEST_CASE("row candidates: what is always read may cover everything; without a tail nothing else is listed") {
  Candidates none(std::vector<int>(32, 20), std::vector<float>(32, -20.0f), 1, token_options(0.5f));
  none.run();
  CHECK(none.choice.plan().num_coded == 0);
  CHECK(none.choice.plan().num_tail == 0);
  DecodeOptions options = token_options(0.8f);
  options.tail = Tail::drop;
  Candidates dropped = random_case(64, 2, options);
  dropped.run();
  CHECK(dropped.choice.plan().num_coded > 0);
  CHECK(dropped.choice.plan().num_tail == 0);
  for (const uint16_t mark : dropped.marks()) CHECK(mark != cuda::kEntersOutside);
}

TEST_CASE("row candidates: squares of what is outside, where an error is wanted") {
  DecodeOptions options = token_options(0.9f);
  options.target_error = 0.1f;
  for (const int blocks : {1, std::min(2, most_team_blocks())}) {
    Candidates row = random_case(blocks * 528, 3, options);
    row.choice.params.select_blocks = blocks;
    row.run();
    const std::vector<uint16_t> marks = row.marks();
    for (int g = 0; g < 3; ++g) {
      double sum = 0.0;
      for (int j = 0; j < row.choice.num_clusters(); ++j)
        if (marks[size_t(j)] != 0 && row.choice.size(j) > 0) {
          const double share = row.choice.weight(j, g) / row.choice.total(g);
          sum += share * share / row.choice.size(j);
        }
      CHECK(std::fabs(double(row.choice.plan().outside_squares[g]) / sum - 1.0) <= 1e-3);
    }
  }
}

}  // namespace
}  // namespace quorum::test
