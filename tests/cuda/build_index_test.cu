#include "quorum/cuda/build_index.cuh"

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/cuda/support/build_case.cuh"
#include "tests/support/recorded_traces.hpp"

namespace quorum::test {
namespace {

// Two whole segments and a small third; no count is a multiple of a tile.
CaseOptions small_case(int head_dim, ElementType type = ElementType::bf16) {
  CaseOptions options;
  options.shape = {4, 2, head_dim, 0.0f};
  options.type = type;
  options.num_tokens = {397};
  options.index.segment_tokens = 180;
  options.index.cluster_size = 9;
  options.index.window_tokens = 11;
  return options;
}

// What rounding to int8 in the search, to int8 in the index and to f16 in the metric leaves.
void check_rounding(const IndexCheck& found) {
  CHECK(found.partition);
  CHECK(found.nearest_share >= 0.98);
  CHECK(found.spread_error <= 0.02);
  CHECK(found.score_error <= 0.1);
  CHECK(found.variance_error <= 0.02);
  CHECK(found.value_error <= 0.51);
  CHECK(found.code_bits_wrong <= 0.003);
  CHECK(found.code_scale_error <= 0.03);
}

TEST_CASE("cuda build: clusters, scores, variances, values and codes are those of the tokens, for every shape and type") {
  struct Kind {
    int head_dim;
    ElementType type;
  };
  for (const Kind kind : {Kind{64, ElementType::bf16},
                          {64, ElementType::f16},
                          {96, ElementType::f16},
                          {128, ElementType::bf16},
                          {256, ElementType::f16},
                          {64, ElementType::fp8_e4m3}}) {
    CAPTURE(kind.head_dim);
    CAPTURE(int(kind.type));
    const HostCase host(small_case(kind.head_dim, kind.type));
    const DeviceCase device(host);
    const cuda::HostIndex index = built_index(host, device);
    CHECK(index.num_cluster_slots() == host.max_cluster_slots());
    for (int h = 0; h < 2; ++h) {
      CAPTURE(h);
      check_rounding(check_index(host, 0, h, index.view()));
    }
  }
}

TEST_CASE("cuda build: a metric that is given is the one that the host would have found") {
  for (const int head_dim : {64, 96}) {
    CAPTURE(head_dim);
    CaseOptions options = small_case(head_dim);
    const HostCase host(options);
    const DeviceCase device(host);
    const Factors factors = random_factors(options.shape, options.index, 7);
    const cuda::HostIndex index = built_index(host, device, 0, factors);
    for (int h = 0; h < 2; ++h) check_rounding(check_index(host, 0, h, index.view(), factors.forward));
  }
}

TEST_CASE("cuda build: on recorded keys, clusters are as tight as the host's") {
  CaseOptions options;
  options.trace = kExampleTrace;
  options.num_tokens = {1200};
  options.index.segment_tokens = 1000;
  options.index.cluster_size = 16;
  const HostCase host(options);
  const DeviceCase device(host);
  const Factors factors = trace_factors(kExampleTrace, options.index);
  const cuda::HostIndex index = built_index(host, device, 0, factors);
  for (int h = 0; h < 3; ++h) {
    CAPTURE(h);
    const IndexCheck on_host = check_index(host, 0, h, host.index(0), factors.forward);
    const IndexCheck found = check_index(host, 0, h, index.view(), factors.forward);
    CHECK(found.partition);
    CHECK(found.num_clusters == on_host.num_clusters);
    CHECK(found.inertia <= 1.03 * on_host.inertia);
    CHECK(found.score_error <= 1.5 * on_host.score_error + 0.02);
    CHECK(found.variance_error <= 0.05);
  }
}

TEST_CASE("cuda build: lengths around sinks, window, tiles and segments; tokens that are not indexed are listed as on the host") {
  for (const int num_tokens : {0, 1, 4, 6, 7, 8, 20, 38, 39, 40, 71})
    for (const bool codes : {true, false}) {
      CAPTURE(num_tokens);
      CAPTURE(codes);
      CaseOptions options = small_case(64);
      options.num_tokens = {num_tokens};
      options.index.window_tokens = 3;
      options.index.segment_tokens = 32;
      options.index.cluster_size = 5;
      options.index.iterations = 2;
      options.index.residual_codes = codes;
      const HostCase host(options);
      const DeviceCase device(host);
      const cuda::HostIndex index = built_index(host, device);
      const ClusterIndexView &found = index.view(), &wanted = host.index(0);
      CHECK(found.num_indexed == std::max(0, num_tokens - 7));
      CHECK(found.num_indexed == wanted.num_indexed);
      CHECK(found.indexed_end == wanted.indexed_end);
      CHECK(found.residual_codes == (codes && num_tokens > 7));
      CHECK(index.num_cluster_slots() == wanted.heads[0].num_cluster_slots());
      REQUIRE(found.always.num_listed == wanted.always.num_listed);
      CHECK(found.always.num_known == wanted.always.num_known);
      CHECK(std::equal(found.always.listed, found.always.listed + found.always.num_listed, wanted.always.listed));
      for (int h = 0; h < 2; ++h) {
        const IndexCheck check = check_index(host, 0, h, found);
        CHECK(check.partition);
        CHECK(check.spread_error <= 0.02);
        CHECK(check.value_error <= 0.51);
      }
    }
}

// Overwrites keys with one of them, before they go to the device.
void make_equal(HostCase& host) {
  for (int token = 0; token < host.num_tokens()[0]; ++token)
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 64; ++c) host.poison(false, 0, token, h, c, 0.25f * float(c % 7) - 0.5f);
}

TEST_CASE("cuda build: keys that are all equal, and more clusters than tokens") {
  CaseOptions options = small_case(64);
  options.num_tokens = {120};
  HostCase host(options);
  make_equal(host);
  const DeviceCase device(host);
  const cuda::HostIndex index = built_index(host, device);
  for (int h = 0; h < 2; ++h) {
    const IndexCheck check = check_index(host, 0, h, index.view());
    CHECK(check.partition);
    CHECK(check.num_clusters == 1);
    CHECK(check.inertia <= 1e-6);
    CHECK(check.value_error <= 0.51);
    const ClusterHeadView& head = index.view().heads[h];
    for (int c = 0; c < 64; ++c) CHECK(head.metric.eigenvalues[c] == doctest::Approx(1.0 / 64).epsilon(1e-3));
  }
  options.num_tokens = {36};  // 21 tokens, 32 clusters
  options.index.cluster_size = 1;
  const HostCase few(options);
  const DeviceCase few_device(few);
  const cuda::HostIndex single = built_index(few, few_device);
  CHECK(single.num_cluster_slots() == 32);
  const IndexCheck check = check_index(few, 0, 0, single.view());
  CHECK(check.partition);
  CHECK(check.num_clusters == 21);
}

TEST_CASE("cuda build: keys and values that are not finite flag their head, and only theirs; those that are always read do not") {
  struct Place {
    bool value;
    int token, kv_head;
    float with;
    bool flags;
  };
  for (const Place& place : {Place{false, 50, 1, kNan, true}, Place{true, 103, 0, kInfinity, true}, Place{false, 4, 0, -kInfinity, true},
                             Place{true, 108, 1, kNan, true}, Place{false, 3, 0, kNan, false}, Place{true, 109, 1, kNan, false}}) {
    CAPTURE(place.value);
    CAPTURE(place.token);
    CaseOptions options = small_case(64);
    options.num_tokens = {120};
    HostCase host(options);
    host.poison(place.value, 0, place.token, place.kv_head, 13, place.with);
    const DeviceCase device(host);
    const cuda::HostIndex index = built_index(host, device);
    for (int h = 0; h < 2; ++h) {
      CHECK(index.view().heads[h].non_finite == (place.flags && h == place.kv_head));
      const IndexCheck check = check_index(host, 0, h, index.view());
      CHECK(check.partition);
      CHECK(check.spread_error <= 0.02);
      CHECK(check.value_error <= 0.51);
    }
  }
}

}  // namespace
}  // namespace quorum::test
