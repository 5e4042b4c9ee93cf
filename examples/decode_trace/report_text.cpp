#include "report_text.hpp"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "quorum/core/error.hpp"

namespace decode_trace {

std::string fixed(double value, int decimals, std::string_view missing) {
  if (!std::isfinite(value)) return std::string(missing);
  char buffer[352];  // the longest double has 309 digits before the point
  std::snprintf(buffer, sizeof buffer, "%.*f", decimals, value);
  return buffer;
}

std::string percent(double share, std::string_view missing) {
  if (!std::isfinite(share)) return std::string(missing);
  const double value = 100.0 * share;
  const double size = std::abs(value);
  const bool whole = size == 0.0 || size >= 99.95;
  return fixed(value, whole ? 0 : size < 0.995 ? 2 : 1) + " %";
}

std::string percent_short(double share) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.4g %%", 100.0 * share);
  return buffer;
}

std::string grouped(int64_t count) {
  std::string text = std::to_string(count);
  const size_t first = count < 0 ? 1 : 0;
  for (size_t i = text.size(); i > first + 3;) text.insert(i -= 3, ",");
  return text;
}

std::string counted(int64_t count, const std::string& one, const std::string& many) {
  return grouped(count) + " " + (count == 1 ? one : many);
}

std::string milliseconds(double ms, std::string_view missing) {
  if (!std::isfinite(ms)) return std::string(missing);
  return fixed(ms, ms < 0.9995 ? 3 : ms < 9.995 ? 2 : ms < 99.95 ? 1 : 0);
}

std::string bytes_text(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < 1000) return std::to_string(bytes) + " bytes";
  if (value < 999.5e3) return fixed(value * 1e-3, value < 99.95e3 ? 1 : 0) + " kB";
  if (value < 999.5e6) return fixed(value * 1e-6, value < 99.95e6 ? 1 : 0) + " MB";
  return fixed(value * 1e-9, 1) + " GB";
}

std::string target_text(double target, bool by_error) {
  if (by_error) return percent_short(target);
  int decimals = 2;
  while (decimals < 6 && std::abs(target - std::stod(fixed(target, decimals))) > 1e-9) ++decimals;
  return fixed(target, decimals);
}

double speed_up(double dense_ms, double sparse_ms) { return dense_ms > 0.0 && sparse_ms > 0.0 ? dense_ms / sparse_ms : std::nan(""); }

std::string factor_text(double factor, std::string_view missing) {
  return fixed(factor, factor < 0.995 ? 2 : factor < 9.95 ? 1 : 0, missing);
}

namespace {

// Bytes of the valid UTF-8 sequence at `begin`, 0 if there is none (overlong forms, surrogates and cut sequences are invalid).
size_t sequence_length(std::string_view text, size_t begin) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(begin);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3 : lead >= 0xF0 && lead < 0xF5 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(begin + i) & 0xC0u) != 0x80u) return 0;
  }
  const unsigned second = byte(begin + 1);
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool outside = (lead == 0xED && second > 0x9F) || (lead == 0xF4 && second > 0x8F);
  return overlong || outside ? 0 : length;
}

}  // namespace

std::string to_utf8(std::string_view text) {
  std::string valid;
  for (size_t i = 0; i < text.size();) {
    const size_t length = sequence_length(text, i);
    valid += length == 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(i, length);
    i += length == 0 ? 1 : length;
  }
  return valid;
}

std::string printable(std::string_view text) {
  std::string clean = to_utf8(text);
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return clean;
}

std::string escape_html(std::string_view text) {
  std::string escaped;
  for (const char c : printable(text)) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string quote_json(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : to_utf8(text)) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", static_cast<unsigned>(c));
      quoted += buffer;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

void write_file(const std::string& folder, const std::string& name, const std::string& content) {
  const std::filesystem::path path = std::filesystem::path(folder) / name;
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  if (!file)
    throw quorum::Error(quorum::ErrorCode::io_failure, "decode_trace: " + path.string() + " must be writable, got a refused write");
}

}  // namespace decode_trace
