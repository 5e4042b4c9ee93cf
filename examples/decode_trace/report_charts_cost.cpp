// What the choice costs: error against bytes, and time.
#include <cstdio>

#include "report_charts.hpp"
#include "report_text.hpp"
#include "svg_plot.hpp"

namespace decode_trace {
namespace {

constexpr double kWidth = 460.0;

// A logarithmic axis has no place for zero and for what was not measured.
bool is_drawable(const ReportRow& row, double ReportRow::*error) { return row.bytes_share > 0.0 && row.*error > 0.0; }

struct Bounds {
  double low = 1e300;
  double high = 0.0;

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  Axis axis(double from, double to) const {
    const double bottom = round_below(low * 0.97);
    return {bottom, std::max(round_above(high * 1.03), 2.0 * bottom), from, to, true};
  }
};

void include_row(const ReportRow& row, Bounds& bytes, Bounds& errors) {
  for (double ReportRow::*error : {&ReportRow::error_mean, &ReportRow::error_p95}) {
    if (!is_drawable(row, error)) continue;
    bytes.include(row.bytes_share);
    errors.include(row.*error);
  }
}

void draw_head_points(SvgCanvas& canvas, const TraceReport& trace, const Axis& x, const Axis& y) {
  if (trace.num_kv_heads < 2) return;
  for (const HeadRow& head : trace.heads) {
    if (!is_drawable(head.row, &ReportRow::error_mean)) continue;
    canvas.circle({x.at(head.row.bytes_share), y.at(head.row.error_mean)}, 2.5, "dot",
                  "KV head " + std::to_string(head.kv_head) + ", target " + target_text(head.row.target, head.row.by_error) + ": " +
                      percent(head.row.bytes_share) + " of the bytes, mean error " + percent(head.row.error_mean));
  }
}

struct ErrorSeries {
  const char* name;
  const char* style;
  double ReportRow::*error;
};

constexpr ErrorSeries kErrorSeries[] = {{"95th percentile", "quiet", &ReportRow::error_p95}, {"mean", "truth", &ReportRow::error_mean}};

void draw_error_series(SvgCanvas& canvas, const TraceReport& trace, const ErrorSeries& series, const Axis& x, const Axis& y) {
  std::vector<Point> points;
  for (const ReportRow& row : trace.rows) {
    if (is_drawable(row, series.error)) points.push_back({x.at(row.bytes_share), y.at(row.*series.error)});
  }
  if (points.empty()) return;
  const std::string style = series.style;
  canvas.polyline(points, ("line " + style).c_str());
  size_t next = 0;
  for (const ReportRow& row : trace.rows) {
    if (!is_drawable(row, series.error)) continue;
    const Point point = points[next++];
    canvas.circle(point, 4.0, ("mark " + style).c_str(),
                  "target " + target_text(row.target, row.by_error) + ": " + percent(row.bytes_share) + " of the bytes, " + series.name +
                      " error " + percent(row.*series.error));
    if (style == "truth")
      canvas.text({point.x - 7.0, point.y + 14.0}, (next == 1 ? "target " : "") + target_text(row.target, row.by_error), "tick end");
  }
  canvas.text({points.back().x + 9.0, points.back().y + 4.0}, series.name, ("label start " + style).c_str());
}

// Ticks are round: "%g" shows the digits they have.
std::string round_text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.4g", value + 0.0);  // no "-0"
  return buffer;
}

// A bar from zero with the middle half of the repetitions as a thin line, and its number.
struct TimeBar {
  const char* style;
  const std::vector<double>& times;
  double y;
  double height;
};

void draw_bar(SvgCanvas& canvas, const Axis& axis, const TimeBar& bar, const std::string& tip, const std::string& note) {
  const double median = quantile(bar.times, 0.5), first = quantile(bar.times, 0.25), third = quantile(bar.times, 0.75);
  const std::string range = "; half of the steps " + milliseconds(first) + " to " + milliseconds(third) + " ms";
  canvas.rect({axis.from, bar.y}, {std::max(axis.at(median) - axis.from, 1.0), bar.height}, bar.style, tip + range);
  const double middle = bar.y + 0.5 * bar.height;
  canvas.line({axis.at(first), middle}, {axis.at(third), middle}, "spread");
  canvas.text({std::max(axis.at(median), axis.at(third)) + 7.0, middle + 4.0}, note,
              (std::string("value start ") + bar.style + "-text").c_str());
}

}  // namespace

