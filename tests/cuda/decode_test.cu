#include "quorum/cuda/decode.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/step_case.cuh"
#include "tests/support/near.hpp"

namespace quorum::test {
namespace {

// bf16 weights are off by 2^-9 each, in either direction.
double tolerance(ElementType type) { return type == ElementType::bf16 ? 6e-3 : 1e-3; }

CaseOptions small_case(int head_dim, int group, ElementType type) {
  CaseOptions options;
  options.shape = {2 * group, 2, head_dim, 0.0f};
  options.type = type;
  options.num_tokens = {900, 333};
  options.index.recluster_every = 64;
  return options;
}

TEST_CASE("cuda decode: at target 1 the output is that of dense attention, for all shapes and types") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const int group : {1, 3, 4, 8, 16})
      for (const ElementType type : {ElementType::bf16, ElementType::f16, ElementType::fp8_e4m3}) {
        if (type == ElementType::fp8_e4m3 && group != 3 && group != 16) continue;
        CAPTURE(head_dim);
        CAPTURE(group);
        CAPTURE(element_name(type));
        const HostCase host(small_case(head_dim, group, type));
        const DeviceCase device(host);
        DecodeOptions options;
        options.target_ratio = 1.0f;
        options.dense_below = 0;
        const CaseResult expected = host.reference(), result = device.decode(options), without = device.decode(options, false);
        CHECK(distance(result.output, expected.output) <= tolerance(type));
        CHECK(distance(result.lse, expected.lse) <= tolerance(type));
        CHECK(distance(without.output, expected.output) <= tolerance(type));
        CHECK(result.reports[0].path == DecodePath::dense_by_target);
        CHECK(without.reports[0].path == DecodePath::dense_by_length);
      }
}

TEST_CASE("cuda decode: a budget chooses what the CPU chooses") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const int group : {1, 4, 16}) {
      CAPTURE(head_dim);
      CAPTURE(group);
      const HostCase host(small_case(head_dim, group, ElementType::f16));
      const DeviceCase device(host);
      DecodeOptions options;
      options.dense_below = 0;
      options.fixed_budget = 150;
      options.unit = ReadUnit::clusters;
      options.tail = Tail::drop;
      const CaseResult result = device.decode(options), expected = host.cpu_decode(options);
      CHECK(distance(result.output, expected.output) <= 2e-2);
      int equal = 0;
      for (size_t i = 0; i < result.reports.size(); ++i) {
        CHECK(result.reports[i].path == DecodePath::sparse);
        CHECK(std::abs(result.reports[i].tokens_read - expected.reports[i].tokens_read) <= 64);
        equal += result.reports[i].tokens_read == expected.reports[i].tokens_read ? 1 : 0;
      }
      CHECK(equal * 4 >= int(result.reports.size()) * 3);
    }
}

TEST_CASE("cuda decode: with the tail the output is near the dense one, and the report tells what was read") {
  for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated}) {
    CAPTURE(tail_name(tail));
    CaseOptions shape = small_case(128, 4, ElementType::bf16);
    shape.num_tokens = {3000, 1500, 2500};
    const HostCase host(shape);
    const DeviceCase device(host);
    DecodeOptions options;
    options.dense_below = 0;
    options.target_ratio = 0.8f;
    options.unit = ReadUnit::clusters;
    options.tail = tail;
    const CaseResult result = device.decode(options), expected = host.reference(), cpu = host.cpu_decode(options);
    const double error = relative_error(result.output, expected.output), cpu_error = relative_error(cpu.output, expected.output);
    INFO("error ", error, ", on the CPU ", cpu_error);
    CHECK(error <= 1.3 * cpu_error + 0.02);
    for (size_t i = 0; i < result.reports.size(); ++i) {
      const HeadReport &own = result.reports[i], &other = cpu.reports[i];
      INFO("tokens ", own.tokens_read, " on the CPU ", other.tokens_read, ", ratio ", own.attained_ratio_estimate, " ",
           other.attained_ratio_estimate, ", bytes ", own.bytes_read, " ", other.bytes_read, " clusters ", own.clusters_used, " ",
           other.clusters_used);
      CHECK(own.tokens_read < host.num_tokens()[i / 8]);
      CHECK(std::abs(own.tokens_read - other.tokens_read) <= 0.3 * other.tokens_read);
      CHECK(own.bytes_dense == other.bytes_dense);
      CHECK(std::fabs(own.attained_ratio_estimate - other.attained_ratio_estimate) <= 0.15);
    }
  }
}

TEST_CASE("cuda decode: the certificate widens, and its policy can end densely") {
  CaseOptions shape = small_case(64, 4, ElementType::bf16);
  shape.num_tokens = {4000, 2000};
  const HostCase host(shape);
  const DeviceCase device(host);
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = 0.85f;
  options.unit = ReadUnit::clusters;
  options.certificate.enabled = true;
  options.certificate.policy = MissPolicy::accept;
  const CaseResult once = device.decode(options);
  options.certificate.policy = MissPolicy::widen;
  const CaseResult wider = device.decode(options), expected = host.reference();
  options.certificate.policy = MissPolicy::dense;
  const CaseResult certain = device.decode(options);
  int widened = 0;
  for (size_t i = 0; i < once.reports.size(); ++i) {
    CHECK(wider.reports[i].tokens_read >= once.reports[i].tokens_read);
    CHECK(once.reports[i].rounds == 0);
    CHECK(once.reports[i].tokens_sampled == 128);
    widened += wider.reports[i].rounds;
    const HeadReport& last = certain.reports[i];
    CHECK((last.path == DecodePath::dense_by_policy || last.attained_ratio_lower_bound >= 0.85f));
  }
  CHECK(widened > 0);
  CHECK(distance(wider.output, expected.output) <= 0.2);
  CHECK(distance(certain.output, expected.output) <= 0.2);
}

TEST_CASE("cuda decode: pages, layouts, query types and empty sequences") {
  for (const CacheLayout layout : {CacheLayout::hnd, CacheLayout::nhd, CacheLayout::paged_table, CacheLayout::paged_indptr})
    for (const int page_size : {1, 16, 256}) {
      CaseOptions shape = small_case(64, 4, ElementType::bf16);
      shape.num_tokens = {900, 0, 1, 17, 300};
      shape.layout = layout;
      shape.page_size = page_size;
      shape.query_type = page_size == 1 ? ElementType::f32 : page_size == 16 ? ElementType::bf16 : ElementType::f16;
      const HostCase host(shape);
      const DeviceCase device(host);
      DecodeOptions options;
      options.dense_below = 0;
      options.target_ratio = 1.0f;
      const CaseResult dense = device.decode(options), expected = host.reference();
      CHECK(distance(dense.output, expected.output) <= tolerance(shape.type));
      CHECK(dense.lse[size_t(shape.shape.num_qo_heads)] == -kInfinity);
      CHECK(dense.output[size_t(shape.shape.num_qo_heads * shape.shape.head_dim)] == 0.0f);
      options.target_ratio = 0.95f;
      options.unit = ReadUnit::clusters;
      const CaseResult sparse = device.decode(options);
      CHECK(distance(sparse.output, expected.output) <= 0.2);
    }
}

}  // namespace
}  // namespace quorum::test
