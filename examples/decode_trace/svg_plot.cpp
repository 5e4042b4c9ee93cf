#include "svg_plot.hpp"

#include <algorithm>
#include <cmath>

#include "report_text.hpp"

namespace decode_trace {
namespace {

constexpr double kCharacterWidth = 7.5;  // of a digit at the size narrow screens get

constexpr double kRoundSteps[] = {1.0, 2.0, 5.0, 10.0};

std::string number(double coordinate) {
  std::string text = fixed(coordinate, 1, "0");
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

std::string attribute(const char* name, double value) { return std::string(" ") + name + "=\"" + number(value) + "\""; }

// A multiple of a round step counts as inside although the last bit says otherwise.
constexpr double kSlack = 1e-9;

}  // namespace

double Axis::at(double value) const {
  const double share = logarithmic ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
  return from + share * (to - from);
}

std::vector<double> Axis::ticks(int wanted) const {
  if (!marks.empty()) return marks;
  std::vector<double> values;
  if (logarithmic) {
    const double least = std::min(low, high), most = std::max(low, high);
    const bool all_steps = std::log10(most / least) * 3.0 <= 1.5 * wanted;
    for (double decade = std::pow(10.0, std::floor(std::log10(least))); decade <= most * (1.0 + kSlack); decade *= 10.0) {
      for (const double step : {1.0, 2.0, 5.0}) {
        const double value = step * decade;
        if ((all_steps || step == 1.0) && value >= least * (1.0 - kSlack) && value <= most * (1.0 + kSlack)) values.push_back(value);
      }
    }
    return values;
  }
  const double step = round_above((high - low) / wanted);
  for (double i = std::ceil(low / step - kSlack); i * step <= high + kSlack * step; ++i) values.push_back(i * step);
  return values;
}

double round_below(double value) {
  const double decade = std::pow(10.0, std::floor(std::log10(value)));
  double best = decade;
  for (const double step : kRoundSteps) {
    if (step * decade <= value * (1.0 + kSlack)) best = step * decade;
  }
  return best;
}

double round_above(double value) {
  const double decade = std::pow(10.0, std::floor(std::log10(value)));
  for (const double step : kRoundSteps) {
    if (step * decade >= value * (1.0 - kSlack)) return step * decade;
  }
  return 10.0 * decade;
}

std::vector<double> spread_apart(const std::vector<double>& wanted, double gap, double low, double high) {
  std::vector<size_t> order(wanted.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return wanted[a] < wanted[b]; });
  std::vector<double> places = wanted;
  // Enough sweeps for a handful of labels: every pair that is too close is moved apart evenly.
  for (int sweep = 0; sweep < 100; ++sweep) {
    for (size_t i = 1; i < order.size(); ++i) {
      double& first = places[order[i - 1]];
      double& second = places[order[i]];
      const double overlap = gap - (second - first);
      if (overlap <= 0.0) continue;
      first -= 0.5 * overlap;
      second += 0.5 * overlap;
    }
    for (double& place : places) place = std::clamp(place, low, high);
  }
  return places;
}

SvgCanvas::SvgCanvas(double width, double height, const std::string& description) {
  body_ =
      "<svg viewBox=\"0 0 " + number(width) + " " + number(height) + "\" role=\"img\" aria-label=\"" + escape_html(description) + "\">\n";
}

void SvgCanvas::shape(const std::string& geometry, const char* style, const std::string& tip) {
  body_ += "<" + geometry + " class=\"" + style + "\"";
  const std::string tag = geometry.substr(0, geometry.find(' '));
  body_ += tip.empty() ? "/>\n" : "><title>" + escape_html(tip) + "</title></" + tag + ">\n";
}

void SvgCanvas::line(Point a, Point b, const char* style) {
  shape("line" + attribute("x1", a.x) + attribute("y1", a.y) + attribute("x2", b.x) + attribute("y2", b.y), style, "");
}

void SvgCanvas::polyline(const std::vector<Point>& points, const char* style) {
  std::string list;
  for (const Point& point : points) list += (list.empty() ? "" : " ") + number(point.x) + "," + number(point.y);
  shape("polyline points=\"" + list + "\"", style, "");
}

void SvgCanvas::circle(Point centre, double radius, const char* style, const std::string& tip) {
  shape("circle" + attribute("cx", centre.x) + attribute("cy", centre.y) + attribute("r", radius), style, tip);
}

void SvgCanvas::diamond(Point centre, double radius, const char* style, const std::string& tip) {
  const std::string left = number(centre.x - radius), right = number(centre.x + radius), x = number(centre.x), y = number(centre.y);
  const std::string top = number(centre.y - radius), bottom = number(centre.y + radius);
  shape("polygon points=\"" + left + "," + y + " " + x + "," + top + " " + right + "," + y + " " + x + "," + bottom + "\"", style, tip);
}

void SvgCanvas::rect(Point corner, Point size, const char* style, const std::string& tip) {
  shape(
      "rect" + attribute("x", corner.x) + attribute("y", corner.y) + attribute("width", size.x) + attribute("height", size.y) + " rx=\"2\"",
      style, tip);
}

void SvgCanvas::text(Point anchor, const std::string& content, const char* style) {
  body_ += "<text" + attribute("x", anchor.x) + attribute("y", anchor.y) + " class=\"" + style + "\">" + escape_html(content) + "</text>\n";
}

void SvgCanvas::x_axis(const Axis& axis, Point y_range, const std::string& title, const std::function<std::string(double)>& label) {
  std::vector<double> ticks = axis.ticks(6);
  for (const double tick : ticks) line({axis.at(tick), y_range.x}, {axis.at(tick), y_range.y}, "grid");
  // Powers of ten first; then whatever has room.
  const auto is_decade = [](double tick) { return std::abs(std::log10(tick) - std::round(std::log10(tick))) < kSlack; };
  if (axis.logarithmic) std::stable_partition(ticks.begin(), ticks.end(), is_decade);
  std::vector<Point> taken;  // left and right end of a label
  for (const double tick : ticks) {
    const std::string content = label(tick);
    const double half = 0.5 * kCharacterWidth * static_cast<double>(content.size() + 1);
    const Point ends{axis.at(tick) - half, axis.at(tick) + half};
    if (std::any_of(taken.begin(), taken.end(), [&](Point other) { return ends.x < other.y && other.x < ends.y; })) continue;
    taken.push_back(ends);
    text({axis.at(tick), y_range.y + 17.0}, content, "tick middle");
  }
  text({0.5 * (axis.from + axis.to), y_range.y + 37.0}, title, "axis middle");
}

void SvgCanvas::y_axis(const Axis& axis, Point x_range, const std::string& title, const std::function<std::string(double)>& label) {
  for (const double tick : axis.ticks(5)) {
    line({x_range.x, axis.at(tick)}, {x_range.y, axis.at(tick)}, "grid");
    text({x_range.x - 7.0, axis.at(tick) + 4.0}, label(tick), "tick end");
  }
  // Above the plot and level, so that nobody has to tilt their head.
  text({0.0, axis.to - 14.0}, title, "axis start");
}

}  // namespace decode_trace
