// From records to tables: means per trace with their spread over seeds, and the bytes each rule needs for a given error.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bench/accuracy/record.hpp"

namespace accuracy {

// Mean relative output errors at which rules are compared.
inline constexpr std::array kFrontierErrors = {0.15, 0.10, 0.07, 0.05, 0.03};

// A figure over seeds.
struct Repeated {
  double mean = 0.0, min = 0.0, max = 0.0;
};

inline Repeated over_seeds(const std::vector<double>& values) {
  Repeated result{0.0, values.at(0), values.at(0)};
  for (const double value : values) {
    result.mean += value / double(values.size());
    result.min = std::min(result.min, value);
    result.max = std::max(result.max, value);
  }
  return result;
}

inline double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

// Quantile by linear interpolation between order statistics.
inline double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double place = q * double(values.size() - 1);
  const auto below = size_t(place), above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - double(below)) * (values[above] - values[below]);
}

// A rule at one parameter, over the KV heads of one trace or of several.
struct Row {
  std::string traces, rule;
  Parameter parameter;
  Repeated tokens, share, error_mean, error_p95, attained_mean, attained_p01;
  std::optional<Repeated> hit_rate;        // rules with a target only
  std::optional<Repeated> reported_share;  // quorum's rules only: bytes as the library reports them
};

// Bytes a rule needs for one mean error, by log-log interpolation between its parameters.
struct FrontierRow {
  std::string traces, rule;
  double error = 0.0;
  std::optional<Repeated> share;  // of the seeds, if all reach the error
  double limit = 0.0;             // else the rule's largest (error never reached) or smallest share (always better)
  bool always_better = false;
};

// Traces of one model and text, whose figures are pooled: the name up to "_layer".
inline std::string trace_family(const std::string& trace) { return trace.substr(0, trace.find("_layer")); }

namespace detail {

struct RecordKey {
  std::string traces, rule;
  double parameter;
  auto operator<=>(const RecordKey&) const = default;
};

// Groups in the order of their first record.
using RecordGroups = std::vector<std::vector<const Record*>>;

inline RecordGroups group_records(const std::vector<Record>& records, bool by_family) {
  RecordGroups groups;
  std::map<RecordKey, size_t> place;
  for (const Record& record : records) {
    const RecordKey key{by_family ? trace_family(record.trace) : record.trace, record.rule, record.parameter.value};
    const auto [it, is_new] = place.emplace(key, groups.size());
    if (is_new) groups.emplace_back();
    groups[it->second].push_back(&record);
  }
  return groups;
}

// All values of one seed's records, one after the other.
template <class Member>
std::vector<double> pool(const std::vector<const Record*>& records, int seed, Member member) {
  std::vector<double> values;
  for (const Record* record : records) {
    if (record->seed != seed) continue;
    const std::vector<double>& part = member(*record);
    values.insert(values.end(), part.begin(), part.end());
  }
  return values;
}

inline std::vector<int> seeds_of(const std::vector<const Record*>& records) {
  std::vector<int> seeds;
  for (const Record* record : records) {
    if (std::find(seeds.begin(), seeds.end(), record->seed) == seeds.end()) seeds.push_back(record->seed);
  }
  return seeds;
}

// One figure of a group, computed seed by seed.
template <class Member, class Figure>
Repeated repeat(const std::vector<const Record*>& records, Member member, Figure figure) {
  std::vector<double> values;
  for (const int seed : seeds_of(records)) values.push_back(figure(pool(records, seed, member)));
  return over_seeds(values);
}

inline Row make_row(const std::vector<const Record*>& records, std::string traces) {
  const Record& any = *records.front();
  const auto tokens = [](const Record& r) -> const auto& { return r.tokens; };
  const auto share = [](const Record& r) -> const auto& { return r.share; };
  const auto error = [](const Record& r) -> const auto& { return r.quality.error; };
  const auto attained = [](const Record& r) -> const auto& { return r.quality.attained; };
  Row row{std::move(traces), any.rule, any.parameter, {}, {}, {}, {}, {}, {}, {}, {}};
  row.tokens = repeat(records, tokens, mean_of);
  row.share = repeat(records, share, mean_of);
  row.error_mean = repeat(records, error, mean_of);
  row.error_p95 = repeat(records, error, [](const auto& v) { return quantile(v, 0.95); });
  row.attained_mean = repeat(records, attained, mean_of);
  row.attained_p01 = repeat(records, attained, [](const auto& v) { return quantile(v, 0.01); });
  if (!any.reported_share.empty()) {
    row.reported_share = repeat(
        records, [](const Record& r) -> const auto& { return r.reported_share; }, mean_of);
  }
  if (any.parameter.kind == Parameter::Kind::ratio) {
    row.hit_rate = repeat(records, attained, [&](const auto& v) {
      return double(std::count_if(v.begin(), v.end(), [&](double a) { return a >= any.parameter.value; })) / double(v.size());
    });
  }
  return row;
}

// Share at which a curve of (share, error) points meets an error. Points are sorted by share; a larger share never counts as worse.
inline FrontierRow meet(std::vector<std::pair<double, double>> points, double error) {
  std::sort(points.begin(), points.end());
  for (size_t i = 1; i < points.size(); ++i) points[i].second = std::min(points[i].second, points[i - 1].second);
  FrontierRow row{{}, {}, error, {}, points.back().first, false};
  if (points.front().second < error) {
    row.limit = points.front().first;
    row.always_better = true;
    return row;
  }
  if (points.back().second > error) return row;
  std::reverse(points.begin(), points.end());  // errors ascend
  size_t i = 0;
  while (i + 1 < points.size() && points[i + 1].second <= error) ++i;
  double log_share = std::log(points[i].first);
  if (i + 1 < points.size()) {
    const double low = std::log(points[i].second), high = std::log(points[i + 1].second);
    log_share += (std::log(points[i + 1].first) - log_share) * (std::log(error) - low) / (high - low);
  }
  const double share = std::exp(log_share);
  row.share = Repeated{share, share, share};
  return row;
}

}  // namespace detail

