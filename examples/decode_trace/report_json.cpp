#include "report_json.hpp"

#include <cstdio>

#include "report_text.hpp"

namespace decode_trace {
namespace {

// Members of one JSON object, in the order they are added.
class JsonMembers {
 public:
  void add(const char* name, const std::string& text) { add_raw(name, quote_json(text)); }
  void add(const char* name, bool value) = delete;  // would be taken for a number
  void add(const char* name, int64_t value) { add_raw(name, std::to_string(value)); }
  void add(const char* name, int value) { add_raw(name, std::to_string(value)); }
  void add(const char* name, double value) {
    char buffer[32] = "null";
    if (std::isfinite(value)) std::snprintf(buffer, sizeof buffer, "%.7g", value);
    add_raw(name, buffer);
  }
  void add_raw(const char* name, const std::string& json) {
    if (!text_.empty()) text_ += separator_;
    text_ += quote_json(name) + ": " + json;
  }

  explicit JsonMembers(std::string separator = ", ") : separator_(std::move(separator)) {}
  const std::string& text() const { return text_; }
  std::string object() const { return "{" + text_ + "}"; }

 private:
  std::string separator_;
  std::string text_;
};

std::string array_of_lines(const std::vector<std::string>& items, const std::string& indent) {
  std::string json = "[";
  for (size_t i = 0; i < items.size(); ++i) json += (i == 0 ? "\n  " : ",\n  ") + indent + items[i];
  return json + (items.empty() ? "]" : "\n" + indent + "]");
}

constexpr const char* kPathNames[kNumPaths] = {"sparse",          "sparse_tokens",     "dense_by_length",
                                               "dense_by_target", "dense_by_policy",   "dense_by_numerics",
                                               "dense_by_cost",   "dense_by_capacity", "dense_by_view"};

// Cases by quorum::DecodePath; those that no case took are left out.
std::string paths_object(const ReportRow& row) {
  JsonMembers members;
  for (size_t path = 0; path < kNumPaths; ++path)
    if (row.paths[path] > 0) members.add(kPathNames[path], row.paths[path]);
  return members.object();
}

void add_row(JsonMembers& members, const ReportRow& row, const char* tail) {
  members.add("target", row.by_error ? kMissing : row.target);
  members.add("target_error", row.by_error ? row.target : kMissing);
  members.add("tail", std::string(tail));
  members.add("tokens", row.tokens);
  members.add("tokens_coded", row.coded);
  members.add("bytes_share", row.bytes_share);
  members.add("attained", row.attained);
  members.add("estimate", row.estimate);
  members.add("bound", row.bound);
  members.add("hit_rate", row.hit_rate);
  members.add("bound_hit_rate", row.bound_hit_rate);
  members.add("bound_at_target", row.bound_at_target);
  members.add("error_mean", row.error_mean);
  members.add("error_p95", row.error_p95);
  members.add("error_estimate", row.error_estimate);
  members.add_raw("paths", paths_object(row));
  members.add("dense_ms", row.dense_ms);
  members.add("sparse_ms", row.sparse_ms);
}

// A trace's members, `indent` deep, without the braces.
std::string trace_members(const TraceReport& trace, const char* tail, const std::string& indent) {
  std::vector<std::string> rows, heads;
  for (const ReportRow& row : trace.rows) {
    JsonMembers members;
    add_row(members, row, tail);
    rows.push_back(members.object());
  }
  for (const HeadRow& head : trace.heads) {
    JsonMembers members;
    members.add("kv_head", head.kv_head);
    add_row(members, head.row, tail);
    heads.push_back(members.object());
  }
  JsonMembers members(",\n" + indent);
  members.add("trace", trace.trace);
  members.add("model", trace.model);
  members.add("layer", trace.layer);
  members.add("text", trace.text);
  members.add("num_tokens", trace.num_tokens);
  members.add("indexed_tokens", trace.indexed_tokens);
  members.add("num_queries", trace.num_queries);
  members.add("num_qo_heads", trace.num_qo_heads);
  members.add("num_kv_heads", trace.num_kv_heads);
  members.add("head_dim", trace.head_dim);
  members.add("index_bytes", trace.index_bytes);
  members.add("kv_bytes", trace.kv_bytes);
  members.add("build_ms", trace.build_ms);
  members.add_raw("rows", array_of_lines(rows, indent));
  members.add_raw("heads", array_of_lines(heads, indent));
  return members.text();
}

std::string options_object(const DemoReport& report) {
  const Options& options = report.options;
  JsonMembers members;
  members.add("unit", std::string(unit_name(options.unit)));
  members.add("tail", std::string(quorum::tail_name(options.tail)));
  members.add_raw("certify", options.certify ? "true" : "false");
  members.add("confidence", report.confidence);
  members.add("threads", options.threads);
  members.add("cluster_size", options.cluster_size);
  members.add_raw("seed", std::to_string(options.seed));
  return members.object();
}

}  // namespace

std::string report_json(const DemoReport& report) {
  const char* tail = quorum::tail_name(report.options.tail);
  std::vector<std::string> traces;
  for (const TraceReport& trace : report.traces) traces.push_back("{\n      " + trace_members(trace, tail, "      ") + "\n    }");
  JsonMembers members(",\n  ");
  members.add_raw("options", options_object(report));
  members.add("command", report.command);
  members.add("machine", report.machine);
  members.add("compiler", report.compiler);
  members.add("isa", report.isa);
  members.add_raw("traces", array_of_lines(traces, "  "));
  return "{\n  " + trace_members(report.traces.front(), tail, "  ") + ",\n  " + members.text() + "\n}\n";
}

}  // namespace decode_trace
