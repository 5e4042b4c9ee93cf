// Options: defaults are valid, edges are where the messages say, and every message names member, rule and value.
#include "quorum/core/options.hpp"

#include <doctest/doctest.h>

#include <utility>

#include "tests/support/error_message.hpp"
#include "tests/support/near.hpp"

using namespace quorum;

namespace {

// Message of validating default options of a kind after a change.
template <class Options, class Change>
std::string error_after(Change&& change) {
  Options options;
  change(options);
  return test::argument_error([&] { validate(options, "plan"); });
}

}  // namespace

#define INDEX_ERROR(change) error_after<IndexOptions>([](IndexOptions& o) { change; })
#define DECODE_ERROR(change) error_after<DecodeOptions>([=](DecodeOptions& o) { change; })
#define LIMITS_ERROR(change)                      \
  error_after<DecodeLimits>([](DecodeLimits& o) { \
    o.max_tokens = 1000;                          \
    change;                                       \
  })

TEST_CASE("defaults are valid") {
  CHECK(error_after<IndexOptions>([](auto&) {}) == "no error");
  CHECK(error_after<DecodeOptions>([](auto&) {}) == "no error");
  CHECK(LIMITS_ERROR() == "no error");
}

TEST_CASE("index options") {
  CHECK(INDEX_ERROR(o.cluster_size = 0) == "plan: options.cluster_size must be 1 to 1024, got 0");
  CHECK(INDEX_ERROR(o.cluster_size = 1025) == "plan: options.cluster_size must be 1 to 1024, got 1025");
  CHECK(INDEX_ERROR(o.segment_tokens = 31) == "plan: options.segment_tokens must be cluster_size to 65536, got 31");
  CHECK(INDEX_ERROR(o.segment_tokens = 65537) == "plan: options.segment_tokens must be cluster_size to 65536, got 65537");
  CHECK(INDEX_ERROR(o.iterations = 0) == "plan: options.iterations must be 1 to 1000, got 0");
  CHECK(INDEX_ERROR(o.iterations = 1001) == "plan: options.iterations must be 1 to 1000, got 1001");
  CHECK(INDEX_ERROR(o.num_sink_tokens = -1) == "plan: options.num_sink_tokens must be 0 to 2^30, got -1");
  CHECK(INDEX_ERROR(o.num_sink_tokens = (1 << 30) + 1) == "plan: options.num_sink_tokens must be 0 to 2^30, got 1073741825");
  CHECK(INDEX_ERROR(o.window_tokens = -5) == "plan: options.window_tokens must be 0 to 2^30, got -5");
  CHECK(INDEX_ERROR(o.window_tokens = 2147483647) == "plan: options.window_tokens must be 0 to 2^30, got 2147483647");
  CHECK(INDEX_ERROR(o.recluster_every = 0) == "plan: options.recluster_every must be 1 to 2^30, got 0");
  CHECK(INDEX_ERROR(o.recluster_every = 2147483647) == "plan: options.recluster_every must be 1 to 2^30, got 2147483647");
  CHECK(INDEX_ERROR(o.metric_shrinkage = 5e-5f) == "plan: options.metric_shrinkage must be in [1e-4, 1], got 5e-05");
  CHECK(INDEX_ERROR(o.metric_shrinkage = 1.5f) == "plan: options.metric_shrinkage must be in [1e-4, 1], got 1.5");
  CHECK(INDEX_ERROR(o.metric_shrinkage = kNan) == "plan: options.metric_shrinkage must be in [1e-4, 1], got nan");
}

TEST_CASE("index options on their edges are valid") {
  CHECK(INDEX_ERROR(o.cluster_size = 1) == "no error");
  CHECK(INDEX_ERROR(o.cluster_size = 1024) == "no error");
  CHECK(INDEX_ERROR(o.segment_tokens = 32) == "no error");
  CHECK(INDEX_ERROR(o.segment_tokens = 65536) == "no error");
  CHECK(INDEX_ERROR(o.num_sink_tokens = 0) == "no error");
  CHECK(INDEX_ERROR(o.recluster_every = 1) == "no error");
  CHECK(INDEX_ERROR(o.metric_shrinkage = 1.0f) == "no error");
}