std::string error_chart(const TraceReport& trace) {
  Bounds bytes, errors;
  for (const ReportRow& row : trace.rows) include_row(row, bytes, errors);
  for (const HeadRow& head : trace.heads) {
    if (!is_drawable(head.row, &ReportRow::error_mean)) continue;
    bytes.include(head.row.bytes_share);
    errors.include(head.row.error_mean);
  }
  if (errors.high == 0.0) return "";
  constexpr double kTop = 34.0, kBottom = 300.0, kLeft = 52.0, kRight = kWidth - 100.0;
  const Axis x = bytes.axis(kLeft, kRight);
  const Axis y = errors.axis(kBottom, kTop);
  SvgCanvas canvas(kWidth, kBottom + 46.0,
                   "Relative output error against the share of dense bytes, one point a target, both axes logarithmic");
  canvas.x_axis(x, {kTop, kBottom}, "share of dense bytes read, logarithmic", percent_short);
  canvas.y_axis(y, {kLeft, kRight}, "relative output error, logarithmic", percent_short);
  draw_head_points(canvas, trace, x, y);
  for (const ErrorSeries& series : kErrorSeries) draw_error_series(canvas, trace, series, x, y);
  return canvas.str();
}

std::string time_chart(const TraceReport& trace) {
  double longest = 0.0;
  for (const TargetRun& run : trace.runs) {
    if (run.dense_ms.empty() || run.sparse_ms.empty()) continue;
    longest = std::max({longest, quantile(run.dense_ms, 0.75), quantile(run.sparse_ms, 0.75)});
  }
  if (!(longest > 0.0)) return "";
  constexpr double kTop = 24.0, kGroup = 60.0, kLeft = 100.0, kRight = kWidth - 146.0;
  const double bottom = kTop + kGroup * static_cast<double>(trace.runs.size());
  const Axis axis{0.0, longest * 1.02, kLeft, kRight, false};
  SvgCanvas canvas(kWidth, bottom + 46.0, "Median time of one decode step, dense and sparse, by target");
  canvas.x_axis(axis, {kTop, bottom}, "median time of one decode step, ms", round_text);
  canvas.text({0.0, kTop - 8.0}, "target", "axis start");
  for (size_t i = 0; i < trace.runs.size(); ++i) {
    const TargetRun& run = trace.runs[i];
    if (run.dense_ms.empty() || run.sparse_ms.empty()) continue;
    const double y = kTop + kGroup * static_cast<double>(i) + 9.0;
    const std::string target = target_text(run.target, run.by_error);
    const std::string dense = milliseconds(trace.rows[i].dense_ms) + " ms", sparse = milliseconds(trace.rows[i].sparse_ms) + " ms";
    const double gain = speed_up(trace.rows[i].dense_ms, trace.rows[i].sparse_ms);
    const std::string speed = gain < 1.0 ? factor_text(1.0 / gain) + "× slower" : factor_text(gain) + "× faster";
    canvas.text({0.0, y + 25.0}, target, "value start");
    canvas.text({kLeft - 9.0, y + 13.0}, "dense", "tick end");
    canvas.text({kLeft - 9.0, y + 35.0}, "sparse", "tick end");
    draw_bar(canvas, axis, {"dense", run.dense_ms, y, 18.0}, "target " + target + ", dense: " + dense, dense);
    draw_bar(canvas, axis, {"sparse", run.sparse_ms, y + 22.0, 18.0}, "target " + target + ", sparse: " + sparse, sparse + ", " + speed);
  }
  return canvas.str();
}

}  // namespace decode_trace
