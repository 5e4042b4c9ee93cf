// A whole step that chooses single tokens by their residual codes, against the CPU's and attention in f64.
#include <doctest/doctest.h>

#include <cmath>
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
DecodeOptions with_error(float error) {
  DecodeOptions options = token_options();
  options.target_error = error;
  return options;
}

// The step as the CPU takes it: from the same candidates, with as many tokens up to those in the buckets at the cut, and as good an output.
void check_against_cpu(const HostCase& host, const DecodeOptions& options, double more_tokens = 0.1) {
  const CaseResult result = DeviceCase(host).decode(options), cpu = host.cpu_decode(options), dense = host.reference();
  for (size_t i = 0; i < result.reports.size(); ++i) {
    const HeadReport &own = result.reports[i], &other = cpu.reports[i];
    CAPTURE(i);
    CHECK(own.path == other.path);
    CHECK(own.shared_rows == other.shared_rows);
    CHECK(own.bytes_dense == other.bytes_dense);
    if (is_dense(own.path)) continue;
    INFO("tokens ", own.tokens_read, ", on the CPU ", other.tokens_read);
    CHECK(std::abs(own.tokens_read - other.tokens_read) <= 4 + more_tokens * other.tokens_read);
    INFO("coded ", own.tokens_coded, ", on the CPU ", other.tokens_coded);
    CHECK(std::abs(own.tokens_coded - other.tokens_coded) <= 0.05 * other.tokens_coded);
    INFO("means ", own.clusters_used, ", on the CPU ", other.clusters_used);
    CHECK(std::abs(own.clusters_used - other.clusters_used) <= 2);
    INFO("ratio ", own.attained_ratio_estimate, ", on the CPU ", other.attained_ratio_estimate);
    CHECK(std::fabs(own.attained_ratio_estimate - other.attained_ratio_estimate) <= 0.12f);
    if (own.tokens_read == other.tokens_read)
      CHECK(std::fabs(own.error_estimate - other.error_estimate) <= 0.15f * other.error_estimate + 0.001f);
    if (options.target_error > 0.0f && own.tokens_read < own.tokens_coded) CHECK(own.error_estimate <= options.target_error);
    CHECK(std::fabs(result.lse[i] - cpu.lse[i]) <= 0.06f);
    const int64_t of_tokens = int64_t(host.options().shape.head_dim) * 4 * (own.tokens_read - other.tokens_read);
    CHECK(std::abs(own.bytes_read - of_tokens - other.bytes_read) <= 0.05 * double(other.bytes_read));
  }
  INFO("error ", distance(result.output, dense.output), ", on the CPU ", distance(cpu.output, dense.output));
  CHECK(distance(result.output, dense.output) <= distance(cpu.output, dense.output) + 0.05);
}

TEST_CASE("cuda decode by tokens: budgets, targets and errors as on the CPU, for every head_dim and type") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const auto& [group, type] : {std::pair{1, ElementType::f16}, std::pair{4, ElementType::bf16}, std::pair{16, ElementType::f16},
                                      std::pair{3, ElementType::fp8_e4m3}}) {
      CAPTURE(head_dim);
      CAPTURE(group);
      CaseOptions options = token_case(head_dim, group);
      options.type = type;
      const HostCase host(options);
      check_against_cpu(host, token_options(0.9f, 60));
      check_against_cpu(host, token_options(0.8f), 0.25);
      check_against_cpu(host, with_error(0.1f), 0.1);
    }
}

TEST_CASE("cuda decode by tokens: with everything listed the output is attention over everything") {
  CaseOptions options = token_case(64, 3);
  options.spread = 0.1f;  // no token is so light that it is never looked at
  const HostCase host(options);
  DecodeOptions all = token_options(0.5f);
  all.min_tokens = kMaxCount;
  all.candidate_coverage = 1.0f;
  const CaseResult result = DeviceCase(host).decode(all), expected = host.reference();
  CHECK(distance(result.output, expected.output) <= 0.01);
  CHECK(distance(result.lse, expected.lse) <= 1e-3);
  for (const HeadReport& report : result.reports) {
    CHECK(report.path == DecodePath::sparse_tokens);
    CHECK(report.tokens_read * int64_t(64) * 4 == report.bytes_dense);
    CHECK(report.attained_ratio_estimate == 1.0f);
    CHECK(report.clusters_used == 0);
  }
}

