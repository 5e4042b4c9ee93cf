// Numbers and text as the reports write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace decode_trace {

// printf's "%.*f"; `missing` for NaN.
std::string fixed(double value, int decimals, std::string_view missing = "-");

// 0.0461 -> "4.6 %", 0.00461 -> "0.46 %", 1 -> "100 %"; `missing` for NaN.
std::string percent(double share, std::string_view missing = "-");

// Without trailing zeros: 0.9 -> "90 %", 0.002 -> "0.2 %".
std::string percent_short(double share);

// 8192 -> "8,192".
std::string grouped(int64_t count);

// grouped() with the noun that fits: "1 KV head", "3 KV heads".
std::string counted(int64_t count, const std::string& one, const std::string& many);

// 2 to 3 significant digits without a unit: 0.213, 1.52, 12.4, 248.
std::string milliseconds(double ms, std::string_view missing = "-");

// 402653 -> "403 kB", 6291456 -> "6.3 MB".
std::string bytes_text(int64_t bytes);

// Two decimals, or as many as tell the target apart from its two decimals: 0.90, 0.995.
// An error of the output: "5 %".
std::string target_text(double target, bool by_error = false);

// dense / sparse; NaN if a time is missing or not positive.
double speed_up(double dense_ms, double sparse_ms);

// Two significant digits below ten, whole above: 3.4, 0.83, 12; `missing` for NaN.
std::string factor_text(double factor, std::string_view missing = "-");

// Invalid UTF-8 becomes U+FFFD, byte by byte.
std::string to_utf8(std::string_view text);

// Valid UTF-8 without control characters: names from files, for terminals and pages.
std::string printable(std::string_view text);

// For text and attributes of HTML and SVG.
std::string escape_html(std::string_view text);

// With the quotes.
std::string quote_json(std::string_view text);

// Makes the folder if it is missing and replaces the file.
//
// Errors: quorum::Error(io_failure) naming the file.
void write_file(const std::string& folder, const std::string& name, const std::string& content);

}  // namespace decode_trace
