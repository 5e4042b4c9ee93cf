#include "quorum/cuda/sparse_attention.cuh"

#include <doctest/doctest.h>

#include <numeric>
#include <random>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

using Lists = std::vector<std::vector<int32_t>>;

CaseOptions small_case(int head_dim, int group, ElementType type) {
  CaseOptions options;
  options.shape = {2 * group, 2, head_dim, 0.0f};
  options.type = type;
  options.num_tokens = {70, 0, 45};
  return options;
}
double tolerance(ElementType type) { return type == ElementType::bf16 ? 6e-3 : 1e-3; }

// Some tokens of each row, in an order that no one promised.
Lists random_lists(const HostCase& host, uint64_t seed) {
  std::mt19937_64 random(seed);
  Lists lists;
  for (const int n : host.num_tokens())
    for (int h = 0; h < host.options().shape.num_kv_heads; ++h) {
      std::vector<int32_t> tokens(static_cast<size_t>(n));
      std::iota(tokens.begin(), tokens.end(), 0);
      std::shuffle(tokens.begin(), tokens.end(), random);
      tokens.resize(n == 0 ? 0 : 1 + size_t(random() % uint64_t(n)));
      lists.push_back(tokens);
    }
  return lists;
}

DecodeOptions without_tail() {
  DecodeOptions options;
  options.dense_below = 0;
  options.tail = Tail::drop;
  return options;
}

CaseResult attend(StepCase& step, const Lists& lists, DecodePath path = DecodePath::sparse) {
  step.set_lists(lists, path);
  const cuda::StepParams& p = step.params;
  REQUIRE(cuda::prepare_sparse_attention(p.shape.head_dim, p.group, p.kv.type, step.device(), p.num_rows()) == cudaSuccess);
  REQUIRE(cuda::sparse_attention(p, step.device(), nullptr) == cudaSuccess);
  return step.result();
}

TEST_CASE("cuda attention: given lists, for every shape, type and policy") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const int group : {1, 4, 9, 16})
      for (const ElementType type : {ElementType::bf16, ElementType::f16, ElementType::fp8_e4m3}) {
        CAPTURE(head_dim);
        CAPTURE(group);
        CAPTURE(element_name(type));
        const HostCase host(small_case(head_dim, group, type));
        const DeviceCase device(host);
        const Lists lists = random_lists(host, uint64_t(head_dim + group));
        const CaseResult expected = host.reference(lists);
        for (const bool large : {true, false}) {
          if (large != (type == ElementType::bf16) && group != 4) continue;
          cuda::DeviceTuning tuning = small_device();
          tuning.large_shared_memory = tuning.large_shared_memory && large;
          StepCase step(host, device, without_tail(), tuning);
          const CaseResult result = attend(step, lists);
          CHECK(distance(result.output, expected.output) <= tolerance(type));
          CHECK(distance(result.lse, expected.lse) <= 1e-3);
        }
      }
}

TEST_CASE("cuda attention: lists of all lengths around a tile, for few and many blocks") {
  CaseOptions options = small_case(64, 3, ElementType::f16);
  options.num_tokens = {130, 130, 130, 130};
  const HostCase host(options);
  const DeviceCase device(host);
  const size_t lengths[8] = {0, 1, 15, 16, 17, 33, 64, 130};
  Lists lists = random_lists(host, 5);
  for (size_t row = 0; row < 8; ++row) {
    lists[row].resize(lengths[row]);
    std::iota(lists[row].begin(), lists[row].end(), lengths[row] == 130 ? 0 : int(row));
  }
  const CaseResult expected = host.reference(lists);
  for (const int blocks : {1, 2, 3, 7, 25, 60}) {
    CAPTURE(blocks);
    StepCase step(host, device, without_tail());
    step.params.attend_blocks = blocks;
    step.lay_out();
    const CaseResult result = attend(step, lists);
    CHECK(distance(result.output, expected.output) <= 1e-3);
    for (int g = 0; g < 3; ++g) CHECK(result.lse[size_t(g)] == -kInfinity);  // an empty list
    CHECK(std::fabs(result.lse[23] - expected.lse[23]) <= 1e-3f);
    for (size_t row = 0; row < 8; ++row) CHECK(result.reports[row * 3].tokens_read == int(lengths[row]));
  }
}

TEST_CASE("cuda attention: a dense path needs no list, and reports all bytes") {
  const HostCase host(small_case(64, 4, ElementType::bf16));
  const DeviceCase device(host);
  Lists all;
  for (const int n : host.num_tokens()) all.insert(all.end(), 2, std::vector<int32_t>(size_t(n), -1));  // no tokens
  StepCase step(host, device, without_tail());
  const CaseResult result = attend(step, all, DecodePath::dense_by_policy), expected = host.reference();
  CHECK(distance(result.output, expected.output) <= tolerance(ElementType::bf16));
  for (const HeadReport& report : result.reports) {
    CHECK(report.path == DecodePath::dense_by_policy);
    CHECK(report.bytes_read == report.bytes_dense);
    CHECK(report.attained_ratio_lower_bound == 1.0f);
  }
  CHECK(result.reports[0].bytes_dense == 70 * 64 * 2 * 2);
}

TEST_CASE("cuda attention: scores far apart and far from zero") {
  for (const float spread : {0.0f, 8.0f}) {  // all keys equal; one key has all the weight
    CaseOptions options = small_case(128, 2, ElementType::f16);
    options.spread = spread;
    const HostCase host(options);
    const DeviceCase device(host);
    const Lists lists = random_lists(host, 9);
    StepCase step(host, device, without_tail());
    const CaseResult result = attend(step, lists), expected = host.reference(lists);
    CHECK(distance(result.output, expected.output) <= 2e-3);
    for (size_t i = 0; i < result.lse.size(); ++i)
      CHECK(
          (result.lse[i] == expected.lse[i] || std::fabs(result.lse[i] - expected.lse[i]) <= 2e-3f * (1.0f + std::fabs(expected.lse[i]))));
  }
}

}  // namespace
}  // namespace quorum::test