// One row per trace (or per family of traces), rule and parameter; rows of a rule follow one another.
inline std::vector<Row> make_rows(const std::vector<Record>& records, bool by_family) {
  std::vector<Row> rows;
  for (const auto& group : detail::group_records(records, by_family)) {
    rows.push_back(detail::make_row(group, by_family ? trace_family(group.front()->trace) : group.front()->trace));
  }
  std::map<std::string, size_t> trace_place, rule_place;
  for (const Row& row : rows) {
    trace_place.emplace(row.traces, trace_place.size());
    rule_place.emplace(row.rule, rule_place.size());
  }
  std::stable_sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    return std::pair(trace_place[a.traces], rule_place[a.rule]) < std::pair(trace_place[b.traces], rule_place[b.rule]);
  });
  return rows;
}

namespace detail {

// The points of one rule on one family of traces, seed by seed.
struct Curve {
  std::string traces, rule;
  std::map<int, std::vector<std::pair<double, double>>> points;  // seed -> (share, mean error) of each parameter
};

inline std::vector<Curve> make_curves(const std::vector<Record>& records) {
  std::vector<Curve> curves;
  std::map<std::pair<std::string, std::string>, size_t> place;
  for (const auto& group : group_records(records, true)) {
    const std::string& rule = group.front()->rule;
    if (rule.find("_own") != std::string::npos) continue;
    const std::string family = trace_family(group.front()->trace);
    const auto [it, is_new] = place.emplace(std::pair(family, rule), curves.size());
    if (is_new) curves.push_back({family, rule, {}});
    for (const int seed : seeds_of(group)) {
      const auto share = pool(
          group, seed, [](const Record& r) -> const auto& { return r.share; });
      const auto error = pool(
          group, seed, [](const Record& r) -> const auto& { return r.quality.error; });
      curves[it->second].points[seed].emplace_back(mean_of(share), mean_of(error));
    }
  }
  return curves;
}

}  // namespace detail

// One row per family of traces, rule and error. Rules whose sets are each head's own have no bytes to compare and are left out.
inline std::vector<FrontierRow> make_frontier(const std::vector<Record>& records) {
  std::vector<FrontierRow> frontier;
  for (const detail::Curve& curve : detail::make_curves(records)) {
    for (const double error : kFrontierErrors) {
      FrontierRow row;
      std::vector<double> shares;
      bool reached = true;
      for (const auto& [seed, points] : curve.points) {
        row = detail::meet(points, error);
        reached = reached && row.share.has_value();
        if (row.share) shares.push_back(row.share->mean);
      }
      row.share = reached ? std::optional(over_seeds(shares)) : std::nullopt;
      row.traces = curve.traces;
      row.rule = curve.rule;
      frontier.push_back(std::move(row));
    }
  }
  return frontier;
}

}  // namespace accuracy