TEST_CASE("decode options") {
  CHECK(DECODE_ERROR(o.target_ratio = 0.0f) == "plan: options.target_ratio must be in (0, 1], got 0");
  CHECK(DECODE_ERROR(o.target_ratio = 1.01f) == "plan: options.target_ratio must be in (0, 1], got 1.01");
  CHECK(DECODE_ERROR(o.target_ratio = kNan) == "plan: options.target_ratio must be in (0, 1], got nan");
  CHECK(DECODE_ERROR(o.min_tokens = -1) == "plan: options.min_tokens must be at least 0, got -1");
  CHECK(DECODE_ERROR(o.min_tokens = 9; o.max_tokens = 8) == "plan: options.max_tokens must be at least options.min_tokens, got 8");
  CHECK(DECODE_ERROR(o.fixed_budget = -3) == "plan: options.fixed_budget must be at least 0, got -3");
  CHECK(DECODE_ERROR(o.num_samples = 1) == "plan: options.num_samples must be 2 to 256, got 1");
  CHECK(DECODE_ERROR(o.certificate.num_samples = 1) == "plan: options.certificate.num_samples must be 2 to 256, got 1");
  CHECK(DECODE_ERROR(o.certificate.num_samples = 257) == "plan: options.certificate.num_samples must be 2 to 256, got 257");
  CHECK(DECODE_ERROR(o.num_samples = 257) == "plan: options.num_samples must be 2 to 256, got 257");
  CHECK(DECODE_ERROR(o.dense_below = -1) == "plan: options.dense_below must be at least 0, got -1");
  for (const float coverage : {0.49f, 1.01f, -0.5f})
    CHECK(DECODE_ERROR(o.candidate_coverage = coverage).find("plan: options.candidate_coverage must be 0 or in [0.5, 1], got ") == 0);
  CHECK(DECODE_ERROR(o.candidate_coverage = kNan) == "plan: options.candidate_coverage must be 0 or in [0.5, 1], got nan");
  CHECK(DECODE_ERROR(o.target_error = -0.1f) == "plan: options.target_error must be in [0, 1), got -0.1");
  CHECK(DECODE_ERROR(o.target_error = 1.0f) == "plan: options.target_error must be in [0, 1), got 1");
  CHECK(DECODE_ERROR(o.target_error = kNan) == "plan: options.target_error must be in [0, 1), got nan");
  CHECK(DECODE_ERROR(o.target_error = 0.1f; o.unit = ReadUnit::clusters) ==
        "plan: options.target_error must be 0 with ReadUnit::clusters, got 0.1");
  CHECK(DECODE_ERROR(o.target_error = 0.1f; o.certificate.enabled = true) ==
        "plan: options.target_error must be 0 with a certificate, got 0.1");
}

TEST_CASE("certificate options") {
  CHECK(DECODE_ERROR(o.certificate.confidence = 0.5f) == "plan: options.certificate.confidence must be in (0.5, 1), got 0.5");
  CHECK(DECODE_ERROR(o.certificate.confidence = 1.0f) == "plan: options.certificate.confidence must be in (0.5, 1), got 1");
  CHECK(DECODE_ERROR(o.certificate.confidence = kNan) == "plan: options.certificate.confidence must be in (0.5, 1), got nan");
  CHECK(DECODE_ERROR(o.certificate.max_rounds = -1) == "plan: options.certificate.max_rounds must be 0 to 8, got -1");
  CHECK(DECODE_ERROR(o.certificate.max_rounds = 9) == "plan: options.certificate.max_rounds must be 0 to 8, got 9");
  CHECK(DECODE_ERROR(o.certificate.num_samples = 1) == "plan: options.certificate.num_samples must be 2 to 256, got 1");
  CHECK(DECODE_ERROR(o.certificate.num_samples = 257) == "plan: options.certificate.num_samples must be 2 to 256, got 257");
}

