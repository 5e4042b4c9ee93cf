// What the kernel does around the choice of candidates: paths, lists, empty histograms. The choice itself:
// tests/cuda/block/row_candidates_test.cu.
#include "quorum/cuda/kernel/choose_candidates_kernel.cuh"

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/cuda/support/coded_case.cuh"
#include "tests/cuda/support/score_reference.hpp"

namespace quorum::test {
namespace {

CaseOptions small_case() {
  CaseOptions options;
  options.shape = {4, 2, 64, 0.0f};
  options.num_tokens = {400, 3, 300};
  options.index.window_tokens = 9;
  options.index.cluster_size = 16;
  return options;
}
DecodeOptions token_options() {
  DecodeOptions options;
  options.dense_below = 0;
  return options;
}

TEST_CASE("cuda candidates kernel: always-read tokens lead the list, the histogram is empty, other rows are passed over") {
  const HostCase host(small_case());
  CodedCase coded(host, token_options());
  cuda::StepParams& p = coded.params();
  std::vector<cuda::RowPlan> marked(size_t(p.num_rows()));
  for (cuda::RowPlan& plan : marked) plan.num_coded = -7;
  StepCase::put(p.workspace.plan, marked);
  coded.scan();
  for (int row = 0; row < p.num_rows(); ++row) {
    CAPTURE(row);
    const int sequence = p.sequence_of(row);
    if (sequence == 1) {  // too short for an index
      CHECK(coded.step.plans()[size_t(row)].num_coded == -7);
      continue;
    }
    const CodedRow r = coded.read(row);
    CHECK(r.plan.path == DecodePath::sparse_tokens);
    CHECK(r.plan.num_coded > 0);
    CHECK(r.plan.num_coded <= host.index(sequence).num_indexed);
    const std::vector<int32_t> always = always_read(host, sequence);
    CHECK(r.plan.num_always == int(always.size()));
    CHECK(r.plan.num_listed == int(always.size()));
    CHECK(download(p.workspace.tokens + int64_t(row) * p.max_tokens, always.size()) == always);
    int64_t counted = 0;
    for (int b = 0; b < kNumKeyBuckets; ++b) counted += int64_t(r.histogram[size_t(p.group * kNumKeyBuckets + b)]);
    CHECK(counted == r.plan.num_coded);
  }
}

TEST_CASE("cuda candidates kernel: a second step over the same memory finds its histograms empty") {
  const HostCase host(small_case());
  CodedCase coded(host, token_options());
  coded.scan();
  const CodedRow first = coded.read(0);
  coded.scan();
  const CodedRow second = coded.read(0);
  CHECK(first.histogram == second.histogram);
  CHECK(first.cluster_key == second.cluster_key);
  CHECK(first.plan.token_bucket == -1);
}

TEST_CASE("cuda candidates kernel: scores that are no numbers, and more codes than were planned for, end densely") {
  const HostCase host(small_case());
  CodedCase nan(host, token_options());
  cuda::StepParams& p = nan.params();
  REQUIRE(cuda::score_clusters(p, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  StepCase::put(p.workspace.always_weight, std::vector<AttentionState>{{kNan, 1.0f}});
  REQUIRE(cuda::scan_candidates(p, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(nan.step.plans()[0].path == DecodePath::dense_by_numerics);
  CHECK(nan.step.plans()[0].num_listed == 400);
  CHECK(download(p.workspace.counts, 3) == std::vector<int32_t>{400, 0, 0});
  CHECK(nan.step.plans()[1].path == DecodePath::sparse_tokens);

  CodedCase full(host, token_options());
  full.params().max_tokens = 0;  // room for a block a slot only, and clusters have more
  const int64_t room = full.params().max_code_blocks();
  REQUIRE(full.first_block(0, full.num_clusters(0)) > room);
  REQUIRE(cuda::score_clusters(full.params(), nullptr) == cudaSuccess);
  REQUIRE(cuda::scan_candidates(full.params(), nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(full.step.plans()[0].path == DecodePath::dense_by_capacity);
}

}  // namespace
}  // namespace quorum::test
