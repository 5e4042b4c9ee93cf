#include "report_charts.hpp"

#include <set>
#include <span>
#include <utility>

#include "report_text.hpp"
#include "svg_plot.hpp"

namespace decode_trace {
namespace {

constexpr double kWidth = 460.0;

// ---- budget per head

// The queries of one KV head at one target.
struct BudgetLane {
  int kv_head = 0;
  double target = 0.0;
  bool by_error = false;
  std::vector<std::pair<int, double>> tokens;  // query, tokens read

  double share(double quantile_share) const {
    std::vector<double> values;
    for (const auto& [query, count] : tokens) values.push_back(count);
    return quantile(values, quantile_share);
  }
};

constexpr size_t kMaxLanes = 16;  // more would be a wall of dots: then only the headline target is drawn

BudgetLane budget_lane(const TargetRun& run, int kv_head) {
  BudgetLane lane{kv_head, run.target, run.by_error, {}};
  std::set<std::pair<int, int64_t>> seen;  // query heads of a group share one set
  for (const Case& item : run.cases) {
    if (item.kv_head == kv_head && item.tokens > 0 && seen.insert({item.query, item.tokens}).second)
      lane.tokens.push_back({item.query, static_cast<double>(item.tokens)});
  }
  return lane;
}

std::vector<BudgetLane> budget_lanes(const TraceReport& trace) {
  const bool all_targets = trace.runs.size() * static_cast<size_t>(trace.num_kv_heads) <= kMaxLanes;
  std::vector<BudgetLane> lanes;
  for (int kv_head = 0; kv_head < trace.num_kv_heads; ++kv_head) {
    for (size_t i = 0; i < trace.runs.size(); ++i) {
      if (!all_targets && i != headline_index(trace)) continue;
      BudgetLane lane = budget_lane(trace.runs[i], kv_head);
      if (!lane.tokens.empty()) lanes.push_back(std::move(lane));
    }
  }
  return lanes;
}

void draw_lane(SvgCanvas& canvas, const Axis& axis, const BudgetLane& lane, double y, double height) {
  const std::string place = "KV head " + std::to_string(lane.kv_head) + ", target " + target_text(lane.target, lane.by_error);
  for (const auto& [query, count] : lane.tokens) {
    const double offset = 0.055 * height * static_cast<double>(query * 7 % 11 - 5);  // spreads dots that would hide each other
    canvas.circle({axis.at(count), y + offset}, 2.0, "dot",
                  place + ", query " + std::to_string(query) + ": " + grouped(static_cast<int64_t>(count)) + " tokens");
  }
  const double first = axis.at(lane.share(0.25)), median = axis.at(lane.share(0.5)), third = axis.at(lane.share(0.75));
  const std::string tip =
      place + ": half of the queries read " + fixed(lane.share(0.25), 0) + " to " + fixed(lane.share(0.75), 0) + " tokens";
  canvas.rect({first, y - 2.0}, {std::max(third - first, 1.0), 4.0}, "half", tip);
  canvas.line({median, y - 7.0}, {median, y + 7.0}, "median");
  canvas.text({kWidth, y + 4.0}, grouped(std::llround(lane.share(0.5))), "value end");
}

// ---- attained against target

struct RatioSeries {
  const char* name;
  const char* style;
  double Case::*member;
  double ReportRow::*mean;
  double offset;  // markers of one target stand beside each other
};

constexpr RatioSeries kRatioSeries[] = {
    {"true", "truth", &Case::attained, &ReportRow::attained, -6.0},
    {"estimate", "estimate", &Case::estimate, &ReportRow::estimate, 0.0},
    {"bound", "bound", &Case::bound, &ReportRow::bound, 6.0},
};
constexpr RatioSeries kErrorSeries[] = {
    {"true", "truth", &Case::error, &ReportRow::error_mean, -6.0},
    {"estimate", "estimate", &Case::error_estimate, &ReportRow::error_estimate, 0.0},
};
std::span<const RatioSeries> ratio_series(const TraceReport& trace) {
  return by_error(trace) ? std::span<const RatioSeries>(kErrorSeries) : std::span<const RatioSeries>(kRatioSeries);
}

void draw_marker(SvgCanvas& canvas, Point centre, const RatioSeries& series, const std::string& tip) {
  const std::string style = std::string("mark ") + series.style;
  if (series.offset < 0.0) {
    canvas.circle(centre, 4.0, style.c_str(), tip);
  } else if (series.offset == 0.0) {
    canvas.diamond(centre, 5.0, style.c_str(), tip);
  } else {
    canvas.rect({centre.x - 3.5, centre.y - 3.5}, {7.0, 7.0}, style.c_str(), tip);
  }
}

// Ratios are drawn by the share they miss, on a logarithmic axis: 0.9, 0.99 and 0.999 are equal steps, the diagonal stays straight.
// An error is what is missed.
struct RatioPlot {
  Axis x;  // target, as missed()
  Axis y;  // what was reached, as missed()
  bool by_error = false;

