// The lists of tokens, and what the others weigh, against a walk over all tokens.
#include "quorum/cuda/kernel/list_tokens_kernel.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>

#include "tests/cuda/support/coded_case.cuh"
#include "tests/cuda/support/device_array.cuh"
#include "tests/cuda/support/score_reference.hpp"

namespace quorum::test {
namespace {

CaseOptions small_case(int head_dim, int group) {
  CaseOptions options;
  options.shape = {2 * group, 2, head_dim, 0.0f};
  options.num_tokens = {500, 220};
  options.index.window_tokens = 9;
  options.index.cluster_size = 20;
  return options;
}
DecodeOptions token_options(float target = 0.7f) {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::tokens;
  options.target_ratio = target;
  return options;
}

// What is listed are always-read tokens, then the candidates' tokens up to the bucket; what is not is summed up by cluster and tile.
void check_row(const CodedCase& coded, int row) {
  const cuda::StepParams& p = coded.params();
  const CodedRow r = coded.read(row);
  std::vector<int32_t> list = download(p.workspace.tokens + int64_t(row) * p.max_tokens, size_t(r.plan.num_listed));
  std::vector<int32_t> expected = always_read(coded.host, p.sequence_of(row));
  std::vector<double> unread(size_t(p.group));
  int wrong = 0;
  for (int j = 0; j < coded.num_clusters(row); ++j) {
    const int key = r.cluster_key[size_t(j)];
    const ClusterRef ref = cluster_at(coded.head(row), j);
    std::vector<double> mass(size_t(p.group));
    for (int i = 0; key < cuda::kEntersOutside && i < ref.size(); ++i) {
      const int bucket = r.token_bucket[size_t(coded.first_block(row, j) * kCodeBlock + i)];
      if (bucket <= r.plan.token_bucket) {
        expected.push_back(ref.tokens()[i]);
        continue;
      }
      for (int g = 0; g < p.group; ++g) mass[size_t(g)] += coded.share(row, r, j, i, g);
    }
    for (int g = 0; g < p.group && key != cuda::kNoCandidate; ++g) {
      const double got = double(r.tail_weight[size_t(j * p.group + g)]);
      if (key == cuda::kEntersOutside) {
        const double weight = CodedCase::capped(double(r.log_weight[size_t(j * p.group + g)]), double(p.shape.logit_softcap));
        wrong += std::fabs(got - weight - double(r.plan.log_outside_scale[g])) <= 1e-4 ? 0 : 1;
        continue;
      }
      unread[size_t(g)] += mass[size_t(g)];
      const double log_mean = std::log(mass[size_t(g)] / ref.size()) + double(r.plan.log_total[g]);
      wrong += mass[size_t(g)] == 0.0 ? (std::isinf(got) ? 0 : 1) : (std::fabs(got - log_mean) <= 2e-3 ? 0 : 1);
    }
  }
  CHECK(wrong == 0);
  std::sort(list.begin(), list.end());
  std::sort(expected.begin(), expected.end());
  CHECK(list == expected);
  const auto tiles = download(p.workspace.unread_weight + int64_t(row) * p.scan_tiles * p.group, size_t(p.scan_tiles * p.group));
  for (int g = 0; g < p.group; ++g) {
    double sum = 0.0;
    for (int tile = 0; tile < p.scan_tiles; ++tile) sum += double(tiles[size_t(tile * p.group + g)]);
    CHECK(std::fabs(sum / double(r.plan.total[g]) - unread[size_t(g)]) <= 2e-3 * unread[size_t(g)] + 1e-6);
  }
}

void check_head_dims(std::initializer_list<int> head_dims) {
  for (const int head_dim : head_dims)
    for (const int group : {1, 5, 16}) {
      CAPTURE(head_dim);
      CAPTURE(group);
      const HostCase host(small_case(head_dim, group));
      CodedCase coded(host, token_options());
      coded.scan();
      coded.select();
      for (int row = 0; row < coded.params().num_rows(); ++row) check_row(coded, row);
    }
}

TEST_CASE("cuda list kernel: tokens, and what is left of their clusters, for every number of columns") { check_head_dims({64, 96}); }
TEST_CASE("cuda list kernel: the same of long rows" * doctest::test_suite("long rows")) { check_head_dims({128, 256}); }

TEST_CASE("cuda list kernel: clusters of one token and of many blocks, soft-capping, nothing listed, a second round") {
  for (const int variant : {0, 1, 2, 3, 4}) {
    CAPTURE(variant);
    CaseOptions options = small_case(64, 3);
    DecodeOptions decode = token_options();
    if (variant == 0) options.index.cluster_size = 1;
    if (variant == 1) options.index.cluster_size = 200;
    if (variant == 2) options.shape.logit_softcap = 3.0f;
    if (variant == 3) decode.max_tokens = 0;
    const HostCase host(options);
    CodedCase coded(host, decode, variant == 0 ? 8 : 3);
    coded.scan();
    coded.select();
    if (variant == 4) {
      std::vector<cuda::RowPlan> plans = coded.step.plans();
      for (cuda::RowPlan& plan : plans)
        for (int g = 0; g < 3; ++g) {
          plan.misses[g] = true;
          plan.surprise[g] = 1.0f;
          plan.rest_factor[g] = 3.0f;
        }
      StepCase::put(coded.params().workspace.plan, plans);
      coded.select(1);
      CHECK(coded.step.plans()[0].num_listed > plans[0].num_listed);
    }
    for (int row = 0; row < coded.params().num_rows(); ++row) check_row(coded, row);
  }
}

__global__ void bits_kernel(const uint16_t* buckets, int num_tokens, const cuda::RowPlan* plan, uint32_t* out) {
  *out = cuda::listed_bits(buckets, num_tokens, *plan);
}

TEST_CASE("cuda list kernel: bits of the tokens between two buckets") {
  std::vector<uint16_t> buckets(16);
  for (int i = 0; i < 16; ++i) buckets[size_t(i)] = uint16_t(i * 7 % 16);
  const DeviceArray<uint16_t> input(buckets);
  const DeviceArray<uint32_t> output(1);
  for (const int num_tokens : {1, 9, 16})
    for (const int before : {-1, 3}) {
      cuda::RowPlan plan;
      plan.bucket_before = before;
      plan.token_bucket = 8;
      const DeviceArray<cuda::RowPlan> plans(std::vector<cuda::RowPlan>{plan});
      REQUIRE(cuda::launch({.threads = 1}, bits_kernel, static_cast<const uint16_t*>(input.data()), num_tokens,
                           static_cast<const cuda::RowPlan*>(plans.data()), output.data()) == cudaSuccess);
      uint32_t expected = 0;
      for (int i = 0; i < num_tokens; ++i) expected |= buckets[size_t(i)] <= 8 && int(buckets[size_t(i)]) > before ? 1u << i : 0u;
      CHECK(output.values()[0] == expected);
    }
}

}  // namespace
}  // namespace quorum::test