TEST_CASE("cuda decode by tokens: the output is the reference's over the listed tokens, where the rest is dropped") {
  DecodeOptions dropped = token_options(0.9f, 50);
  dropped.tail = Tail::drop;
  const HostCase host(token_case(64, 2, {400}));
  const CaseResult result = DeviceCase(host).decode(dropped), all = host.reference();
  // What was read is on the device only; the report says how much, and lse what it weighs.
  for (size_t i = 0; i < result.lse.size(); ++i) {
    const double attained = std::exp(double(result.lse[i]) - double(all.lse[i]));
    CHECK(attained <= 1.001);
    CHECK(result.reports[i].clusters_used == 0);
    CHECK(result.reports[i].confidence == 0.0f);
    CHECK(std::fabs(attained - double(result.reports[i].attained_ratio_estimate)) <= 0.15);
  }
}

TEST_CASE("cuda decode by tokens: several rows, soft-capping, sinks, erased tokens, no variance model, no tail") {
  for (const int variant : {0, 1, 2, 3, 4, 5, 6}) {
    CAPTURE(variant);
    CaseOptions options = token_case(64, 2, {500});
    DecodeOptions decode = token_options(0.8f, 60);
    if (variant == 0) options.num_rows = 5;
    if (variant == 1) options.num_rows = 8;
    if (variant == 2) options.shape.logit_softcap = 2.0f;
    if (variant == 3) options.sink_logits = {1.0f, -2.0f, -kInfinity, 0.0f};
    if (variant == 4) options.erased = {40, 190};
    if (variant == 5) decode.variance = VarianceModel::none;
    if (variant == 6) decode.tail = Tail::drop;
    const HostCase host(options);
    check_against_cpu(host, decode, 0.15);
    decode.fixed_budget = 0;
    check_against_cpu(host, decode, 0.3);
    decode.target_error = 0.1f;
    check_against_cpu(host, decode, 0.15);
  }
}

TEST_CASE("cuda decode by tokens: caches in pages, clusters of one token, equal keys, values of zero") {
  for (const int variant : {0, 1, 2}) {
    CAPTURE(variant);
    CaseOptions options = token_case(64, 3, {300});
    if (variant == 0) options.layout = CacheLayout::paged_indptr;
    if (variant == 1) options.index.cluster_size = 1;
    if (variant == 2) options.spread = 0.0f;
    const HostCase host(options);
    check_against_cpu(host, token_options(0.9f, 60), variant == 2 ? 4.0 : 0.1);
    if (variant < 2) check_against_cpu(host, token_options(0.8f), 0.3);
  }
}

TEST_CASE("cuda decode by tokens: rows whose index has no codes read whole clusters; with a target error they attend to everything") {
  CaseOptions options = token_case(64, 2);
  options.index.residual_codes = false;
  const HostCase host(options);
  const DeviceCase device(host);
  DecodeOptions clusters = token_options(0.8f);
  clusters.unit = ReadUnit::clusters;
  const CaseResult by_clusters = device.decode(clusters);
  for (const ReadUnit unit : {ReadUnit::automatic, ReadUnit::tokens}) {
    DecodeOptions decode = token_options(0.8f);
    decode.unit = unit;
    const CaseResult result = device.decode(decode);
    CHECK(result.output == by_clusters.output);
    CHECK(result.reports[0].path == DecodePath::sparse);
  }
  DecodeOptions by_error = with_error(0.1f);
  by_error.unit = ReadUnit::automatic;
  const CaseResult dense = device.decode(by_error);
  CHECK(dense.reports[0].path == DecodePath::dense_by_target);
  CHECK(distance(dense.output, host.reference().output) <= 0.01);
}

