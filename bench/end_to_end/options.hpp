// The options that a setting may name: one line each, and nothing else to change for a number. Words are numbered in settings.py.
#pragma once

#include <cmath>
#include <string>

#include "quorum/core/options.hpp"

namespace quorum::bench {

struct LaneOptions {
  IndexOptions index;
  DecodeOptions decode;
  bool errors = false;  // also attend densely to the lane's own cache and report how far each head's output is from that
};

struct LaneOption {
  const char* name;
  void (*set)(LaneOptions&, double);
};

inline int whole(const char* name, double number) {
  require(number == std::floor(number) && std::abs(number) <= kMaxCount, "lane_create", name, "a whole number to 2^30", number);
  return int(number);
}

inline constexpr LaneOption kLaneOptions[] = {
    {"ratio", [](LaneOptions& to, double number) { to.decode.target_ratio = float(number); }},
    {"budget", [](LaneOptions& to, double number) { to.decode.fixed_budget = whole("budget", number); }},
    {"tail", [](LaneOptions& to, double number) { to.decode.tail = Tail(whole("tail", number)); }},
    {"samples", [](LaneOptions& to, double number) { to.decode.num_samples = whole("samples", number); }},
    {"certificate", [](LaneOptions& to, double number) { to.decode.certificate.enabled = number != 0.0; }},
    {"confidence", [](LaneOptions& to, double number) { to.decode.certificate.confidence = float(number); }},
    {"error", [](LaneOptions& to, double number) { to.decode.target_error = float(number); }},
    {"unit", [](LaneOptions& to, double number) { to.decode.unit = ReadUnit(whole("unit", number)); }},
    {"coverage", [](LaneOptions& to, double number) { to.decode.candidate_coverage = float(number); }},
    {"codes", [](LaneOptions& to, double number) { to.index.residual_codes = number != 0.0; }},
    {"cluster", [](LaneOptions& to, double number) { to.index.cluster_size = whole("cluster", number); }},
    {"window", [](LaneOptions& to, double number) { to.index.window_tokens = whole("window", number); }},
    {"shrinkage", [](LaneOptions& to, double number) { to.index.metric_shrinkage = float(number); }},  // 1: queries do not shape the index
    {"recluster", [](LaneOptions& to, double number) { to.index.recluster_every = whole("recluster", number); }},
    {"errors", [](LaneOptions& to, double number) { to.errors = number != 0.0; }},
};

// Errors: Error(invalid_argument) on an unknown name, naming the known ones.
inline void set_option(LaneOptions& options, const std::string& name, double number) {
  std::string known;
  for (const LaneOption& option : kLaneOptions) {
    if (name == option.name) return option.set(options, number);
    known += (known.empty() ? "one of " : ", ") + std::string(option.name);
  }
  throw_error(ErrorCode::invalid_argument, "lane_create", "option", known, name);
}

}  // namespace quorum::bench
