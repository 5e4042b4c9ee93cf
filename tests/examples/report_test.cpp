#include "../../examples/decode_trace/report.hpp"

#include <doctest/doctest.h>

#include "report_samples.hpp"

using namespace decode_trace;

TEST_CASE("report: a run's line by hand") {
  const TraceReport trace = small_trace();
  REQUIRE(trace.rows.size() == 1);
  const ReportRow& row = trace.rows[0];
  CHECK(row.tokens == doctest::Approx(250.0));
  CHECK(row.bytes_share == doctest::Approx(0.25));
  CHECK(row.attained == doctest::Approx(0.91));
  CHECK(row.estimate == doctest::Approx(0.935));
  CHECK(row.bound == doctest::Approx((0.91 + 0.91 + 0.89) / 3.0));
  CHECK(row.hit_rate == doctest::Approx(0.75));              // 0.80 misses, 0.90 just hits
  CHECK(row.bound_hit_rate == doctest::Approx(2.0 / 3.0));   // 0.90 is below its bound 0.91; one case has none
  CHECK(row.bound_at_target == doctest::Approx(2.0 / 3.0));  // 0.89 is below the target
  CHECK(row.error_mean == doctest::Approx(0.025));
  CHECK(row.error_p95 == doctest::Approx(0.0385));  // rank 2.85 of 0.01, 0.02, 0.03, 0.04
  CHECK(row.dense_ms == doctest::Approx(3.0));
  CHECK(row.sparse_ms == doctest::Approx(1.5));
}

TEST_CASE("report: per KV head, and what was not measured") {
  TraceReport trace = small_trace();
  REQUIRE(trace.heads.size() == 2);
  CHECK(trace.heads[0].kv_head == 0);
  CHECK(trace.heads[0].row.tokens == doctest::Approx(200.0));
  CHECK(trace.heads[1].row.bytes_share == doctest::Approx(0.3));
  CHECK(trace.heads[0].row.hit_rate == doctest::Approx(0.5));
  CHECK(std::isnan(trace.heads[0].row.dense_ms));
  for (Case& item : trace.runs[0].cases) item.bound = kMissing;
  summarize(trace);
  CHECK(std::isnan(trace.rows[0].bound));
  CHECK(std::isnan(trace.rows[0].bound_hit_rate));
  CHECK(trace.rows.size() == 1);
  trace.runs[0].cases.clear();
  summarize(trace);
  CHECK(std::isnan(trace.rows[0].tokens));
  CHECK(std::isnan(trace.rows[0].bytes_share));
}

TEST_CASE("report: quantiles and the headline target") {
  CHECK(std::isnan(quantile({}, 0.5)));
  CHECK(quantile({3.0}, 0.95) == 3.0);
  CHECK(quantile({2.0, 1.0}, 0.5) == doctest::Approx(1.5));
  CHECK(quantile({1.0, 2.0, 3.0}, 1.0) == 3.0);
  CHECK(large_trace().rows[headline_index(large_trace())].target == doctest::Approx(0.995));
}
