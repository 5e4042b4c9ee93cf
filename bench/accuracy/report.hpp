// Writes the measured figures: tables for people, JSON for machines.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "bench/accuracy/frontier.hpp"
#include "quorum/core/error.hpp"

namespace accuracy {

// What a reader has to know to use the figures, written into the JSON and below the tables.
inline constexpr const char* kAccounting =
    "Indexed: tokens [4, n - queries); everything else a query sees is always read. tokens: indexed tokens read. bytes_share: keys and "
    "values read (4 head_dim bytes a token, f16) and the rule's index, over dense attention's n 4 head_dim; one set per GQA group. "
    "error: |output - dense| / |dense|. Rules with _own in their name give every query head its own set and count its tokens (with a "
    "certificate a sampled key counts as half a token). Intervals: least and largest over seeds.";

namespace detail {

inline std::string json_text(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\' ? "\\u%04x" : "%c",
                  static_cast<unsigned char>(c));
    out += escaped;
  }
  return out + "\"";
}

inline std::string json_number(double value) {
  char out[32];
  std::snprintf(out, sizeof out, "%.6g", value);
  return std::isfinite(value) ? out : "null";
}

// "name": mean, and its interval if there were several seeds.
inline std::string json_field(const std::string& name, const Repeated& value) {
  std::string out = ", \"" + name + "\": " + json_number(value.mean);
  if (value.min != value.max)
    out += ", \"" + name + "_min\": " + json_number(value.min) + ", \"" + name + "_max\": " + json_number(value.max);
  return out;
}

inline std::string json_row(const Row& row) {
  std::string out = "{\"trace\": " + json_text(row.traces) + ", \"rule\": " + json_text(row.rule);
  out += std::string(", \"") + name_of(row.parameter.kind) + "\": ";
  out += json_number(row.parameter.value) + json_field("tokens", row.tokens) + json_field("bytes_share", row.share);
  out += json_field("error_mean", row.error_mean) + json_field("error_p95", row.error_p95);
  out += row.hit_rate ? json_field("hit_rate", *row.hit_rate) : ", \"hit_rate\": null";
  if (row.reported_share) out += json_field("bytes_share_reported", *row.reported_share);
  return out + json_field("attained_mean", row.attained_mean) + json_field("attained_p01", row.attained_p01) + "}";
}

inline std::string json_frontier_row(const FrontierRow& row) {
  std::string out =
      "{\"traces\": " + json_text(row.traces) + ", \"rule\": " + json_text(row.rule) + ", \"error\": " + json_number(row.error);
  if (row.share) return out + json_field("bytes_share", *row.share) + "}";
  out += ", \"bytes_share\": null, \"";
  return out + (row.always_better ? "bytes_share_below" : "bytes_share_above") + "\": " + json_number(row.limit) + "}";
}

// "0.123 (0.120-0.125)" without the brackets for one seed.
inline std::string interval(const char* format, const Repeated& value, double factor = 1.0) {
  const auto text = [&](double x) {
    char out[32];
    std::snprintf(out, sizeof out, format, x * factor);
    return std::string(out);
  };
  const std::string low = text(value.min), high = text(value.max);
  return low == high ? text(value.mean) : text(value.mean) + " (" + low + "-" + high + ")";
}

// Lines up columns: the first two to the left, the others to the right.
inline void print_table(const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> widths;
  for (const auto& line : lines) {
    widths.resize(std::max(widths.size(), line.size()));
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) std::printf(i < 1 ? "%-*s" : "  %*s", int(widths[i]), line[i].c_str());
    std::printf("\n");
  }
}

}  // namespace detail

// Errors: Error(io_failure) if the file cannot be written.
inline void write_json(const std::string& path, const std::vector<Record>& records) {
  std::ofstream out(path);
  const auto list = [&](const char* name, const auto& items, const auto& text) {
    out << "\"" << name << "\": [";
    for (size_t i = 0; i < items.size(); ++i) out << (i == 0 ? "\n  " : ",\n  ") << text(items[i]);
    out << "\n]";
  };
  out << "{\"accounting\": " << detail::json_text(kAccounting) << ",\n";
  list("rows", make_rows(records, false), detail::json_row);
  out << ",\n";
  list("frontier", make_frontier(records), detail::json_frontier_row);
  out << "}\n";
  out.flush();
  if (!out) quorum::throw_error(quorum::ErrorCode::io_failure, "write_json", "'" + path + "'", "writable", "an error");
}

// Every rule at every target or budget, over the traces of a family.
inline void print_rows(const std::vector<Record>& records, const std::string& family) {
  std::vector<std::vector<std::string>> lines = {
      {"rule", "target", "tokens", "bytes %", "attained", "hit rate", "1st pct", "error", "95th pct"}};
  for (const Row& row : make_rows(records, true)) {
    if (row.traces != family) continue;
    char parameter[32];
    constexpr const char* kFormats[] = {"%.2f", "%.0f tokens", "error %.2f"};
    std::snprintf(parameter, sizeof parameter, kFormats[size_t(row.parameter.kind)], row.parameter.value);
    const bool own = row.rule.find("_own") != std::string::npos;
    const auto mean = [](double value) { return detail::interval("%.3f", {value, value, value}); };
    lines.push_back({row.rule, parameter, detail::interval("%.0f", row.tokens), own ? "" : detail::interval("%.1f", row.share, 100.0),
                     mean(row.attained_mean.mean), row.hit_rate ? detail::interval("%.3f", *row.hit_rate) : "", mean(row.attained_p01.mean),
                     detail::interval("%.3f", row.error_mean), mean(row.error_p95.mean)});
  }
  std::printf("\n%s: each rule at each target\n", family.c_str());
  detail::print_table(lines);
}

// Bytes at equal mean error, in percent of dense attention's.
inline void print_frontier(const std::vector<Record>& records, const std::string& family) {
  std::vector<std::vector<std::string>> lines = {{"rule"}};
  for (const double error : kFrontierErrors) lines[0].push_back(detail::interval("%.0f %%", {error, error, error}, 100.0));
  for (const FrontierRow& row : make_frontier(records)) {
    if (row.traces != family) continue;
    if (lines.back().front() != row.rule) lines.push_back({row.rule});
    lines.back().push_back(row.share
                               ? detail::interval("%.1f", *row.share, 100.0)
                               : (row.always_better ? "< " : "> ") + detail::interval("%.1f", {row.limit, row.limit, row.limit}, 100.0));
  }
  std::printf("\n%s: bytes read in %% of dense attention's, at mean relative output error\n", family.c_str());
  detail::print_table(lines);
}

inline void print_tables(const std::vector<Record>& records) {
  std::vector<std::string> families;
  for (const Record& record : records) {
    if (std::find(families.begin(), families.end(), trace_family(record.trace)) == families.end()) {
      families.push_back(trace_family(record.trace));
    }
  }
  for (const std::string& family : families) {
    print_rows(records, family);
    print_frontier(records, family);
  }
  std::printf("\n%s\n", kAccounting);
}

}  // namespace accuracy
