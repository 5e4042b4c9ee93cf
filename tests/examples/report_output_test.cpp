#include <doctest/doctest.h>

#include <sstream>

#include "../../examples/decode_trace/report_charts.hpp"
#include "../../examples/decode_trace/report_html.hpp"
#include "../../examples/decode_trace/report_json.hpp"
#include "../../examples/decode_trace/report_table.hpp"
#include "../../examples/decode_trace/svg_plot.hpp"
#include "quorum/io/json.hpp"
#include "report_samples.hpp"

using namespace decode_trace;
using quorum::io::JsonValue;
using Kind = JsonValue::Kind;

namespace {

// Every line fits the terminal and is plain ASCII.
void check_lines(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    CHECK_MESSAGE(line.size() <= 120, line);
    CHECK_MESSAGE(std::all_of(line.begin(), line.end(), [](char c) { return c >= ' ' && c < 127; }), line);
    CHECK_MESSAGE((line.empty() || line.back() != ' '), line);
  }
}

// Start and end tags of the page match, attributes are quoted, no character that should have been escaped is left.
void check_tags(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at)) {
    const size_t end = html.find('>', at);
    REQUIRE(end != std::string::npos);
    const std::string tag = html.substr(at + 1, end - at - 1);
    REQUIRE_FALSE(contains(tag, "<"));
    CHECK_MESSAGE(count(tag, "\"") % 2 == 0, tag);
    const std::string name = tag.substr(0, tag.find(' '));
    at = end;
    if (name == "!DOCTYPE" || name == "meta" || tag.back() == '/') continue;
    if (name[0] != '/') {
      open.push_back(name);
    } else {
      REQUIRE_FALSE(open.empty());
      CHECK("/" + open.back() == name);
      open.pop_back();
    }
  }
  CHECK(open.empty());
}

}  // namespace

TEST_CASE("report json: one trace at the top level, the keys other programs rely on") {
  const JsonValue root = quorum::io::parse_json(report_json(small_report()), "report.json");
  for (const char* key : {"trace", "index_bytes", "kv_bytes", "build_ms", "rows", "heads", "traces", "command", "machine"}) {
    CHECK_MESSAGE(root.find(key) != nullptr, key);
  }
  CHECK(root.find("trace")->text == "small.safetensors");
  CHECK(root.find("model")->text == "Model <b> & \"quotes\"");
  CHECK(root.find("build_ms")->text == "12.5");
  REQUIRE(root.find("rows")->items.size() == 1);
  const JsonValue& row = root.find("rows")->items[0];
  const std::vector<std::string> keys = {"target",     "target_error", "tail",           "tokens",   "tokens_coded",   "bytes_share",
                                         "attained",   "estimate",     "bound",          "hit_rate", "bound_hit_rate", "bound_at_target",
                                         "error_mean", "error_p95",    "error_estimate", "paths",    "dense_ms",       "sparse_ms"};
  CHECK(row.keys == keys);
  CHECK(row.find("target")->text == "0.9");
  CHECK(row.find("tail")->text == "calibrated");
  CHECK(row.find("target_error")->kind == Kind::null);
  CHECK(row.find("tokens")->text == "250");
  CHECK(row.find("tokens_coded")->text == "700");
  CHECK(row.find("paths")->find("sparse_tokens")->text == "3");
  CHECK(row.find("paths")->find("dense_by_cost")->text == "1");
  CHECK(row.find("bytes_share")->text == "0.25");
  const JsonValue& head = root.find("heads")->items[1];
  CHECK(head.find("kv_head")->text == "1");
  CHECK(head.find("dense_ms")->kind == Kind::null);
}

TEST_CASE("report json: several traces, nothing measured") {
  DemoReport report = small_report(2);
  report.traces[0].rows[0].bound = kMissing;
  report.traces[0].rows[0].error_p95 = std::numeric_limits<double>::infinity();
  report.traces[1].trace = "second";
  report.traces[1].rows.clear();
  const JsonValue root = quorum::io::parse_json(report_json(report), "report.json");
  CHECK(root.find("trace")->text == "small.safetensors");
  CHECK(root.find("rows")->items[0].find("bound")->kind == Kind::null);
  CHECK(root.find("rows")->items[0].find("error_p95")->kind == Kind::null);
  REQUIRE(root.find("traces")->items.size() == 2);
  CHECK(root.find("traces")->items[0].find("index_bytes")->text == "60");
  CHECK(root.find("traces")->items[1].find("trace")->text == "second");
  CHECK(root.find("traces")->items[1].find("rows")->items.empty());
}

TEST_CASE("report table: fits the terminal, heads above totals") {
  const std::string table = report_table(small_trace());
  check_lines(table);
  CHECK(contains(table, "0.90        0 |  200    800 |  20.0 | 0.875     0.920  0.910 | 50.0       100 |  2.0"));
  CHECK(contains(table, "0.90      all |  250    700 |  25.0 | 0.910     0.935  0.903 | 75.0      66.7 |  2.5"));
  CHECK(contains(table, "at every target: 3 cases read single tokens by code; 1 case dense: cheaper than so many tokens"));
  CHECK(contains(table, "3.00    1.50  2.0x"));
  CHECK(table.find("        0 |") < table.find("all |"));
  CHECK(contains(table, "it takes 60 bytes, 6.0 % of the keys and values in f16"));
  check_lines(report_table(large_trace()));
  check_lines(table_legend(small_report()));
}

TEST_CASE("report table: one KV head is its own total; control characters of names stay out of the terminal") {
  TraceReport trace = small_trace();
  trace.num_kv_heads = 1;
  trace.trace = "a\x1b[31m";
  summarize(trace);
  const std::string table = report_table(trace);
  CHECK(count(table, "  0.90  ") == 1);
  check_lines(table);
}

