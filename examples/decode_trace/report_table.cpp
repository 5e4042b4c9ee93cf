#include "report_table.hpp"

#include "report_text.hpp"

namespace decode_trace {
namespace {

using Line = std::vector<std::string>;

// Columns that share a heading.
struct ColumnGroup {
  const char* title;
  std::vector<const char*> columns;
};

const std::vector<ColumnGroup>& column_groups() {
  static const std::vector<ColumnGroup> groups = {
      {"", {"target", "KV head"}},       {"read", {"tokens", "bytes, %"}}, {"weight reached", {"true", "estimate", "bound"}},
      {"cases, %", {"hit", "bound ok"}}, {"error, %", {"mean", "p95"}},    {"one step, ms", {"dense", "sparse", "gain"}},
  };
  return groups;
}

// percent() without the sign, which stands in the heading.
std::string hundredths(double share) {
  std::string text = percent(share);
  if (text.ends_with(" %")) text.resize(text.size() - 2);
  return text;
}

// Of a KV head, or of all heads: then with the times of a step.
Line cells(const ReportRow& row, const std::string& head, bool with_times) {
  Line line = {target_text(row.target),
               head,
               fixed(row.tokens, 0),
               hundredths(row.bytes_share),
               fixed(row.attained, 3),
               fixed(row.estimate, 3),
               fixed(row.bound, 3),
               hundredths(row.hit_rate),
               hundredths(row.bound_hit_rate),
               hundredths(row.error_mean),
               hundredths(row.error_p95)};
  const double gain = speed_up(row.dense_ms, row.sparse_ms);
  const Line times = {milliseconds(row.dense_ms), milliseconds(row.sparse_ms), std::isnan(gain) ? "-" : factor_text(gain) + "x"};
  for (const std::string& time : times) line.push_back(with_times ? time : "");
  return line;
}

std::string padded(const std::string& text, size_t width) { return std::string(width - std::min(width, text.size()), ' ') + text; }

std::string rule_line(size_t width) { return " " + std::string(width - 1, '-') + "\n"; }

// Columns of a group stand two blanks apart, groups " | ".
size_t group_width(const ColumnGroup& group, const std::vector<size_t>& widths, size_t first) {
  size_t width = 2 * (group.columns.size() - 1);
  for (size_t i = 0; i < group.columns.size(); ++i) width += widths[first + i];
  return width;
}

// By the longest cell; the first column of a group grows until the group's title fits.
std::vector<size_t> column_widths(const std::vector<Line>& lines) {
  std::vector<size_t> widths;
  for (const ColumnGroup& group : column_groups()) {
    const size_t first = widths.size();
    for (const std::string name : group.columns) {
      size_t width = name.size();
      for (const Line& line : lines) {
        if (!line.empty()) width = std::max(width, line[widths.size()].size());
      }
      widths.push_back(width);
    }
    const size_t total = group_width(group, widths, first), title = std::string(group.title).size();
    if (total < title) widths[first] += title - total;
  }
  return widths;
}

void append_line(std::string& text, std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  text += line + "\n";
}

std::string joined(const Line& line, const std::vector<size_t>& widths) {
  std::string text;
  size_t column = 0;
  for (const ColumnGroup& group : column_groups()) {
    text += column > 0 ? " | " : " ";
    for (size_t i = 0; i < group.columns.size(); ++i, ++column) text += (i > 0 ? "  " : "") + padded(line[column], widths[column]);
  }
  return text;
}

// Titles of the groups, names of the columns, a rule.
std::string heading(const std::vector<size_t>& widths) {
  std::string titles;
  Line names;
  for (const ColumnGroup& group : column_groups()) {
    titles += names.empty() ? " " : " | ";
    const std::string title = group.title;
    titles += title + std::string(group_width(group, widths, names.size()) - title.size(), ' ');
    names.insert(names.end(), group.columns.begin(), group.columns.end());
  }
  std::string text;
  append_line(text, titles);
  append_line(text, joined(names, widths));
  return text + rule_line(titles.size());
}

std::string description(const TraceReport& trace) {
  std::string text = printable(trace.trace) + "\n";
  if (!trace.model.empty()) text += "  " + printable(trace.model + (trace.layer.empty() ? "" : ", layer " + trace.layer)) + "\n";
  text += "  " + counted(trace.num_tokens, "token", "tokens") + ", " + counted(trace.num_qo_heads, "query head", "query heads") + " on " +
          counted(trace.num_kv_heads, "KV head", "KV heads") + " of " + std::to_string(trace.head_dim) + " dimensions, " +
          counted(trace.num_queries, "recorded query", "recorded queries") + "\n";
  const double share = trace.kv_bytes > 0 ? static_cast<double>(trace.index_bytes) / static_cast<double>(trace.kv_bytes) : kMissing;
  text += "  index of " + counted(trace.indexed_tokens, "token", "tokens") + " built in " + milliseconds(trace.build_ms) +
          " ms; it takes " + bytes_text(trace.index_bytes) + ", " + percent(share) + " of the keys and values in f16 (" +
          bytes_text(trace.kv_bytes) + ")\n";
  return text;
}

}  // namespace

std::string report_table(const TraceReport& trace) {
  std::vector<Line> lines;  // an empty line separates targets
  for (size_t i = 0; i < trace.heads.size(); ++i) {
    const bool starts_target = i > 0 && trace.heads[i].row.target != trace.heads[i - 1].row.target;
    if (starts_target && trace.num_kv_heads > 1) lines.push_back({});
    lines.push_back(cells(trace.heads[i].row, std::to_string(trace.heads[i].kv_head), false));
  }
  if (trace.num_kv_heads == 1) lines.clear();  // its only head is the total
  const size_t num_head_lines = lines.size();
  for (const ReportRow& row : trace.rows) lines.push_back(cells(row, "all", true));

  const std::vector<size_t> widths = column_widths(lines);
  std::string text = description(trace) + "\n" + heading(widths);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i == num_head_lines && i > 0) text += rule_line(joined(lines[i], widths).size());
    append_line(text, lines[i].empty() ? "" : joined(lines[i], widths));
  }
  return text;
}

std::string table_legend(const DemoReport& report) {
  return "target    share of the attention weight (softmax over all tokens) that was asked for\n"
         "read      tokens: mean per KV head, an outcome and not a setting; bytes: of what dense attention reads, index included\n"
         "reached   share of the weight that was read: the truth, the library's estimate, its lower bound (" +
         percent_short(report.confidence) +
         " sure)\n"
         "cases     one query of one query head each; hit: truth at least the target; bound ok: truth at least the bound\n"
         "error     length of (sparse - dense output) relative to the dense output; p95: 95 of 100 cases are below\n"
         "one step  median time to decode one query, all heads, " +
         counted(report.options.threads, "thread", "threads") +
         " for dense and sparse; gain: dense / sparse\n"
         "-         not measured: no sample was drawn, so no bound; a step is timed for all heads at once\n";
}

}  // namespace decode_trace
