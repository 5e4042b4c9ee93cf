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

using Groups = std::vector<ColumnGroup>;

// Bounds and error estimates only where there are any.
Groups column_groups(const TraceReport& trace) {
  Groups groups = {
      {"", {by_error(trace) ? "error" : "target", "KV head"}},
      {"tokens", {"read", "coded"}},
      {"bytes", {"%"}},
      {"weight reached", {"true", "estimate"}},
      {"cases, %", {"hit"}},
      {"error, %", {"mean", "p95"}},
      {"one step, ms", {"dense", "sparse", "gain"}},
  };
  if (has_bounds(trace)) groups[3].columns.push_back("bound"), groups[4].columns.push_back("bound ok");
  if (by_error(trace)) groups[5].columns.push_back("estimate");
  return groups;
}

// percent() without the sign, which stands in the heading.
std::string hundredths(double share) {
  std::string text = percent(share);
  if (text.ends_with(" %")) text.resize(text.size() - 2);
  return text;
}

// Of a KV head, or of all heads: then with the times of a step.
Line cells(const ReportRow& row, const std::string& head, bool with_times, bool with_bound) {
  Line line = {target_text(row.target, row.by_error),
               head,
               fixed(row.tokens, 0),
               fixed(row.coded, 0),
               hundredths(row.bytes_share),
               fixed(row.attained, 3),
               fixed(row.estimate, 3)};
  if (with_bound) line.push_back(fixed(row.bound, 3));
  line.push_back(hundredths(row.hit_rate));
  if (with_bound) line.push_back(hundredths(row.bound_hit_rate));
  line.push_back(hundredths(row.error_mean));
  line.push_back(hundredths(row.error_p95));
  if (row.by_error) line.push_back(hundredths(row.error_estimate));
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
std::vector<size_t> column_widths(const Groups& groups, const std::vector<Line>& lines) {
  std::vector<size_t> widths;
  for (const ColumnGroup& group : groups) {
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

std::string joined(const Groups& groups, const Line& line, const std::vector<size_t>& widths) {
  std::string text;
  size_t column = 0;
  for (const ColumnGroup& group : groups) {
    text += column > 0 ? " | " : " ";
    for (size_t i = 0; i < group.columns.size(); ++i, ++column) text += (i > 0 ? "  " : "") + padded(line[column], widths[column]);
  }
  return text;
}

// Titles of the groups, names of the columns, a rule.
std::string heading(const Groups& groups, const std::vector<size_t>& widths) {
  std::string titles;
  Line names;
  for (const ColumnGroup& group : groups) {
    titles += names.empty() ? " " : " | ";
    const std::string title = group.title;
    titles += title + std::string(group_width(group, widths, names.size()) - title.size(), ' ');
    names.insert(names.end(), group.columns.begin(), group.columns.end());
  }
  std::string text;
  append_line(text, titles);
  append_line(text, joined(groups, names, widths));
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

std::string paths_text(const ReportRow& row) {
  int total = 0;
  for (const int cases : row.paths) total += cases;
  std::string text;
  for (size_t path = 0; path < kNumPaths; ++path) {
    if (row.paths[path] == 0) continue;
    text += (text.empty() ? "" : "; ") + (row.paths[path] == total ? "all " + grouped(total) : grouped(row.paths[path])) + " " +
            (row.paths[path] == 1 ? "case " : "cases ") + path_text(quorum::DecodePath(path));
  }
  return text.empty() ? "no cases" : text;
}

namespace {

// Which ways the cases took: a line for all targets, or one for each where they differ.
std::string paths(const TraceReport& trace) {
  std::string text;
  for (const ReportRow& row : trace.rows) text += " " + target_text(row.target, row.by_error) + ": " + paths_text(row) + "\n";
  const bool all_alike =
      std::all_of(trace.rows.begin(), trace.rows.end(), [&](const ReportRow& row) { return row.paths == trace.rows[0].paths; });
  return all_alike && !trace.rows.empty()
             ? " at every " + std::string(by_error(trace) ? "error" : "target") + ": " + paths_text(trace.rows[0]) + "\n"
             : text;
}

}  // namespace

std::string report_table(const TraceReport& trace) {
  const Groups groups = column_groups(trace);
  const bool with_bound = has_bounds(trace);
  std::vector<Line> lines;  // an empty line separates targets
  for (size_t i = 0; i < trace.heads.size(); ++i) {
    const bool starts_target = i > 0 && trace.heads[i].row.target != trace.heads[i - 1].row.target;
    if (starts_target && trace.num_kv_heads > 1) lines.push_back({});
    lines.push_back(cells(trace.heads[i].row, std::to_string(trace.heads[i].kv_head), false, with_bound));
  }
  if (trace.num_kv_heads == 1) lines.clear();  // its only head is the total
  const size_t num_head_lines = lines.size();
  for (const ReportRow& row : trace.rows) lines.push_back(cells(row, "all", true, with_bound));

  const std::vector<size_t> widths = column_widths(groups, lines);
  std::string text = description(trace) + "\n" + heading(groups, widths);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i == num_head_lines && i > 0) text += rule_line(joined(groups, lines[i], widths).size());
    append_line(text, lines[i].empty() ? "" : joined(groups, lines[i], widths));
  }
  return text + "\n" + paths(trace) + "\n";
}

std::string table_legend(const DemoReport& report) {
  const bool errors = report.options.by_error;
  const bool bounds = std::any_of(report.traces.begin(), report.traces.end(), has_bounds);
  std::string text = errors ? "error     left: error of the output that was asked for, by the library's own estimate\n"
                            : "target    share of the attention weight (softmax over all tokens) that was asked for\n";
  text +=
      "tokens    means per KV head; read: keys and values attended, an outcome and not a setting; coded: weighed by their codes\n"
      "bytes     of what dense attention reads, index, codes and samples included\n"
      "reached   share of the weight that was read: the truth and the library's estimate";
  text += bounds ? ", its lower bound (" + percent_short(report.confidence) + " sure)\n" : "\n";
  text += "cases     one query of one query head each; hit: ";
  text += errors ? "true error at most the one asked for" : "truth at least the target";
  text += bounds ? "; bound ok: truth at least the bound\n" : "\n";
  text += "error     length of (sparse - dense output) relative to the dense output; p95: 95 of 100 cases are below\n";
  if (errors)
    text +=
        "          estimate: what the library expected of that, case by case off by a factor of up to 2.5\n"
        "          heads of a group share the tokens that the worst of them needs: most stay below the error asked for\n";
  text += "one step  median time to decode one query, all heads, " + counted(report.options.threads, "thread", "threads") +
          " for dense and sparse; gain: dense / sparse\n";
  if (!bounds && !errors) text += "--certify adds a lower bound of the share reached, at the price of a sample\n";
  return text;
}

}  // namespace decode_trace
