#include "report_html.hpp"

#include "report_charts.hpp"
#include "report_style.hpp"
#include "report_table.hpp"
#include "report_text.hpp"

namespace decode_trace {
namespace {

constexpr const char* kDash = "–";

std::string tag(const std::string& name, const std::string& content) { return "<" + name + ">" + content + "</" + name + ">"; }

// Escaped, and a number stays on one line with its unit.
std::string text(const std::string& content) {
  std::string html = escape_html(content);
  for (const char* unit : {" %", " ms", " kB", " MB", " GB", " thread"}) {
    for (size_t at = html.find(unit); at != std::string::npos; at = html.find(unit, at + 1)) html.replace(at, 1, "\u00a0");
  }
  return html;
}

std::string cell(const std::string& content) { return tag("td", text(content)); }

std::string count_text(double count) { return std::isnan(count) ? kDash : grouped(std::llround(count)); }

// How many times faster, or slower, as a number above one.
std::string gain_text(double gain) { return std::isnan(gain) ? kDash : factor_text(gain < 1.0 ? 1.0 / gain : gain) + "×"; }

std::string gain_cell(const ReportRow& row) {
  const double gain = speed_up(row.dense_ms, row.sparse_ms);
  return cell(gain_text(gain) + (std::isnan(gain) ? "" : gain < 1.0 ? " slower" : " faster"));
}

std::string trace_title(const TraceReport& trace) {
  if (trace.model.empty()) return trace.trace;
  return trace.model + (trace.layer.empty() ? "" : ", layer " + trace.layer);
}

std::string trace_shape(const TraceReport& trace) {
  return grouped(trace.num_tokens) + " tokens; " + counted(trace.num_qo_heads, "query head", "query heads") + " on " +
         counted(trace.num_kv_heads, "KV head", "KV heads") + " of " + std::to_string(trace.head_dim) + " dimensions; " +
         counted(trace.num_queries, "recorded query", "recorded queries") + " decoded dense and sparse.";
}

double index_share(const TraceReport& trace) {
  return trace.kv_bytes > 0 ? static_cast<double>(trace.index_bytes) / static_cast<double>(trace.kv_bytes) : kMissing;
}

// ---- headline numbers

// A number with its unit, small behind it, and what it means.
struct Tile {
  const char* label;
  std::string number;
  const char* unit;
  std::string detail;
};

std::string tile_html(const Tile& tile) {
  return std::string("<div class=\"tile\"><dt>") + tile.label + "</dt><dd class=\"number\">" + text(tile.number) + "<span class=\"unit\">" +
         tile.unit + "</span></dd><dd class=\"detail\">" + text(tile.detail) + "</dd></div>\n";
}

std::string target_name(const ReportRow& row) {
  return (row.by_error ? "target error " : "target ") + target_text(row.target, row.by_error);
}

std::string headline_tiles(const TraceReport& trace, const Options& options) {
  const ReportRow& row = trace.rows[headline_index(trace)];
  const double gain = speed_up(row.dense_ms, row.sparse_ms);
  const char* unit = std::isnan(gain) ? "" : gain < 1.0 ? "slower" : "faster";
  const std::string times = milliseconds(row.sparse_ms) + " ms instead of " + milliseconds(row.dense_ms) + " ms, " +
                            counted(options.threads, "thread", "threads");
  const std::string bound = std::isnan(row.bound_hit_rate) ? "" : "; the bound held in " + percent(row.bound_hit_rate);
  const std::string error = row.by_error ? "the library expected " + percent(row.error_estimate, kDash) + "; " : "";
  const std::string coded = row.coded > 0.0 ? ", " + count_text(row.coded) + " weighed by code" : "";
  return "<p class=\"at\">At " + target_name(row) + "</p>\n<dl class=\"tiles\">\n" +
         tile_html({"bytes read", percent(row.bytes_share, kDash), "",
                    "of what dense attention reads, index included; " + count_text(row.tokens) + " of " + grouped(trace.num_tokens) +
                        " tokens" + coded}) +
         tile_html({"mean output error", percent(row.error_mean, kDash), "",
                    error + "95 of 100 cases stay below " + percent(row.error_p95, kDash)}) +
         tile_html({"time of one step", gain_text(gain), unit, std::isnan(gain) ? "not measured" : times}) +
         tile_html({"target attained", percent(row.hit_rate, kDash), "",
                    row.by_error ? "of the queries and heads; of a group, most stay below what its worst head needs"
                                 : "of the queries and heads" + bound}) +
         "</dl>\n<p class=\"key\">" + text("Ways taken: " + paths_text(row)) + ".</p>\n";
}

// ---- charts

std::string figure(const std::string& title, const std::string& caption, const std::string& chart) {
  if (chart.empty()) return "";
  return "<figure><figcaption><h3>" + escape_html(title) + "</h3><p>" + escape_html(caption) + "</p></figcaption>\n" + chart +
         "</figure>\n";
}

std::string charts(const TraceReport& trace) {
  return "<div class=\"charts\">\n" +
         figure("The budget is an outcome", "Each dot is one query. Bar: the middle half of the queries; tick: the median.",
                budget_chart(trace)) +
         figure("Asked for, and reached",
                std::string("Means over queries and heads; thin lines hold nine of ten. The truth needs all keys, ") +
                    (has_bounds(trace) ? "estimate and bound do not. " : "the estimate does not. ") +
                    (by_error(trace) ? "Smaller errors are up and right." : "Both axes stretch towards 1."),
                attained_chart(trace)) +
         figure("Error against bytes",
                std::string("One point a target, labelled with it. ") + (trace.num_kv_heads > 1 ? "Small dots: single KV heads. " : "") +
                    "Lower left is better.",
                error_chart(trace)) +
         figure("Dense against sparse",
                "All heads of the layer, up to as many threads for both: a step begins without those that a busy processor keeps away. "
                "Dark line: the middle half of the steps.",
                time_chart(trace)) +
         "</div>\n";
}

// ---- tables

std::string column_group(const std::string& title, const std::string& columns) {
  return "<th colspan=\"" + columns + "\" class=\"group\">" + title + "</th>";
}

std::string table_head(const TraceReport& trace, bool per_head) {
  const bool bounds = has_bounds(trace), errors = by_error(trace);
  const std::string head = per_head ? "<th rowspan=\"2\">KV head</th>" : "";
  const std::string times = per_head ? "" : "<th colspan=\"3\" class=\"group\">one step</th>";
  const std::string time_names = per_head ? "" : "<th>dense, ms</th><th>sparse, ms</th><th>gain</th>";
  return "<thead><tr><th rowspan=\"2\" class=\"name\">" + std::string(errors ? "target error" : "target") + "</th>" + head +
         column_group("tokens", "2") + "<th rowspan=\"2\">bytes</th>" + column_group("weight reached", bounds ? "3" : "2") +
         column_group("share of cases", bounds ? "2" : "1") + column_group("output error", errors ? "3" : "2") + times +
         "</tr>\n<tr><th>read</th><th>coded</th><th>true</th><th>estimate</th>" + (bounds ? "<th>bound</th>" : "") + "<th>hit</th>" +
         (bounds ? "<th>bound ok</th>" : "") + "<th>mean</th><th>95 of 100</th>" + (errors ? "<th>estimate</th>" : "") + time_names +
         "</tr></thead>\n";
}

std::string row_cells(const ReportRow& row, bool bounds) {
  return cell(count_text(row.tokens)) + cell(count_text(row.coded)) + cell(percent(row.bytes_share, kDash)) +
         cell(fixed(row.attained, 3, kDash)) + cell(fixed(row.estimate, 3, kDash)) + (bounds ? cell(fixed(row.bound, 3, kDash)) : "") +
         cell(percent(row.hit_rate, kDash)) + (bounds ? cell(percent(row.bound_hit_rate, kDash)) : "") +
         cell(percent(row.error_mean, kDash)) + cell(percent(row.error_p95, kDash)) +
         (row.by_error ? cell(percent(row.error_estimate, kDash)) : "");
}

std::string totals_table(const TraceReport& trace) {
  std::string body;
  for (size_t i = 0; i < trace.rows.size(); ++i) {
    const ReportRow& row = trace.rows[i];
    body += std::string("<tr") + (i == headline_index(trace) ? " class=\"headline\">" : ">") + cell(target_text(row.target, row.by_error)) +
            row_cells(row, has_bounds(trace)) + cell(milliseconds(row.dense_ms, kDash)) + cell(milliseconds(row.sparse_ms, kDash)) +
            gain_cell(row) + "</tr>\n";
  }
  return "<div class=\"sheet\"><table>" + table_head(trace, false) + tag("tbody", "\n" + body) + "</table></div>\n";
}

std::string heads_table(const TraceReport& trace) {
  if (trace.num_kv_heads < 2) return "";
  std::string body;
  for (const HeadRow& head : trace.heads) {
    body += std::string("<tr") + (head.kv_head == 0 ? " class=\"first\">" : ">") + cell(target_text(head.row.target, head.row.by_error)) +
            cell(std::to_string(head.kv_head)) + row_cells(head.row, has_bounds(trace)) + "</tr>\n";
  }
  return "<details><summary>The same per KV head</summary><div class=\"sheet\"><table>" + table_head(trace, true) +
         tag("tbody", "\n" + body) + "</table></div></details>\n";
}

std::string table_key(const TraceReport& trace, double confidence) {
  const std::string hit = by_error(trace) ? "the true error is at most the target error" : "the true share is at least the target";
  const std::string bound =
      has_bounds(trace) ? " <b>Bound ok</b>: the true share is at least the bound, which promises " + text(percent_short(confidence)) + "."
                        : "";
  return "<p class=\"key\">A case is one query of one query head. <b>Weight reached</b>: share of the softmax weight over all tokens that "
         "lies on "
         "the tokens read. <b>Coded</b>: tokens weighed by their codes, of which those that are read are chosen. <b>Hit</b>: " +
         hit + "." + bound +
         " <b>Output error</b>: length of the difference to the dense output, relative to the dense output; 95 of 100 cases stay below "
         "the second number. "
         "<b>Bytes</b>: keys, values, index, codes and samples, as a share of the keys and values dense attention reads.</p>\n";
}

// ---- sections

std::string trace_section(const DemoReport& report, size_t i) {
  const TraceReport& trace = report.traces[i];
  std::string html = "<section id=\"trace-" + std::to_string(i + 1) + "\">\n";
  if (report.traces.size() > 1) html += tag("h2", escape_html(trace_title(trace))) + "\n";
  html += "<p class=\"about\">" + escape_html(trace_shape(trace)) + "</p>\n";
  if (trace.rows.empty()) return html + "<p>Nothing was decoded.</p>\n</section>\n";
  const std::string memory = "Index: " + bytes_text(trace.index_bytes) + ", " + percent(index_share(trace), kDash) +
                             " of the keys and values in f16 (" + bytes_text(trace.kv_bytes) + "); built in " +
                             milliseconds(trace.build_ms, kDash) + " ms.";
  return html + headline_tiles(trace, report.options) + charts(trace) + totals_table(trace) + heads_table(trace) +
         table_key(trace, report.confidence) + "<p class=\"key\">" + text(memory) + "</p>\n</section>\n";
}

std::string overview(const DemoReport& report) {
  if (report.traces.size() < 2) return "";
  std::string body;
  for (size_t i = 0; i < report.traces.size(); ++i) {
    const TraceReport& trace = report.traces[i];
    const ReportRow row = trace.rows.empty() ? ReportRow{} : trace.rows[headline_index(trace)];
    body += "<tr><td class=\"name\"><a href=\"#trace-" + std::to_string(i + 1) + "\">" + escape_html(trace_title(trace)) + "</a></td>" +
            cell(grouped(trace.num_tokens)) + cell(target_text(row.target, row.by_error)) + cell(percent(row.bytes_share, kDash)) +
            cell(percent(row.error_mean, kDash)) + gain_cell(row) + cell(percent(row.hit_rate, kDash)) +
            cell(percent(index_share(trace), kDash)) + "</tr>\n";
  }
  return "<div class=\"sheet\"><table><thead><tr><th class=\"name\">trace</th><th>tokens</th><th>target</th><th>bytes read</th><th>mean "
         "error</th><th>one "
         "step</th><th>target attained</th><th>index memory</th></tr></thead>" +
         tag("tbody", "\n" + body) + "</table></div>\n";
}

std::string definition(const std::string& term, const std::string& meaning) {
  return meaning.empty() ? "" : tag("dt", escape_html(term)) + tag("dd", text(meaning)) + "\n";
}

std::string tail_text(quorum::Tail tail) {
  if (tail == quorum::Tail::drop) return "Drop: tokens that are not read are left out.";
  if (tail == quorum::Tail::estimated)
    return "Estimated: unread tokens count with their clusters' mean values and their weights by codes and clusters.";
  return "Calibrated: unread tokens count with their clusters' mean values and their weights by codes and clusters; where a sample of "
         "their keys is drawn (whole clusters, certificate), it helps to set the total weight.";
}

std::string unit_text(quorum::ReadUnit unit) {
  if (unit == quorum::ReadUnit::clusters) return "Whole clusters; the index has no codes.";
  if (unit == quorum::ReadUnit::tokens) return "Single tokens, by one-bit codes of what a key differs by from its cluster's mean.";
  return "Single tokens, by one-bit codes of what a key differs by from its cluster's mean; everything, where half of the tokens or more "
         "are needed.";
}

std::string measured_section(const DemoReport& report) {
  const Options& options = report.options;
  std::string files;
  for (const TraceReport& trace : report.traces)
    files += (files.empty() ? "" : "; ") + trace.trace + (trace.text.empty() ? "" : " (" + trace.text + ")");
  const std::string protocol =
      "Keys, queries and values were recorded from a real model. The index is built over the context before the recorded queries (" +
      grouped(report.traces.front().indexed_tokens) +
      " tokens in the first trace). A query at position t then sees tokens 0 to t; the first few tokens and everything newer than the "
      "index are "
      "always read. Every query is decoded dense and sparse by the same program; truth and error come from dense attention over all keys.";
  const std::string certificate =
      options.certify    ? "On: a sample of unread keys bounds the share reached, and reading goes on while the bound misses the target."
      : options.by_error ? "Off: it bounds shares, not errors."
                         : "Off: reading stops when the estimate reaches the target.";
  return "<section>\n<h2>How this was measured</h2>\n<dl class=\"method\">\n" + definition("Protocol", protocol) +
         definition("Traces", files) + definition("Unread tokens", tail_text(options.tail)) + definition("Certificate", certificate) +
         definition("Chosen and read", unit_text(options.unit)) +
         definition("Settings", "clusters of " + std::to_string(options.cluster_size) + " tokens on average, " +
                                    counted(options.threads, "thread", "threads") + ", seed " + std::to_string(options.seed)) +
         definition("Machine", report.machine) + definition("Instructions", report.isa) + definition("Compiler", report.compiler) +
         "<dt>Command</dt><dd><code>" + escape_html(report.command) + "</code></dd>\n</dl>\n</section>\n";
}

std::string page_title(const DemoReport& report) {
  const TraceReport& trace = report.traces.front();
  if (report.traces.size() > 1)
    return "Sparse attention with a dynamic budget, on " + std::to_string(report.traces.size()) + " recorded traces";
  if (trace.rows.empty()) return "Sparse attention with a dynamic budget";
  const ReportRow& row = trace.rows[headline_index(trace)];
  const double gain = speed_up(row.dense_ms, row.sparse_ms);
  const std::string result = row.by_error ? percent(row.error_mean, kDash) + " error of the output, from "
                                          : percent(row.attained, kDash) + " of the attention weight, from ";
  return result + percent(row.bytes_share, kDash) + " of the bytes" + (gain >= 1.05 ? ", " + gain_text(gain) + " faster" : "");
}

std::string lead(const Options& options) {
  const std::string goal =
      options.by_error ? "the output's estimated error is small enough." : "the target share of the attention weight is reached.";
  if (options.unit == quorum::ReadUnit::clusters)
    return "Keys are clustered once. For each query, clusters are ranked by the weight they are expected to carry and read until " + goal;
  return "Keys are clustered once, and one bit a dimension is kept of what each differs by from its cluster's mean. For each query the "
         "clusters that may matter are found, their tokens are weighed by these codes, and the heaviest are read until " +
         goal;
}

}  // namespace

std::string report_html(const DemoReport& report) {
  const std::string title = page_title(report);
  const std::string eyebrow =
      report.traces.size() > 1 ? "quorum · decode_trace" : "quorum · decode_trace · " + trace_title(report.traces.front());
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, "
      "initial-scale=1\">\n<title>quorum: " +
      escape_html(trace_title(report.traces.front())) + "</title>\n<style>" + kStyleSheet +
      "</style>\n</head>\n<body>\n<main>\n<header>\n" + "<p class=\"eyebrow\">" + escape_html(eyebrow) + "</p>\n" + tag("h1", text(title)) +
      "\n<p class=\"lead\">" + lead(report.options) + " How many tokens that takes differs from head to head and query to query.</p>\n" +
      overview(report) + "</header>\n";
  for (size_t i = 0; i < report.traces.size(); ++i) html += trace_section(report, i);
  return html + measured_section(report) + "</main>\n</body>\n</html>\n";
}

}  // namespace decode_trace
