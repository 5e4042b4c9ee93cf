// Sparse attention with a dynamic budget on the keys, queries and values of a real model, next to dense attention.
#include <fstream>
#include <iostream>
#include <thread>

#include "measure.hpp"
#include "report_html.hpp"
#include "report_json.hpp"
#include "report_table.hpp"
#include "report_text.hpp"

namespace {

std::string machine_line(int threads) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string model = "unknown processor";
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) {
      model = line.substr(line.find(": ") + 2);
      break;
    }
  }
  return model + ", " + std::to_string(threads) + " of " + std::to_string(std::thread::hardware_concurrency()) + " threads";
}

std::string compiler_line() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

std::string isa_line() {
#if defined(QUORUM_SCALAR)
  return "scalar";
#elif defined(__AVX512VNNI__)
  return "AVX-512 with VNNI";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "SSE2";
#endif
}

std::string typed_command(const std::vector<std::string>& arguments) {
  std::string command = "bash examples/demo.sh";
  for (size_t i = 0; i < arguments.size(); ++i) {
    // demo.sh itself adds the two folders.
    if (arguments[i] == "--data-dir" || arguments[i] == "--output") {
      ++i;
      continue;
    }
    command += " " + arguments[i];
  }
  return command;
}

void show_progress(const std::string& line) { std::cerr << line << " ..." << std::endl; }

int run(const std::vector<std::string>& arguments, const decode_trace::Options& options) {
  decode_trace::DemoReport report;
  report.command = typed_command(arguments);
  report.machine = machine_line(options.threads);
  report.compiler = compiler_line();
  report.isa = isa_line();
  report.confidence = double(quorum::CertificateOptions{}.confidence);
  report.options = options;
  std::vector<std::string> paths = options.traces;
  if (paths.empty()) paths.push_back(decode_trace::default_trace(options));
  quorum::ThreadExecutor executor(options.threads, quorum::LateWorkers::leave_out);
  for (const std::string& path : paths) {
    const quorum::io::Trace trace = quorum::io::Trace::open(path);
    report.traces.push_back(decode_trace::measure(trace, options, executor, show_progress));
    std::cout << decode_trace::report_table(report.traces.back()) << std::flush;
  }
  std::cout << decode_trace::table_legend(report);
  decode_trace::write_file(options.output, "report.json", decode_trace::report_json(report));
  decode_trace::write_file(options.output, "report.html", decode_trace::report_html(report));
  std::cout << "\nWrote " << options.output << "/report.json and " << options.output << "/report.html\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  decode_trace::Options options;
  try {
    options = decode_trace::parse_options(arguments);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
  if (options.help) {
    std::cout << decode_trace::help_text();
    return 0;
  }
  try {
    return run(arguments, options);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
