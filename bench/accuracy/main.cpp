// accuracy: how much each rule reads, what share of the attention weight it attains, and how wrong its output is, on recorded traces.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "bench/accuracy/baselines.hpp"
#include "bench/accuracy/ground_truth.hpp"
#include "bench/accuracy/page_baselines.hpp"
#include "bench/accuracy/quorum_rules.hpp"
#include "bench/accuracy/report.hpp"
#include "bench/accuracy/residual_codes.hpp"

namespace {

constexpr const char* kUsage =
    R"(Usage: accuracy [options] trace.safetensors...
Measures sparse attention rules on recorded traces: bytes read, attained ratio, hit rate, output error, and bytes at equal error.
  --output FILE   write the figures as JSON
  --seeds N       repeat what depends on chance (k-means start, rotation, sample) N times and print intervals; default 3
  --threads N     default: all processors
  --rules A,B     only rules whose name begins with one of these (tactic, quorum_calibrated, ...)
  --help
)";

struct Options {
  std::string output;
  int seeds = 3;
  int threads = std::max(1, int(std::thread::hardware_concurrency()));
  std::vector<std::string> rules;
  std::vector<std::string> traces;
};

[[noreturn]] void fail_usage(const std::string& message) {
  std::fprintf(stderr, "accuracy: %s\n\n%s", message.c_str(), kUsage);
  std::exit(2);
}

int parse_count(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 1 || value > 1024) fail_usage(option + " must be 1 to 1024, got '" + text + "'");
  return int(value);
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    if (name == "--help" || name == "-h") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    if (name.rfind("--", 0) != 0) {
      options.traces.push_back(name);
      continue;
    }
    if (i + 1 == arguments.size()) fail_usage(name + " must be followed by a value, or is unknown");
    const std::string& value = arguments[++i];
    if (name == "--output") {
      options.output = value;
    } else if (name == "--seeds") {
      options.seeds = parse_count(name, value);
    } else if (name == "--threads") {
      options.threads = parse_count(name, value);
    } else if (name == "--rules") {
      options.rules = split(value);
    } else {
      fail_usage("unknown option " + name);
    }
  }
  if (options.traces.empty()) fail_usage("name at least one trace");
  return options;
}

// The protocol decodes the last num_queries positions of a sequence.
void check_protocol(const quorum::io::Trace& trace, const std::string& path) {
  const int first = trace.num_tokens - trace.num_queries;
  for (const int position : trace.query_positions) {
    if (first < 64 || position < first) {
      quorum::throw_error(
          quorum::ErrorCode::invalid_file, "accuracy", path + ": tensor 'query_positions'",
          "among the last " + std::to_string(trace.num_queries) + " of at least " + std::to_string(64 + trace.num_queries) + " tokens",
          position);
    }
  }
}

// Runs every wanted rule on one trace.
class TraceRun {
 public:
  TraceRun(const Options& options, const quorum::io::Trace& trace, quorum::Executor& executor, std::vector<accuracy::Record>& records)
      : options_(options), trace_(trace), executor_(executor), records_(records) {}

  void run() {
    std::vector<accuracy::HeadReference> references;
    for (int kv_head = 0; kv_head < trace_.num_kv_heads; ++kv_head) {
      const accuracy::HeadTruth head = accuracy::make_ground_truth(trace_, kv_head, executor_);
      references.emplace_back(head);
      place_ = trace_.name + ", KV head " + std::to_string(kv_head + 1) + " of " + std::to_string(trace_.num_kv_heads);
      const accuracy::Study study{head, executor_, records_, trace_.name, 0};
      step({"oracle"}, [&] { accuracy::run_oracle(study); });
      step({"quest"}, [&] { accuracy::run_quest(study); });
      step({"page_mean_std"}, [&] { accuracy::run_page_mean_std(study); });
      step({"twilight"}, [&] { accuracy::run_twilight(study); });
      for (seed_ = 0; seed_ < options_.seeds; ++seed_) run_cluster_rules(head);
      seed_ = 0;
    }
    place_ = trace_.name;
    for (seed_ = 0; seed_ < options_.seeds; ++seed_) run_quorum(references);
  }

