#include "options.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <thread>

#include "quorum/core/error.hpp"

namespace decode_trace {
namespace {

constexpr const char* kProgram = "decode_trace";
constexpr const char* kDefaultTrace = "smollm2_135m_kjv_8k_layer12.safetensors";
constexpr int kMaxThreads = 1024;      // quorum::DecodeLimits::num_workers
constexpr int kMaxClusterSize = 1024;  // quorum::IndexOptions::cluster_size
constexpr size_t kMaxTargets = 16;     // the charts stay readable

[[noreturn]] void reject(const std::string& option, const std::string& rule, const std::string& value) {
  quorum::throw_error(quorum::ErrorCode::invalid_argument, kProgram, option, rule, "'" + value + "'");
}

// The whole of `text` as a number; false if anything is left over or it does not fit.
template <class Number>
bool read_number(const std::string& text, Number& number) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  return error == std::errc() && stop == end;
}

int read_integer(const std::string& option, const std::string& value, int most) {
  int number = 0;
  if (!read_number(value, number) || number < 1 || number > most) reject(option, "a whole number from 1 to " + std::to_string(most), value);
  return number;
}

// Shares of the weight go up to 1, errors stay below it.
std::vector<double> read_targets(const std::string& option, const std::string& value, bool by_error) {
  const std::string range = by_error ? "above 0 and below 1" : "above 0 and up to 1";
  std::vector<double> targets;
  for (size_t begin = 0; begin <= value.size();) {
    const size_t end = std::min(value.find(',', begin), value.size());
    double target = 0.0;
    const bool is_number = read_number(value.substr(begin, end - begin), target);
    if (!is_number || !(target > 0.0 && (target < 1.0 || (target == 1.0 && !by_error))))
      reject(option, "numbers " + range + ", separated by commas", value);
    targets.push_back(target);
    begin = end + 1;
  }
  std::sort(targets.begin(), targets.end());
  if (std::adjacent_find(targets.begin(), targets.end()) != targets.end()) reject(option, "different numbers", value);
  if (targets.size() > kMaxTargets) reject(option, "at most " + std::to_string(kMaxTargets) + " numbers", value);
  return targets;
}

quorum::Tail read_tail(const std::string& option, const std::string& value) {
  for (const quorum::Tail tail : {quorum::Tail::drop, quorum::Tail::estimated, quorum::Tail::calibrated}) {
    if (value == quorum::tail_name(tail)) return tail;
  }
  reject(option, "drop, estimated or calibrated", value);
}

quorum::ReadUnit read_unit(const std::string& option, const std::string& value) {
  for (const quorum::ReadUnit unit : {quorum::ReadUnit::clusters, quorum::ReadUnit::tokens, quorum::ReadUnit::automatic}) {
    if (value == unit_name(unit)) return unit;
  }
  reject(option, "clusters, tokens or automatic", value);
}

uint64_t read_seed(const std::string& option, const std::string& value) {
  uint64_t seed = 0;
  if (!read_number(value, seed)) reject(option, "a whole number from 0 to 18446744073709551615", value);
  return seed;
}

bool is_switch(const std::string& name) { return name == "--certify" || name == "--help" || name == "-h"; }

bool takes_value(const std::string& name) {
  const char* const names[] = {"--target",       "--target-error", "--unit",   "--tail",    "--threads",
                               "--cluster-size", "--seed",         "--output", "--data-dir"};
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

void apply_switch(Options& options, const std::string& name) { (name == "--certify" ? options.certify : options.help) = true; }

void apply_value(Options& options, const std::string& name, const std::string& value) {
  if (name == "--target" || name == "--target-error") {
    options.by_error = name == "--target-error";
    options.targets = read_targets(name, value, options.by_error);
  } else if (name == "--unit") {
    options.unit = read_unit(name, value);
  } else if (name == "--tail") {
    options.tail = read_tail(name, value);
  } else if (name == "--threads") {
    options.threads = read_integer(name, value, kMaxThreads);
  } else if (name == "--cluster-size") {
    options.cluster_size = read_integer(name, value, kMaxClusterSize);
  } else if (name == "--seed") {
    options.seed = read_seed(name, value);
  } else {
    if (value.empty()) reject(name, "the name of a folder", value);
    (name == "--output" ? options.output : options.data_dir) = value;
  }
}

}  // namespace

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  options.threads = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  bool only_traces = false;  // after "--"
  bool has_share = false, has_error = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.empty()) reject("trace", "the name of a file", argument);
    if (only_traces || argument[0] != '-') {
      options.traces.push_back(argument);
      continue;
    }
    if (argument == "--") {
      only_traces = true;
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const bool has_value = equals != std::string::npos;
    if (is_switch(name)) {
      if (has_value) reject(name, "given without a value", argument);
      apply_switch(options, name);
    } else if (takes_value(name)) {
      const bool next_is_value = i + 1 < arguments.size() && !arguments[i + 1].starts_with("--");
      if (!has_value && !next_is_value) reject(name, "followed by a value", i + 1 < arguments.size() ? arguments[i + 1] : "");
      apply_value(options, name, has_value ? argument.substr(equals + 1) : arguments[++i]);
      has_share = has_share || name == "--target";
      has_error = has_error || name == "--target-error";
    } else {
      reject("option", "one that --help lists", name);
    }
  }
  if (has_error) {
    if (has_share) reject("--target-error", "given without --target", "both");
    if (options.unit == quorum::ReadUnit::clusters) reject("--target-error", "given without --unit clusters", "both");
    if (options.certify) reject("--target-error", "given without --certify", "both");
  }
  return options;
}

