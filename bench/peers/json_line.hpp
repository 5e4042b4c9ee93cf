// One JSON object on one line, for the programs of this folder to hand on what they measured.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace quorum::bench {

class JsonLine {
 public:
  // Texts must need no escapes.
  JsonLine& add(const char* key, const std::string& text) { return append(key, "\"" + text + "\""); }
  JsonLine& add(const char* key, double value) { return append(key, number(value)); }
  JsonLine& add(const char* key, const std::vector<double>& values) {
    std::string list;
    for (const double value : values) list += (list.empty() ? "" : ",") + number(value);
    return append(key, "[" + list + "]");
  }
  std::string str() const { return "{" + body_ + "}"; }

 private:
  static std::string number(double value) {
    if (!std::isfinite(value)) return "null";  // JSON has neither NaN nor infinity
    char text[40];
    std::snprintf(text, sizeof(text), "%.9g", value);
    return text;
  }
  JsonLine& append(const char* key, const std::string& value) {
    body_ += (body_.empty() ? "\"" : ",\"") + std::string(key) + "\":" + value;
    return *this;
  }
  std::string body_;
};

}  // namespace quorum::bench
