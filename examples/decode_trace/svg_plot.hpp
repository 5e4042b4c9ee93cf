// Drawing for report_charts: an SVG canvas and axes. Looks are CSS classes, defined in report_style.hpp.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace decode_trace {

struct Point {
  double x = 0.0;
  double y = 0.0;
};

// From a value to a coordinate of the canvas. `low` may be the larger value: a share that is missed, drawn upwards.
struct Axis {
  double low = 0.0;  // values
  double high = 1.0;
  double from = 0.0;  // coordinates of low and high
  double to = 1.0;
  bool logarithmic = false;
  std::vector<double> marks = {};  // labelled values; if empty, ticks() chooses

  double at(double value) const;
  // The marks, or round values (1, 2, 5 times a power of ten) inside the axis, about `wanted` of them.
  std::vector<double> ticks(int wanted) const;
};

// The nearest round value (1, 2, 5 times a power of ten) that is not above / not below a positive value.
double round_below(double value);
double round_above(double value);

// Moves coordinates apart until neighbours are `gap` from each other, keeping their order and staying inside low..high while that fits.
std::vector<double> spread_apart(const std::vector<double>& wanted, double gap, double low, double high);

// One SVG element; text is escaped here. A tip is shown by the browser when the pointer rests on the shape.
class SvgCanvas {
 public:
  SvgCanvas(double width, double height, const std::string& description);

  void line(Point a, Point b, const char* style);
  void polyline(const std::vector<Point>& points, const char* style);
  void circle(Point centre, double radius, const char* style, const std::string& tip = "");
  void diamond(Point centre, double radius, const char* style, const std::string& tip = "");
  void rect(Point corner, Point size, const char* style, const std::string& tip = "");
  void text(Point anchor, const std::string& content, const char* style);

  // Grid lines, labels and a title: below the plot, left of the plot.
  void x_axis(const Axis& axis, Point y_range, const std::string& title, const std::function<std::string(double)>& label);
  void y_axis(const Axis& axis, Point x_range, const std::string& title, const std::function<std::string(double)>& label);

  std::string str() const { return body_ + "</svg>\n"; }

 private:
  void shape(const std::string& geometry, const char* style, const std::string& tip);

  std::string body_;
};

}  // namespace decode_trace
