#include "quorum/cuda/select_coded_tokens.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "tests/cuda/support/coded_case.cuh"

namespace quorum::test {
namespace {

CaseOptions small_case(int head_dim, int group) {
  CaseOptions options;
  options.shape = {2 * group, 2, head_dim, 0.0f};
  options.num_tokens = {600, 350};
  options.index.window_tokens = 5;
  options.index.cluster_size = 16;
  return options;
}

// The key bucket of every token that is a candidate's.
std::map<int32_t, int> buckets_of(const CodedCase& coded, int row) {
  const CodedRow r = coded.read(row);
  std::map<int32_t, int> buckets;
  for (int j = 0; j < coded.num_clusters(row); ++j) {
    if (r.cluster_key[size_t(j)] >= cuda::kEntersOutside) continue;
    const ClusterRef ref = cluster_at(coded.head(row), j);
    for (int i = 0; i < ref.size(); ++i) buckets[ref.tokens()[i]] = r.token_bucket[size_t(coded.first_block(row, j) * kCodeBlock + i)];
  }
  return buckets;
}

// With a budget the CPU chooses by code alone, as this does. Its scan rounds sums of four coordinates where this one rounds coordinates, so
// that keys differ by some percent: tokens that only one of the two lists lie within two buckets of the cut.
TEST_CASE("cuda selection by code: a budget lists the tokens that the CPU lists, but for those at the cut") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const int group : {1, 4, 9}) {
      CAPTURE(head_dim);
      CAPTURE(group);
      const HostCase host(small_case(head_dim, group));
      DecodeOptions options;
      options.dense_below = 0;
      options.unit = ReadUnit::tokens;
      options.fixed_budget = 80;
      CodedCase coded(host, options);
      coded.scan();
      coded.select();
      const auto expected = host.cpu_select(options);
      const cuda::StepParams& p = coded.params();
      int common = 0, wrong = 0;
      for (int row = 0; row < p.num_rows(); ++row) {
        const cuda::RowPlan plan = coded.step.plans()[size_t(row)];
        std::vector<int32_t> list = download(p.workspace.tokens + int64_t(row) * p.max_tokens, size_t(plan.num_listed)), differ;
        std::sort(list.begin(), list.end());
        CHECK(std::adjacent_find(list.begin(), list.end()) == list.end());
        const std::vector<int32_t>& other = expected[size_t(row)];
        std::set_symmetric_difference(list.begin(), list.end(), other.begin(), other.end(), std::back_inserter(differ));
        std::map<int32_t, int> bucket = buckets_of(coded, row);
        for (const int32_t token : differ) wrong += bucket.count(token) > 0 && std::abs(bucket[token] - plan.token_bucket) <= 2 ? 0 : 1;
        common += int(list.size() + other.size() - differ.size()) / 2;
      }
      CHECK(wrong == 0);
      CHECK(common >= 60 * p.num_rows());
    }
}

TEST_CASE("cuda selection by code: shared memory grows with columns and clusters, within every device's") {
  CHECK(cuda::RowCandidates<16>::shared_bytes(16, 8192, 1) <= 163 * 1024);
  CHECK(cuda::RowCandidates<4>::shared_bytes(4, 1024, 1) - cuda::RowCandidates<4>::shared_bytes(4, 16, 1) == 4 * 1008);
  CHECK(cuda::scan_shared_bytes(16) <= 47 * 1024);  // no kernel needs to be asked for it
}

}  // namespace
}  // namespace quorum::test
