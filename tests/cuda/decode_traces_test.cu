// A whole step on recorded layers of real models, 8192 tokens of each, next to the CPU's step and attention in f64.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "tests/cuda/support/step_case.cuh"
#include "tests/support/near.hpp"
#include "tests/support/recorded_traces.hpp"

namespace quorum::test {
namespace {

CaseOptions recorded_layer(const std::string& trace, bool in_fp8 = false) {
  CaseOptions options;
  options.trace = trace;
  options.num_tokens = {8192};
  if (in_fp8) options.type = ElementType::fp8_e4m3;
  return options;
}

// The CPU corrects its estimates while it reads, the GPU chooses before: single heads differ, the whole little.
TEST_CASE("cuda decode: whole clusters of the repository's layer") {
  CaseOptions options = recorded_layer(kExampleTrace);
  options.index.cluster_size = 16;
  const HostCase host(options);
  DecodeOptions decode;
  decode.unit = ReadUnit::clusters;
  decode.tail = Tail::estimated;
  decode.num_samples = 2;
  const CaseResult result = DeviceCase(host).decode(decode), cpu = host.cpu_decode(decode), expected = host.reference();
  const double error = relative_error(result.output, expected.output), cpu_error = relative_error(cpu.output, expected.output);
  INFO("relative error ", error, ", on the CPU ", cpu_error);
  CHECK(error <= 0.07);
  CHECK(error <= 3.0 * cpu_error);
  int64_t tokens = 0, cpu_tokens = 0;
  for (size_t i = 0; i < result.reports.size(); ++i) {
    const HeadReport &own = result.reports[i], &other = cpu.reports[i];
    INFO("tokens ", own.tokens_read, ", on the CPU ", other.tokens_read);
    CHECK(own.path == DecodePath::sparse);
    CHECK(own.bytes_dense == other.bytes_dense);
    CHECK(own.bytes_read * 3 < own.bytes_dense);
    CHECK(own.tokens_read <= 2 * other.tokens_read);
    CHECK(other.tokens_read <= 2 * own.tokens_read);
    CHECK(std::fabs(result.lse[i] - expected.lse[i]) <= 0.08f);
    tokens += own.tokens_read;
    cpu_tokens += other.tokens_read;
  }
  CHECK(std::fabs(double(tokens) / double(cpu_tokens) - 1.0) <= 0.25);
}

struct BoundCount {
  int heads = 0, missed = 0;
};

// Where estimates are off, the certificate sees to it that more is read, once, and says what came of it; its bound may be missed at the
// rate that it states.
void check_certified_clusters(const std::string& trace, BoundCount& bounds) {
  CAPTURE(trace);
  CaseOptions options = recorded_layer(trace);
  options.index.cluster_size = 16;
  const HostCase host(options);
  DecodeOptions decode;
  decode.unit = ReadUnit::clusters;
  decode.certificate.enabled = true;
  decode.tail = Tail::drop;  // without a rest lse is the weight that was read
  const CaseResult result = DeviceCase(host).decode(decode), expected = host.reference();
  for (size_t i = 0; i < result.reports.size(); ++i) {
    const HeadReport& own = result.reports[i];
    CAPTURE(i);
    INFO("tokens ", own.tokens_read);
    const double attained = std::exp(double(result.lse[i]) - double(expected.lse[i]));
    CHECK(own.path == DecodePath::sparse);
    CHECK(attained >= 0.85);
    ++bounds.heads;
    bounds.missed += double(own.attained_ratio_lower_bound) > attained + 0.01;
  }
}

// spread: how far the number of tokens may be from the CPU's, which reads on where one widening has to do here.
void check_tokens(const std::string& trace, bool in_fp8, double spread, float lse_difference) {
  CAPTURE(trace);
  CAPTURE(in_fp8);
  const HostCase host(recorded_layer(trace, in_fp8));
  const CaseResult expected = host.reference();
  enum class Goal { ratio, certified_ratio, error };
  for (const Goal goal : {Goal::ratio, Goal::certified_ratio, Goal::error}) {
    const bool by_error = goal == Goal::error, certified = goal == Goal::certified_ratio;
    DecodeOptions decode;
    decode.unit = ReadUnit::tokens;
    if (by_error) decode.target_error = 0.02f;
    decode.certificate.enabled = certified;
    if (!by_error) decode.tail = Tail::drop;  // without a rest lse is the weight that was read
    const CaseResult result = DeviceCase(host).decode(decode), cpu = host.cpu_decode(decode);
    for (size_t i = 0; i < result.reports.size(); ++i) {
      const HeadReport &own = result.reports[i], &other = cpu.reports[i];
      CAPTURE(int(goal));
      CAPTURE(i);
      INFO("tokens ", own.tokens_read, ", on the CPU ", other.tokens_read);
      CHECK(own.path == DecodePath::sparse_tokens);
      CHECK(own.tokens_coded == other.tokens_coded);
      CHECK(std::abs(own.tokens_read - other.tokens_read) <= 4 + spread * other.tokens_read);
      CHECK(std::fabs(result.lse[i] - cpu.lse[i]) <= lse_difference);
      if (!by_error) CHECK(std::exp(double(result.lse[i]) - double(expected.lse[i])) >= 0.9);
      if (certified) CHECK(own.attained_ratio_lower_bound >= 0.85f);
      if (by_error) CHECK(own.error_estimate <= 0.02f);
    }
  }
}

TEST_CASE("cuda decode: tokens of the repository's layer, and of the same in fp8_e4m3") {
  check_tokens(kExampleTrace, false, 0.08, 0.02f);
  check_tokens(kExampleTrace, true, 0.08, 0.02f);
}

TEST_CASE("cuda decode: recorded layers of SmolLM2 and Gemma, where they are") {
  BoundCount bounds;
  for (const std::string& trace : shared_traces()) {
    check_certified_clusters(trace, bounds);
    check_tokens(trace, false, 0.5, 0.05f);
  }
  CAPTURE(bounds.heads);
  CHECK(bounds.missed <= 1 + bounds.heads / 20);  // the confidence is 0.95
}

}  // namespace
}  // namespace quorum::test