  double missed(double value) const { return by_error ? value : 1.0 - value; }
  // A ratio of 1 misses nothing, which no logarithmic axis shows: it stands at the end.
  double at(const Axis& axis, double value) const { return axis.at(std::clamp(missed(value), axis.high, axis.low)); }
};

constexpr double kLeastMissed = 1e-4;  // weights are sums in f32

// Room for the means and nine of ten cases of every series.
RatioPlot ratio_plot(const TraceReport& trace, Point x_range, Point y_range) {
  RatioPlot plot;
  plot.by_error = by_error(trace);
  double most_missed = 0.0, least_missed = 1.0, first = 0.0, last = 1.0;
  for (const TargetRun& run : trace.runs) {
    first = std::max(first, plot.missed(run.target));
    if (run.target < 1.0) last = std::min(last, plot.missed(run.target));
    for (const RatioSeries& series : ratio_series(trace)) {
      const std::vector<double> values = present(run.cases, series.member);
      if (values.empty()) continue;
      const double low = plot.missed(quantile(values, 0.05)), high = plot.missed(quantile(values, 0.95));
      most_missed = std::max({most_missed, low, high, plot.missed(mean(values))});
      least_missed = std::min({least_missed, low, high});
    }
  }
  const bool shows_all = !plot.by_error && trace.rows.back().target >= 1.0;
  first = std::max(first, 1e-3);
  last = std::min(last, first) / (shows_all ? 3.0 : 1.3);
  most_missed = std::clamp(most_missed, first, 1.0);
  least_missed = std::clamp(least_missed, kLeastMissed, 0.5 * most_missed);
  plot.x = {std::min(1.0, 1.3 * first), last, x_range.x, x_range.y, true};
  plot.y = {most_missed, least_missed, y_range.x, y_range.y, true};
  for (const ReportRow& row : trace.rows) {
    plot.x.marks.push_back(std::max(plot.missed(row.target), last));
  }
  return plot;
}

// Whiskers, line and markers; returns the last point.
Point draw_ratio_series(SvgCanvas& canvas, const TraceReport& trace, const RatioSeries& series, const RatioPlot& plot) {
  const std::string style = series.style;
  std::vector<Point> points;
  std::vector<std::string> tips;
  for (size_t i = 0; i < trace.runs.size(); ++i) {
    const double value = trace.rows[i].*series.mean;
    if (std::isnan(value)) continue;
    const Point point{plot.at(plot.x, trace.rows[i].target) + series.offset, plot.at(plot.y, value)};
    const std::vector<double> values = present(trace.runs[i].cases, series.member);
    const double low = quantile(values, 0.05), high = quantile(values, 0.95);
    canvas.line({point.x, plot.at(plot.y, low)}, {point.x, plot.at(plot.y, high)}, ("whisker " + style).c_str());
    points.push_back(point);
    const auto shown = [&](double number) { return plot.by_error ? percent(number) : fixed(number, 3); };
    tips.push_back("target " + target_text(trace.rows[i].target, plot.by_error) + ", " + series.name + ": mean " + shown(value) +
                   ", nine of ten cases " + shown(low) + " to " + shown(high));
  }
  canvas.polyline(points, ("line " + style).c_str());
  for (size_t i = 0; i < points.size(); ++i) draw_marker(canvas, points[i], series, tips[i]);
  return points.back();
}

std::string reached_label(double missed) { return target_text(1.0 - missed); }

}  // namespace

std::string budget_chart(const TraceReport& trace) {
  const std::vector<BudgetLane> lanes = budget_lanes(trace);
  if (lanes.empty()) return "";
  constexpr double kTop = 40.0, kGap = 8.0, kLeft = 118.0, kRight = kWidth - 52.0;
  const double height = std::clamp(256.0 / static_cast<double>(lanes.size()), 19.0, 56.0);  // of a lane
  double fewest = trace.num_tokens;
  for (const BudgetLane& lane : lanes) fewest = std::min(fewest, lane.share(0.0));
  std::vector<double> places;
  double y = kTop;
  for (size_t i = 0; i < lanes.size(); ++i) {
    const bool next_head = i > 0 && lanes[i].kv_head != lanes[i - 1].kv_head && lanes[i].target != lanes[i - 1].target;
    y += (next_head ? kGap : 0.0) + (i > 0 ? height : 0.5 * height);
    places.push_back(y);
  }
  const double bottom = y + 0.5 * height + 4.0;
  const double most = std::max<double>(trace.num_tokens, 2.0);
  const Axis axis{std::min(round_below(fewest), 0.5 * most), most, kLeft, kRight, true};

  SvgCanvas canvas(kWidth, bottom + 46.0,
                   "Tokens read per query, by KV head and target; dense attention reads " + grouped(trace.num_tokens));
  canvas.x_axis(axis, {kTop, bottom}, "tokens read, logarithmic", [](double value) { return grouped(std::llround(value)); });
  canvas.text({0.0, kTop - 8.0}, "KV head", "axis start");
  canvas.text({kLeft - 12.0, kTop - 8.0}, "target", "axis end");
  canvas.text({kWidth, kTop - 8.0}, "median", "axis end");
  canvas.line({kRight, kTop}, {kRight, bottom}, "reference");
  canvas.text({kRight, kTop - 24.0}, "dense: all " + grouped(trace.num_tokens), "note end");
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (i == 0 || lanes[i].kv_head != lanes[i - 1].kv_head)
      canvas.text({0.0, places[i] + 4.0}, std::to_string(lanes[i].kv_head), "value start");
    canvas.text({kLeft - 12.0, places[i] + 4.0}, target_text(lanes[i].target, lanes[i].by_error), "tick end");
    draw_lane(canvas, axis, lanes[i], places[i], height);
  }
  return canvas.str();
}