const char* unit_name(quorum::ReadUnit unit) {
  return unit == quorum::ReadUnit::clusters ? "clusters" : unit == quorum::ReadUnit::tokens ? "tokens" : "automatic";
}

std::string help_text() {
  return std::string(
             R"(decode_trace: sparse attention with a dynamic budget, next to dense attention, on keys, queries and values of a real model.

usage: decode_trace [trace.safetensors ...] [options]

Builds the index over a recorded context, decodes every recorded query dense and sparse, prints what was read, reached, lost
and gained, and writes report.json and report.html. Without a trace: the one that comes with the repository.

  --target LIST        shares of the attention weight to reach, above 0 and up to 1, by commas (default 0.5,0.8,0.9,0.95)
  --target-error LIST  instead: errors of the output to stay at, by the library's own estimate, above 0 and below 1, e.g. 0.03,0.05,0.08
  --unit KIND          what is chosen and read (default automatic)
                         tokens      single tokens, by codes of one bit for each dimension
                         clusters    whole clusters; the index then has no codes
                         automatic   single tokens, and everything where so many are needed that this is cheaper
  --tail KIND          what happens to the tokens that are not read (default calibrated)
                         drop        left out
                         estimated   their clusters' mean values, weighted by the estimates of codes and clusters
                         calibrated  the same values; their total weight is also measured on a sample of their keys
                                     where there is one (whole clusters, --certify)
  --certify            measure the reached share on a sample too, and read on while its lower bound misses the target
  --threads N          threads for both dense and sparse, 1 to 1024 (default: all of this machine)
  --cluster-size N     mean tokens per cluster, 1 to 1024 (default )") +
         std::to_string(Options{}.cluster_size) +
         R"(); about 16 suits --unit clusters
  --seed N             seed of the index and of the sample (default 1)
  --output DIR         folder for report.json and report.html, made if missing (default build/demo)
  --data-dir DIR       where the repository's trace lies (default examples/data)
  --help, -h           this text
  --                   everything after it is a trace, even if it begins with a dash

Exit status: 0 done, 1 a trace could not be read or a report not written, 2 wrong options.
)";
}

std::string default_trace(const Options& options) {
  std::vector<std::filesystem::path> folders = {options.data_dir};
  if (options.data_dir.empty()) {
    folders = {std::filesystem::path("examples") / "data"};
#ifdef QUORUM_EXAMPLE_DATA
    folders.push_back(QUORUM_EXAMPLE_DATA);
#endif
  }
  for (const auto& folder : folders) {
    std::error_code ignored;
    if (std::filesystem::is_regular_file(folder / kDefaultTrace, ignored)) return (folder / kDefaultTrace).string();
  }
  throw quorum::Error(quorum::ErrorCode::io_failure, std::string(kProgram) + ": trace must be named, or " + kDefaultTrace +
                                                         " must lie in '" + folders.back().string() + "', got no such file");
}

}  // namespace decode_trace
