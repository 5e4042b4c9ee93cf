// What a user of the plug-in can choose: environment variables, read once, each with its rule. Knows nothing of ggml.
#pragma once

#include <cstdlib>
#include <functional>
#include <optional>
#include <sstream>
#include <string>

#include "quorum/core/options.hpp"

namespace quorum_ggml {

struct Settings {
  quorum::DecodeOptions decode;
  quorum::IndexOptions index;
  int min_context = 1024;  // nodes with at most so many cells are left to the CPU backend
  int max_rows = 16;       // query rows of a stream up to which a node is decoded; with more it is prefill
  int threads = 0;         // 0: as many as the engine uses
  std::string stats_file;  // empty: none; "-": standard error
};

// Looks a variable up; null if it is not set.
using Environment = std::function<const char*(const char* name)>;

namespace detail {

[[noreturn]] inline void refuse(const std::string& name, const std::string& rule, const std::string& got) {
  quorum::throw_error(quorum::ErrorCode::invalid_argument, "settings", name, rule, "'" + got + "'");
}

// The value of a variable as a number; nothing if it is unset or empty. The library's own check names the range of options.
template <class Number>
std::optional<Number> number(const Environment& environment, const char* name, Number least, Number most) {
  const char* text = environment(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());  // a decimal point is a point wherever the program runs
  Number value{};
  stream >> std::noskipws >> value;
  if (stream.fail() || !stream.eof() || !(value >= least && value <= most)) {
    std::ostringstream rule;
    rule << "a number from " << least << " to " << most;
    refuse(name, rule.str(), text);
  }
  return value;
}

// The place of a variable's value in a list of words; nothing if it is unset or empty.
inline std::optional<int> word(const Environment& environment, const char* name, std::initializer_list<const char*> words) {
  const char* text = environment(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  std::string rule = "one of";
  for (const char* const& candidate : words) {
    if (std::string(candidate) == text) return int(&candidate - words.begin());
    rule += std::string(" ") + candidate;
  }
  refuse(name, rule, text);
}

}  // namespace detail

// Errors: quorum::Error(invalid_argument) "settings: NAME must be RULE, got 'VALUE'". A target error goes with neither a target ratio nor a
// certificate.
inline Settings read_settings(const Environment& environment) {
  using detail::number;
  Settings settings;
  quorum::DecodeOptions& decode = settings.decode;
  const auto ratio = number(environment, "QUORUM_TARGET_RATIO", 0.01f, 1.0f);
  const auto error = number(environment, "QUORUM_TARGET_ERROR", 0.0001f, 0.5f);
  if (ratio && error) detail::refuse("QUORUM_TARGET_ERROR", "unset with QUORUM_TARGET_RATIO", environment("QUORUM_TARGET_ERROR"));
  decode.target_error = ratio ? 0.0f : error.value_or(0.015f);
  decode.target_ratio = ratio.value_or(decode.target_ratio);
  if (const auto tail = detail::word(environment, "QUORUM_TAIL", {"drop", "estimated", "calibrated"})) decode.tail = quorum::Tail(*tail);
  if (const auto policy = detail::word(environment, "QUORUM_CERTIFICATE", {"off", "accept", "widen", "dense"}); policy.value_or(0) > 0) {
    if (!ratio) detail::refuse("QUORUM_CERTIFICATE", "off without QUORUM_TARGET_RATIO", environment("QUORUM_CERTIFICATE"));
    decode.certificate.enabled = true;
    decode.certificate.policy = quorum::MissPolicy(*policy - 1);
  }
  decode.certificate.confidence = number(environment, "QUORUM_CONFIDENCE", 0.51f, 0.9999f).value_or(decode.certificate.confidence);
  decode.dense_below = number(environment, "QUORUM_DENSE_BELOW", 0, quorum::kMaxCount).value_or(decode.dense_below);
  settings.min_context = number(environment, "QUORUM_MIN_CONTEXT", 0, quorum::kMaxCount).value_or(settings.min_context);
  settings.max_rows = number(environment, "QUORUM_MAX_ROWS", 1, 1024).value_or(settings.max_rows);
  settings.threads = number(environment, "QUORUM_THREADS", 0, 1024).value_or(settings.threads);
  settings.index.num_sink_tokens = number(environment, "QUORUM_SINK_TOKENS", 0, 65536).value_or(settings.index.num_sink_tokens);
  settings.index.window_tokens = number(environment, "QUORUM_WINDOW_TOKENS", 0, 65536).value_or(64);
  if (const char* file = environment("QUORUM_STATS_FILE")) settings.stats_file = file;
  validate(decode, "settings");
  validate(settings.index, "settings");
  return settings;
}

// The environment of the process.
inline Settings read_settings() {
  return read_settings([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace quorum_ggml