 private:
  void run_cluster_rules(const accuracy::HeadTruth& head) {
    const accuracy::Study study{head, executor_, records_, trace_.name, seed_};
    accuracy::Clusters clusters;
    step({"best_clusters", "oracle_clusters", "fixed", "tactic", "double_p", "retroinfer"}, [&] {
      progress("k-means");
      clusters = accuracy::make_clusters(head, seed_, executor_);
    });
    step({"best_clusters", "oracle_clusters"}, [&] { accuracy::run_best_clusters(study, clusters); });
    step({"fixed"}, [&] { accuracy::run_fixed(study, clusters); });
    step({"tactic"}, [&] { accuracy::run_tactic(study, clusters); });
    step({"double_p"}, [&] { accuracy::run_double_p(study, clusters); });
    step({"retroinfer"}, [&] { accuracy::run_retroinfer(study, clusters); });
    step({"codes_1bit", "codes_2bit"}, [&] { accuracy::run_residual_codes(study); });
  }

  void run_quorum(const std::vector<accuracy::HeadReference>& references) {
    static constexpr std::initializer_list<const char*> kGroup = {"quorum_drop", "quorum_estimated", "quorum_calibrated"};
    if (wants("quorum_codes")) {
      progress("quorum: index with codes");
      accuracy::QuorumStudy study(trace_, references, true, seed_, executor_, records_);
      step({"quorum_codes"}, [&] { study.run_codes(); });
    }
    if (!wants("quorum_diagonal") && !wants("quorum_certified") && !wants("quorum_own") && !wants_any(kGroup)) return;
    progress("quorum: index");
    accuracy::QuorumStudy study(trace_, references, false, seed_, executor_, records_);
    step(kGroup, [&] { study.run_group({0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95}); });
    step({"quorum_diagonal"}, [&] { study.run_diagonal({0.5, 0.7, 0.8, 0.9, 0.95}); });
    step({"quorum_certified"}, [&] { study.run_certified({0.3, 0.5, 0.7, 0.8, 0.9, 0.95}); });
    step({"quorum_own"}, [&] { study.run_own({0.5, 0.8, 0.9, 0.95}); });
  }

  bool wants(std::string_view rule) const {
    const auto matches = [&](std::string_view wanted) {  // either begins with the other: a step may measure several rules
      const size_t length = std::min(rule.size(), wanted.size());
      return rule.substr(0, length) == wanted.substr(0, length);
    };
    return options_.rules.empty() || std::any_of(options_.rules.begin(), options_.rules.end(), matches);
  }
  bool wants_any(std::initializer_list<const char*> rules) const {
    return std::any_of(rules.begin(), rules.end(), [&](const char* rule) { return wants(rule); });
  }
  // Runs work if any of its rules is wanted.
  template <class Work>
  void step(std::initializer_list<const char*> rules, Work work) {
    if (!wants_any(rules)) return;
    progress(*rules.begin());
    work();
  }
  void progress(const char* what) const {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    std::fprintf(stderr, "%6.1f s  %s, seed %d of %d: %s\n", seconds, place_.c_str(), seed_ + 1, options_.seeds, what);
  }

  const Options& options_;
  const quorum::io::Trace& trace_;
  quorum::Executor& executor_;
  std::vector<accuracy::Record>& records_;
  std::string place_;
  int seed_ = 0;
  static inline const auto start_ = std::chrono::steady_clock::now();
};

// Finds out before minutes of work whether the file can be written.
void prepare_output(const std::string& path) {
  if (path.empty()) return;
  const auto folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder);
  if (!std::ofstream(path, std::ios::app)) {
    quorum::throw_error(quorum::ErrorCode::io_failure, "accuracy", "--output '" + path + "'", "writable", "an error");
  }
}

void run(const Options& options) {
  prepare_output(options.output);
  Eigen::setNbThreads(1);  // rows are shared out here
  quorum::ThreadExecutor executor(options.threads);
  std::vector<accuracy::Record> records;
  for (const std::string& path : options.traces) {
    const quorum::io::Trace trace = quorum::io::Trace::open(path);
    check_protocol(trace, path);
    TraceRun(options, trace, executor, records).run();
  }
  if (records.empty()) fail_usage("--rules must name a rule");
  accuracy::print_tables(records);
  if (options.output.empty()) return;
  accuracy::write_json(options.output, records);
  std::printf("Written: %s\n", options.output.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse_options({argv + 1, argv + argc}));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "accuracy: %s\n", error.what());
    return 1;
  }
  return 0;
}