TEST_CASE("cuda decode by tokens: rows with codes next to rows without, to dense ones and to empty ones") {
  const HostCase host(token_case(64, 3, {0, 1, 5, 24, 330, 500}));
  DecodeOptions decode = token_options(0.8f);
  decode.unit = ReadUnit::automatic;
  const CaseResult result = DeviceCase(host).decode(decode), expected = host.reference();
  for (size_t i = 0; i < result.reports.size(); ++i) {
    const HeadReport& report = result.reports[i];
    CHECK(report.bytes_dense == int64_t(host.num_tokens()[i / 6]) * 64 * 4);
    if (is_dense(report.path))
      CHECK((result.lse[i] == expected.lse[i] || std::fabs(result.lse[i] - expected.lse[i]) <= 0.01f));
    else
      CHECK(std::fabs(result.lse[i] - expected.lse[i]) <= 0.3f);
  }
  CHECK(result.reports[4 * 6].path == DecodePath::sparse_tokens);
  CHECK(result.reports[0].tokens_read == 0);
}

TEST_CASE("cuda decode by tokens: NaN in a query, a key or a value poisons what it must and nothing else") {
  for (const int where : {0, 1}) {
    HostCase host(token_case(64, 2, {300}));
    const CaseResult clean = DeviceCase(host).decode(token_options(0.8f));
    host.poison(where == 1, 0, 299, 1, 7, kNan);  // of the window
    const CaseResult result = DeviceCase(host).decode(token_options(0.8f));
    CHECK(std::fabs(result.lse[0] - clean.lse[0]) <= 1e-3f);  // the work is cut elsewhere
    CHECK(result.reports[0].path == DecodePath::sparse_tokens);
    CHECK(std::isnan(result.output[2 * 64 + 7]));
    if (where == 0) CHECK(result.reports[2].path == DecodePath::dense_by_numerics);
    if (where == 1) {  // the choice does not look at values, unless it asks for an output's length
      CHECK(result.reports[2].tokens_read == clean.reports[2].tokens_read);
      CHECK(!std::isnan(result.output[2 * 64 + 6]));
      CHECK(DeviceCase(host).decode(with_error(0.1f)).reports[2].path == DecodePath::dense_by_numerics);
    }
  }
}

TEST_CASE("cuda decode by tokens: the certificate draws, widens, and attends to everything where the policy says so") {
  CaseOptions options = token_case(64, 2, {500});
  options.spread = 0.7f;
  const HostCase host(options);
  const DeviceCase device(host);
  const CaseResult expected = host.reference();
  DecodeOptions decode = token_options(0.8f);
  decode.certificate.enabled = true;
  decode.certificate.num_samples = decode.num_samples = 32;
  decode.certificate.policy = MissPolicy::accept;
  const CaseResult accepted = device.decode(decode);
  decode.certificate.policy = MissPolicy::widen;
  const CaseResult widened = device.decode(decode);
  decode.certificate.policy = MissPolicy::dense;
  decode.max_tokens = 10;  // too few
  const CaseResult dense = device.decode(decode);
  int lower = 0, attended = 0;
  for (size_t i = 0; i < widened.reports.size(); ++i) {
    const HeadReport &one = accepted.reports[i], &two = widened.reports[i], &three = dense.reports[i];
    CHECK(one.confidence == 0.95f);
    CHECK(one.tokens_sampled == 32 * (1 + one.rounds));
    CHECK(two.tokens_read >= one.tokens_read);
    CHECK(two.attained_ratio_lower_bound <= two.attained_ratio_estimate + 1e-6f);
    lower += two.attained_ratio_lower_bound < 0.8f && two.rounds == 0 ? 1 : 0;
    attended += three.path == DecodePath::dense_by_policy ? 1 : 0;
    if (is_dense(three.path)) CHECK(std::fabs(dense.lse[i] - expected.lse[i]) <= 0.01f);
    if (!is_dense(three.path)) CHECK(three.attained_ratio_lower_bound >= 0.8f);
  }
  CHECK(lower == 0);  // what missed went on
  CHECK(attended > 0);
}

}  // namespace
}  // namespace quorum::test
