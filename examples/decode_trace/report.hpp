// What decode_trace measured, as plain data: filled by measure.cpp, shown by report_table, report_json and report_html.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "options.hpp"
#include "quorum/core/decode_report.hpp"

namespace decode_trace {

// Stands for what was not measured: null in JSON, a dash elsewhere.
inline constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

// Ratios that differ by no more than this count as equal: both come from sums in f32.
inline constexpr double kRatioTolerance = 1e-6;

inline constexpr size_t kNumPaths = size_t(quorum::DecodePath::dense_by_view) + 1;

// Which way a head took, in words that follow "N cases".
constexpr const char* path_text(quorum::DecodePath path) {
  switch (path) {
    case quorum::DecodePath::sparse:
      return "read whole clusters";
    case quorum::DecodePath::sparse_tokens:
      return "read single tokens by code";
    case quorum::DecodePath::dense_by_length:
      return "dense: nothing is indexed";
    case quorum::DecodePath::dense_by_target:
      return "dense: the target is everything";
    case quorum::DecodePath::dense_by_policy:
      return "dense: the bound missed the target";
    case quorum::DecodePath::dense_by_numerics:
      return "dense: NaN, Inf or scores too far apart";
    case quorum::DecodePath::dense_by_cost:
      return "dense: cheaper than so many tokens";
    case quorum::DecodePath::dense_by_capacity:
      return "dense: more clusters than planned for";
    case quorum::DecodePath::dense_by_view:
      return "dense: some of the indexed tokens are out of sight";
  }
  return "unknown";
}

// One recorded query of one query head, at one target. Tokens and bytes are those of its KV head, shared by the whole group.
struct Case {
  int query = 0;  // index of the recorded query
  int kv_head = 0;
  int qo_head = 0;
  int64_t tokens = 0;                // keys and values attended
  int64_t bytes_read = 0;            // index included
  int64_t bytes_dense = 0;           // what dense attention reads
  double attained = kMissing;        // share of the attention weight read, from all true weights
  double estimate = kMissing;        // of the same, as the library reports it
  double bound = kMissing;           // lower bound of the same; missing if nothing was sampled
  double error = kMissing;           // |sparse - dense| / |dense| of the output vector
  int64_t coded = 0;                 // tokens weighed by their codes
  double error_estimate = kMissing;  // of the error, as the library reports it; only with a target error
  quorum::DecodePath path = quorum::DecodePath::sparse_tokens;
};

// Everything measured at one target.
struct TargetRun {
  double target = 0.0;
  bool by_error = false;          // the target is an error of the output, else a share of the weight
  std::vector<Case> cases;        // every recorded query and query head
  std::vector<double> dense_ms;   // one decode step, all heads; one entry a repetition or query
  std::vector<double> sparse_ms;  // the same
};

// A line of the tables.
struct ReportRow {
  double target = 0.0;
  bool by_error = false;              // as TargetRun
  double tokens = kMissing;           // mean
  double coded = kMissing;            // mean
  double bytes_share = kMissing;      // of the bytes dense attention reads
  double attained = kMissing;         // mean
  double estimate = kMissing;         // mean
  double bound = kMissing;            // mean
  double hit_rate = kMissing;         // share of cases with attained >= target, or error <= target
  double bound_hit_rate = kMissing;   // share of cases with attained >= bound, of those that have a bound
  double bound_at_target = kMissing;  // share of cases with bound >= target, of the same
  double error_mean = kMissing;
  double error_p95 = kMissing;
  double error_estimate = kMissing;    // mean; with a target error only
  std::array<int, kNumPaths> paths{};  // cases by DecodePath
  double dense_ms = kMissing;          // median; missing for a single KV head, as a step does all of them
  double sparse_ms = kMissing;         // median; the same
};

struct HeadRow {
  int kv_head = 0;
  ReportRow row;
};

struct TraceReport {
  std::string trace;  // name of the file
  std::string model;
  std::string layer;
  std::string text;  // what the model was reading
  int num_tokens = 0;
  int indexed_tokens = 0;  // the others are sinks and window: always read
  int num_queries = 0;     // recorded queries that were decoded
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int64_t index_bytes = 0;
  int64_t kv_bytes = 0;  // of the keys and values in f16
  double build_ms = kMissing;
  std::vector<TargetRun> runs;  // by ascending target
  std::vector<ReportRow> rows;  // one a run: summarize()
  std::vector<HeadRow> heads;   // one a run and KV head: summarize()
};

struct DemoReport {
  std::string command;       // as it can be typed again
  std::string machine;       // processor and number of threads
  std::string compiler;      // name, version, flags
  std::string isa;           // instruction set of the kernels
  double confidence = 0.95;  // of the bound, one-sided
  Options options;
  std::vector<TraceReport> traces;
};

// Linear between order statistics, as numpy.quantile; missing if there are no values.
inline double quantile(std::vector<double> values, double share) {
  if (values.empty()) return kMissing;
  std::sort(values.begin(), values.end());
  const double rank = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (rank - static_cast<double>(below)) * (values[above] - values[below]);
}

inline double mean(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return values.empty() ? kMissing : sum / static_cast<double>(values.size());
}

// One member of every case for which it was measured; of one KV head, or of all if kv_head is negative.
inline std::vector<double> present(const std::vector<Case>& cases, double Case::*member, int kv_head = -1) {
  std::vector<double> values;
  for (const Case& item : cases) {
    if ((kv_head < 0 || item.kv_head == kv_head) && !std::isnan(item.*member)) values.push_back(item.*member);
  }
  return values;
}

// A run's line, of one KV head, or of all if kv_head is negative. A case without a value is left out of that value's mean.
inline ReportRow summarize_run(const TargetRun& run, int kv_head = -1) {
  ReportRow row;
  row.target = run.target;
  row.by_error = run.by_error;
  std::vector<double> tokens, coded, hits, bound_hits, bounds_at_target;
  double bytes_read = 0.0, bytes_dense = 0.0;
  for (const Case& item : run.cases) {
    if (kv_head >= 0 && item.kv_head != kv_head) continue;
    tokens.push_back(static_cast<double>(item.tokens));
    coded.push_back(static_cast<double>(item.coded));
    ++row.paths[size_t(item.path)];
    bytes_read += static_cast<double>(item.bytes_read);
    bytes_dense += static_cast<double>(item.bytes_dense);
    if (run.by_error && !std::isnan(item.error)) hits.push_back(item.error <= run.target);
    if (!run.by_error && !std::isnan(item.attained)) hits.push_back(item.attained + kRatioTolerance >= run.target);
    if (std::isnan(item.bound)) continue;
    if (!std::isnan(item.attained)) bound_hits.push_back(item.attained + kRatioTolerance >= item.bound);
    bounds_at_target.push_back(item.bound + kRatioTolerance >= run.target);
  }
  row.tokens = mean(tokens);
  row.coded = mean(coded);
  if (bytes_dense > 0.0) row.bytes_share = bytes_read / bytes_dense;
  row.attained = mean(present(run.cases, &Case::attained, kv_head));
  row.estimate = mean(present(run.cases, &Case::estimate, kv_head));
  row.bound = mean(present(run.cases, &Case::bound, kv_head));
  row.hit_rate = mean(hits);
  row.bound_hit_rate = mean(bound_hits);
  row.bound_at_target = mean(bounds_at_target);
  const std::vector<double> errors = present(run.cases, &Case::error, kv_head);
  row.error_mean = mean(errors);
  row.error_p95 = quantile(errors, 0.95);
  row.error_estimate = mean(present(run.cases, &Case::error_estimate, kv_head));
  if (kv_head < 0) {
    row.dense_ms = quantile(run.dense_ms, 0.5);
    row.sparse_ms = quantile(run.sparse_ms, 0.5);
  }
  return row;
}

// Fills rows and heads from runs.
inline void summarize(TraceReport& trace) {
  trace.rows.clear();
  trace.heads.clear();
  for (const TargetRun& run : trace.runs) {
    trace.rows.push_back(summarize_run(run));
    for (int kv_head = 0; kv_head < trace.num_kv_heads; ++kv_head) trace.heads.push_back({kv_head, summarize_run(run, kv_head)});
  }
}

inline bool by_error(const TraceReport& trace) { return !trace.runs.empty() && trace.runs.front().by_error; }

// True if lower bounds were measured: only with samples.
inline bool has_bounds(const TraceReport& trace) {
  return std::any_of(trace.rows.begin(), trace.rows.end(), [](const ReportRow& row) { return !std::isnan(row.bound_at_target); });
}

// The run whose numbers stand for the trace: the target nearest to 0.9, or error nearest to 0.05. Requires at least one row.
inline size_t headline_index(const TraceReport& trace) {
  const double wanted = by_error(trace) ? 0.05 : 0.9;
  size_t best = 0;
  for (size_t i = 1; i < trace.rows.size(); ++i) {
    if (std::abs(trace.rows[i].target - wanted) < std::abs(trace.rows[best].target - wanted)) best = i;
  }
  return best;
}

}  // namespace decode_trace