TEST_CASE("decode options on their edges are valid") {
  CHECK(DECODE_ERROR(o.target_ratio = 1.0f) == "no error");
  CHECK(DECODE_ERROR(o.min_tokens = 8; o.max_tokens = 8) == "no error");
  CHECK(DECODE_ERROR(o.num_samples = 2) == "no error");
  CHECK(DECODE_ERROR(o.num_samples = 256) == "no error");
  CHECK(DECODE_ERROR(o.dense_below = 0) == "no error");
  CHECK(DECODE_ERROR(o.candidate_coverage = 0.5f) == "no error");
  CHECK(DECODE_ERROR(o.candidate_coverage = 1.0f) == "no error");
  CHECK(DECODE_ERROR(o.target_error = 0.999f; o.unit = ReadUnit::tokens) == "no error");
  CHECK(DECODE_ERROR(o.unit = ReadUnit::clusters; o.certificate.enabled = true) == "no error");
  CHECK(DECODE_ERROR(o.certificate.max_rounds = 0) == "no error");
  CHECK(DECODE_ERROR(o.certificate.max_rounds = 8) == "no error");
}

TEST_CASE("draws of one round: the certificate's number counts if it is larger") {
  DecodeOptions options;
  options.num_samples = 32;
  options.certificate.num_samples = 100;
  CHECK(samples_per_round(options) == 32);
  options.certificate.enabled = true;
  CHECK(samples_per_round(options) == 100);
  options.num_samples = 200;
  CHECK(samples_per_round(options) == 200);
}

TEST_CASE("candidate coverage: as asked, else by budget, by target error within [0.9, 0.99], by target ratio") {
  DecodeOptions options;
  const auto coverage_is = [&](double want) { return test::near(double(candidate_coverage(options)), want, 1e-6); };
  CHECK(coverage_is(0.99));
  options.target_ratio = 0.5f;
  CHECK(coverage_is(0.95));
  options.target_ratio = 1.0f;
  CHECK(coverage_is(1.0));
  for (const auto& [error, want] : {std::pair{0.05f, 0.975}, {0.01f, 0.99}, {0.5f, 0.9}}) {
    options.target_error = error;
    CHECK(coverage_is(want));
  }
  options.fixed_budget = 100;
  CHECK(coverage_is(0.95));
  options.candidate_coverage = 0.6f;
  CHECK(coverage_is(0.6));
}

TEST_CASE("decode limits") {
  CHECK(LIMITS_ERROR(o.max_sequences = 0) == "plan: limits.max_sequences must be at least 1, got 0");
  CHECK(LIMITS_ERROR(o.max_tokens = 0) == "plan: limits.max_tokens must be 1 to 2^30, got 0");
  CHECK(LIMITS_ERROR(o.max_tokens = (1 << 30) + 1) == "plan: limits.max_tokens must be 1 to 2^30, got 1073741825");
  CHECK(LIMITS_ERROR(o.max_clusters = -1) == "plan: limits.max_clusters must be 0 to 2^30, got -1");
  CHECK(LIMITS_ERROR(o.max_clusters = 2147483647) == "plan: limits.max_clusters must be 0 to 2^30, got 2147483647");
  CHECK(LIMITS_ERROR(o.num_workers = 0) == "plan: limits.num_workers must be 1 to 1024, got 0");
  CHECK(LIMITS_ERROR(o.num_workers = 1025) == "plan: limits.num_workers must be 1 to 1024, got 1025");
  CHECK(LIMITS_ERROR(o.max_rows = 0) == "plan: limits.max_rows must be 1 to 1024, got 0");
  CHECK(LIMITS_ERROR(o.max_rows = 1025) == "plan: limits.max_rows must be 1 to 1024, got 1025");
}

TEST_CASE("samples per round: the certificate's number counts only with a certificate, and only if it is larger") {
  DecodeOptions options;
  options.num_samples = 64;
  options.certificate.num_samples = 128;
  CHECK(samples_per_round(options) == 64);
  options.certificate.enabled = true;
  CHECK(samples_per_round(options) == 128);
  options.num_samples = 200;
  CHECK(samples_per_round(options) == 200);
}
