// A whole step that chooses single tokens by their residual codes, against the CPU's and attention in f64.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <utility>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

CaseOptions token_case(int head_dim, int group, std::vector<int> num_tokens = {500, 90}) {
  CaseOptions options;
  options.shape = {2 * group, 2, head_dim, 0.0f};
  options.num_tokens = std::move(num_tokens);
  options.index.window_tokens = 20;
  options.index.recluster_every = 16;
  options.index.cluster_size = 16;
  return options;
}
DecodeOptions token_options(float target = 0.9f, int budget = 0) {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::tokens;
  options.target_ratio = target;
  options.fixed_budget = budget;
  return options;
}

// The step as the CPU takes it: as many tokens up to a few in key buckets that rounding may move, as good an output.
void check_against_cpu(const HostCase& host, const DecodeOptions& options, double more_tokens = 0.1) {
  const CaseResult result = DeviceCase(host).decode(options), cpu = host.cpu_decode(options), dense = host.reference();
  for (size_t i = 0; i < result.reports.size(); ++i) {
    const HeadReport &own = result.reports[i], &other = cpu.reports[i];
    CAPTURE(i);
    CHECK(own.path == other.path);
    CHECK(own.shared_rows == other.shared_rows);
    CHECK(own.bytes_dense == other.bytes_dense);
    INFO("tokens ", own.tokens_read, ", on the CPU ", other.tokens_read);
    CHECK(std::fabs(own.tokens_read - other.tokens_read) <= 2 + more_tokens * other.tokens_read);
    INFO("coded ", own.tokens_coded, ", on the CPU ", other.tokens_coded);
    CHECK(std::fabs(own.tokens_coded - other.tokens_coded) <= 0.05 * other.tokens_coded);
    INFO("means ", own.clusters_used, ", on the CPU ", other.clusters_used);
    CHECK(std::abs(own.clusters_used - other.clusters_used) <= 2);
    INFO("ratio ", own.attained_ratio_estimate, ", on the CPU ", other.attained_ratio_estimate);
    CHECK(std::fabs(own.attained_ratio_estimate - other.attained_ratio_estimate) <= 0.1f);
    CHECK(std::fabs(result.lse[i] - cpu.lse[i]) <= 0.05f);
  }
  INFO("error ", distance(result.output, dense.output), ", on the CPU ", distance(cpu.output, dense.output));
  CHECK(distance(result.output, dense.output) <= distance(cpu.output, dense.output) + 0.05);
}

TEST_CASE("cuda decode by tokens: budgets and targets, as the CPU chooses, for every head_dim and type") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const auto& [group, type] : {std::pair{1, ElementType::f16}, std::pair{4, ElementType::bf16}, std::pair{9, ElementType::f16}}) {
      CAPTURE(head_dim);
      CAPTURE(group);
      CaseOptions options = token_case(head_dim, group);
      options.type = type;
      const HostCase host(options);
      check_against_cpu(host, token_options(0.9f, 60));
      check_against_cpu(host, token_options(0.8f), 0.25);
    }
}

}  // namespace
}  // namespace quorum::test
namespace quorum::test {
TEST_CASE("EXPERIMENT") {
  for (const char* trace : {"examples/data/smollm2_135m_kjv_8k_layer12.safetensors"}) {
    CaseOptions options;
    options.trace = trace;
    options.num_tokens = {8192};
    const HostCase host(options);
    const DeviceCase device(host);
    const CaseResult expected = host.reference();
    for (const float target : {0.5f, 0.8f, 0.9f}) {
      DecodeOptions decode;
      decode.certificate.enabled = getenv("CERT") != nullptr;
      if (getenv("ERR") != nullptr) decode.target_error = 0.1f * (1.0f - target);
      decode.unit = ReadUnit::tokens;
      decode.target_ratio = target;
      if (getenv("ERR") == nullptr) decode.tail = Tail::drop;
      const CaseResult result = device.decode(decode), cpu = host.cpu_decode(decode);
      for (size_t i = 0; i < result.reports.size(); ++i) {
        const HeadReport &own = result.reports[i], &other = cpu.reports[i];
        std::printf("%.1f head %zu path %d/%d tokens %d / %d coded %d / %d attained %.4f / %.4f estimate %.4f / %.4f bound %.4f / %.4f rounds %d / %d drawn %d / %d error %.4f / %.4f\n", target, i, int(own.path), int(other.path),
                    own.tokens_read, other.tokens_read, own.tokens_coded, other.tokens_coded, std::exp(result.lse[i] - expected.lse[i]), std::exp(cpu.lse[i] - expected.lse[i]),
                    own.attained_ratio_estimate, other.attained_ratio_estimate, own.attained_ratio_lower_bound, other.attained_ratio_lower_bound, own.rounds, other.rounds, own.tokens_sampled, other.tokens_sampled, own.error_estimate, other.error_estimate);
      }
    }
  }
}
}