TEST_CASE("report html: complete in itself and well formed") {
  const std::string page = report_html(small_report());
  check_tags(page);
  CHECK(page.starts_with("<!DOCTYPE html>"));
  CHECK(count(page, "<svg ") == 4);
  CHECK(contains(page, "Model &lt;b&gt; &amp; &quot;quotes&quot;, layer 7"));
  CHECK(contains(page, "decode_trace &#39;a&amp;b.safetensors&#39;"));
  CHECK(contains(page, "prefers-color-scheme: dark"));
  for (const char* part : {"<script", "<link", "src=", "url(", "@import", "http", "nan", "inf "})
    CHECK_MESSAGE(!contains(page, part), part);
}

TEST_CASE("report html: several traces are listed first; many heads, target 1") {
  DemoReport report = small_report(1);
  report.traces.push_back(large_trace());
  const std::string page = report_html(report);
  check_tags(page);
  CHECK(contains(page, "href=\"#trace-2\""));
  CHECK(contains(page, "id=\"trace-2\""));
  CHECK(count(page, "<svg ") == 8);
  CHECK_FALSE(contains(page, "nan"));
}

TEST_CASE("report html: what was not measured leaves a dash, not a chart") {
  DemoReport report = small_report();
  TraceReport& trace = report.traces[0];
  trace.runs[0].dense_ms.clear();
  for (Case& item : trace.runs[0].cases) item.error = 0.0;  // no place on a logarithmic axis
  summarize(trace);
  CHECK(time_chart(trace).empty());
  CHECK(error_chart(trace).empty());
  check_tags(report_html(report));
  trace.runs[0].cases.clear();
  summarize(trace);
  CHECK(budget_chart(trace).empty());
  CHECK(attained_chart(trace).empty());
  check_tags(report_html(report));
  trace.runs.clear();
  summarize(trace);
  check_tags(report_html(report));
  CHECK(contains(report_html(report), "Nothing was decoded."));
}

TEST_CASE("report charts: a dot a query and KV head, even if all values are equal") {
  TraceReport trace = small_trace();
  CHECK(count(budget_chart(trace), "<circle") == 4);
  CHECK(contains(budget_chart(trace), "<title>KV head 1, target 0.90, query 1: 400 tokens</title>"));
  CHECK(contains(attained_chart(trace), "target 0.90, true: mean 0.910"));
  CHECK(contains(error_chart(trace), "25.0 % of the bytes, mean error 2.5 %"));
  CHECK(contains(time_chart(trace), "1.50 ms, 2.0× faster"));
  trace.num_tokens = 1;
  for (Case& item : trace.runs[0].cases) item = {item.query, item.kv_head, item.qo_head, 1, 1, 1, 1.0, 1.0, 1.0, 0.5, 1};
  summarize(trace);
  for (const std::string& chart : {budget_chart(trace), attained_chart(trace), error_chart(trace)}) {
    check_tags(chart);
    CHECK_FALSE(contains(chart, "nan"));
  }
}

TEST_CASE("report: with target errors everything is labelled with them, and the estimate stands beside the truth") {
  DemoReport report = small_report();
  report.options.by_error = true;
  TraceReport& trace = report.traces[0];
  trace.runs[0].target = 0.025;
  trace.runs[0].by_error = true;
  for (Case& item : trace.runs[0].cases) item.bound = kMissing, item.error_estimate = 0.03;
  summarize(trace);
  const std::string table = report_table(trace);
  check_lines(table);
  check_lines(table_legend(report));
  CHECK(contains(table, " 2.5 %      all |"));
  CHECK(contains(table, "estimate | dense"));
  CHECK_FALSE(contains(table, "bound"));
  CHECK_FALSE(contains(table_legend(report), "bound"));
  CHECK(trace.rows[0].hit_rate == doctest::Approx(0.5));
  const JsonValue root = quorum::io::parse_json(report_json(report), "report.json");
  const JsonValue& row = root.find("rows")->items[0];
  CHECK(row.find("target")->kind == Kind::null);
  CHECK(row.find("target_error")->text == "0.025");
  CHECK(row.find("error_estimate")->text == "0.03");
  const std::string page = report_html(report);
  check_tags(page);
  CHECK(contains(page, "At target error 2.5"));
  CHECK(contains(attained_chart(trace), "target 2.5 %, estimate: mean 3.0 %"));
  CHECK_FALSE(contains(page, "nan"));
}

TEST_CASE("svg plot: axes and labels") {
  const Axis linear{0.0, 10.0, 100.0, 0.0, false};
  CHECK(linear.at(2.5) == doctest::Approx(75.0));
  CHECK(linear.ticks(5) == std::vector<double>{0.0, 2.0, 4.0, 6.0, 8.0, 10.0});
  const Axis falling{0.5, 0.005, 0.0, 100.0, true};  // low and high exchanged
  CHECK(falling.at(0.05) == doctest::Approx(50.0));
  CHECK(falling.ticks(6).size() == 7);
  CHECK(Axis{1.0, 1e6, 0.0, 1.0, true}.ticks(6).size() == 7);  // decades only
  CHECK(round_below(0.049) == doctest::Approx(0.02));
  CHECK(round_above(0.051) == doctest::Approx(0.1));
  CHECK(round_above(5.0) == doctest::Approx(5.0));
  const std::vector<double> places = spread_apart({50.0, 51.0, 20.0}, 10.0, 0.0, 100.0);
  CHECK(places[1] - places[0] >= 9.99);
  CHECK(places[2] == doctest::Approx(20.0));
  CHECK(spread_apart({99.0, 99.0}, 10.0, 0.0, 100.0)[0] == doctest::Approx(90.0).epsilon(0.01));
}
