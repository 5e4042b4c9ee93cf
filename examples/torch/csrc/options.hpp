// The options that a dictionary from Python may name: the members of IndexOptions and DecodeOptions, by their own names.
#pragma once

#include <torch/custom_class.h>

#include <cmath>
#include <string>

#include "quorum/core/options.hpp"

namespace quorum::torch_adapter {

using OptionDict = c10::Dict<std::string, double>;

inline int whole(const char* name, double number) {
  require(number == std::floor(number) && std::abs(number) <= kMaxCount, "options", name, "a whole number to 2^30", number);
  return int(number);
}
// An enumeration's value by its number, `count` values.
template <class Enum>
Enum word(const char* name, double number, int count) {
  require(number >= 0 && number < count && number == std::floor(number), "options", name, "the number of one of the words", number);
  return Enum(int(number));
}

template <class Options>
struct Option {
  const char* name;
  void (*set)(Options&, const char*, double);
};

inline constexpr Option<IndexOptions> kIndexOptions[] = {
    {"cluster_size", [](IndexOptions& to, const char* name, double x) { to.cluster_size = whole(name, x); }},
    {"segment_tokens", [](IndexOptions& to, const char* name, double x) { to.segment_tokens = whole(name, x); }},
    {"iterations", [](IndexOptions& to, const char* name, double x) { to.iterations = whole(name, x); }},
    {"num_sink_tokens", [](IndexOptions& to, const char* name, double x) { to.num_sink_tokens = whole(name, x); }},
    {"window_tokens", [](IndexOptions& to, const char* name, double x) { to.window_tokens = whole(name, x); }},
    {"recluster_every", [](IndexOptions& to, const char* name, double x) { to.recluster_every = whole(name, x); }},
    {"merge_tokens", [](IndexOptions& to, const char* name, double x) { to.merge_tokens = whole(name, x); }},
    {"pieces_per_append", [](IndexOptions& to, const char* name, double x) { to.pieces_per_append = whole(name, x); }},
    {"metric_shrinkage", [](IndexOptions& to, const char*, double x) { to.metric_shrinkage = float(x); }},
    {"residual_codes", [](IndexOptions& to, const char*, double x) { to.residual_codes = x != 0.0; }},
    {"seed", [](IndexOptions& to, const char* name, double x) { to.seed = uint64_t(whole(name, x)); }},
};

inline constexpr Option<DecodeOptions> kDecodeOptions[] = {
    {"target_ratio", [](DecodeOptions& to, const char*, double x) { to.target_ratio = float(x); }},
    {"target_error", [](DecodeOptions& to, const char*, double x) { to.target_error = float(x); }},
    {"fixed_budget", [](DecodeOptions& to, const char* name, double x) { to.fixed_budget = whole(name, x); }},
    {"min_tokens", [](DecodeOptions& to, const char* name, double x) { to.min_tokens = whole(name, x); }},
    {"max_tokens", [](DecodeOptions& to, const char* name, double x) { to.max_tokens = whole(name, x); }},
    {"tail", [](DecodeOptions& to, const char* name, double x) { to.tail = word<Tail>(name, x, 3); }},
    {"certificate", [](DecodeOptions& to, const char*, double x) { to.certificate.enabled = x != 0.0; }},
    {"policy", [](DecodeOptions& to, const char* name, double x) { to.certificate.policy = word<MissPolicy>(name, x, 3); }},
    {"confidence", [](DecodeOptions& to, const char*, double x) { to.certificate.confidence = float(x); }},
    {"max_rounds", [](DecodeOptions& to, const char* name, double x) { to.certificate.max_rounds = whole(name, x); }},
    {"num_samples", [](DecodeOptions& to, const char* name, double x) { to.num_samples = whole(name, x); }},
    {"scope", [](DecodeOptions& to, const char* name, double x) { to.scope = word<SelectionScope>(name, x, 2); }},
    {"unit", [](DecodeOptions& to, const char* name, double x) { to.unit = word<ReadUnit>(name, x, 3); }},
    {"rows", [](DecodeOptions& to, const char* name, double x) { to.rows = word<RowSets>(name, x, 2); }},
    {"candidate_coverage", [](DecodeOptions& to, const char*, double x) { to.candidate_coverage = float(x); }},
    {"dense_below", [](DecodeOptions& to, const char* name, double x) { to.dense_below = whole(name, x); }},
    {"seed", [](DecodeOptions& to, const char* name, double x) { to.seed = uint64_t(whole(name, x)); }},
};

// Errors: Error(invalid_argument) on an unknown name, naming the known ones. What is not named keeps the library's default.
template <class Options, size_t N>
Options read_options(const OptionDict& dict, const Option<Options> (&known)[N]) {
  Options options;
  for (const auto& entry : dict) {
    std::string names;
    bool found = false;
    for (const Option<Options>& option : known) {
      names += (names.empty() ? "one of " : ", ") + std::string(option.name);
      if (entry.key() != option.name) continue;
      option.set(options, option.name, entry.value());
      found = true;
    }
    if (!found) throw_error(ErrorCode::invalid_argument, "options", "name", names, entry.key());
  }
  return options;
}

inline IndexOptions index_options(const OptionDict& dict) { return read_options(dict, kIndexOptions); }
inline DecodeOptions decode_options(const OptionDict& dict) { return read_options(dict, kDecodeOptions); }

}  // namespace quorum::torch_adapter
