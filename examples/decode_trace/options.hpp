// The command line of decode_trace.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quorum/core/options.hpp"

namespace decode_trace {

struct Options {
  std::vector<std::string> traces;                      // empty: the trace that comes with the repository (default_trace)
  std::vector<double> targets = {0.5, 0.8, 0.9, 0.95};  // shares of the weight, or with by_error errors of the output
  bool by_error = false;
  quorum::ReadUnit unit = quorum::ReadUnit::automatic;
  quorum::Tail tail = quorum::Tail::calibrated;
  bool certify = false;
  int threads = 1;  // parse_options starts from the number of hardware threads
  int cluster_size = quorum::IndexOptions{}.cluster_size;
  uint64_t seed = 1;
  std::string output = "build/demo";
  std::string data_dir;  // where the trace that comes with the repository lies; empty: default_trace looks for it
  bool help = false;
};

// Reads the arguments after the program's name. "--name value" and "--name=value" are the same; the last of repeated options counts.
//
// Post: targets ascend; every value is inside the range help_text states.
// Errors: quorum::Error(invalid_argument) "decode_trace: --option must be RULE, got VALUE". A target error goes with neither a target
// share, nor whole clusters, nor a certificate.
Options parse_options(const std::vector<std::string>& arguments);

std::string help_text();

// "clusters", "tokens" or "automatic".
const char* unit_name(quorum::ReadUnit unit);

// Path of the trace that comes with the repository: in options.data_dir, or if that is empty in examples/data of the current directory,
// or in the folder the macro QUORUM_EXAMPLE_DATA names.
//
// Errors: quorum::Error(io_failure) if it is in none of them.
std::string default_trace(const Options& options);

}  // namespace decode_trace