std::string attained_chart(const TraceReport& trace) {
  const bool errors = by_error(trace);
  if (trace.rows.empty() || std::isnan(errors ? trace.rows.front().error_mean : trace.rows.front().attained)) return "";
  if (trace.rows.front().target >= 1.0) return "";
  constexpr double kTop = 34.0, kBottom = 300.0, kLeft = 42.0, kRight = kWidth - 78.0;
  const RatioPlot plot = ratio_plot(trace, {kLeft, kRight}, {kBottom, kTop});
  SvgCanvas canvas(kWidth, kBottom + 46.0,
                   errors ? "Error of the output against the target error: truth and estimate"
                          : "Share of the attention weight reached against the target: truth, estimate and bound");
  const auto target_label = [&](double missed) {
    return errors ? percent_short(missed) : missed > plot.x.high ? reached_label(missed) : "1.00";
  };
  canvas.x_axis(plot.x, {kTop, kBottom}, errors ? "target error" : "target", target_label);
  canvas.y_axis(plot.y, {kLeft, kRight}, errors ? "error of the output" : "share of the attention weight reached",
                errors ? percent_short : reached_label);
  const double first = std::min(plot.x.low, plot.y.low), last = std::max(plot.x.high, plot.y.high);
  if (first > last) canvas.line({plot.x.at(first), plot.y.at(first)}, {plot.x.at(last), plot.y.at(last)}, "reference");
  canvas.text({kRight - 6.0, kBottom - 24.0}, "below the dashed line", "note end");
  canvas.text({kRight - 6.0, kBottom - 9.0}, "the target was missed", "note end");
  std::vector<Point> ends;
  std::vector<double> wanted;
  std::vector<const RatioSeries*> drawn;
  for (const RatioSeries& series : ratio_series(trace)) {
    const auto has_value = [&](const ReportRow& row) { return !std::isnan(row.*series.mean); };
    if (std::none_of(trace.rows.begin(), trace.rows.end(), has_value)) continue;
    ends.push_back(draw_ratio_series(canvas, trace, series, plot));
    wanted.push_back(ends.back().y);
    drawn.push_back(&series);
  }
  const std::vector<double> places = spread_apart(wanted, 17.0, kTop, kBottom);
  for (size_t i = 0; i < drawn.size(); ++i) {
    canvas.line({ends[i].x + 6.0, ends[i].y}, {kRight + 8.0, places[i]}, (std::string("leader ") + drawn[i]->style).c_str());
    canvas.text({kRight + 11.0, places[i] + 4.0}, drawn[i]->name, (std::string("label start ") + drawn[i]->style).c_str());
  }
  return canvas.str();
}

}  // namespace decode_trace
