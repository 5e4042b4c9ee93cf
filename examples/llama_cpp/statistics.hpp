// What the plug-in has done, as counters and as one line of JSON.
#pragma once

#include <cstdio>
#include <span>
#include <sstream>
#include <string>

#include "quorum/core/decode_report.hpp"

namespace quorum_ggml {

struct Statistics {
  int64_t calls = 0;            // attention nodes
  int64_t calls_sparse = 0;     // of them: some head chose its tokens
  int64_t calls_handed_on = 0;  // of them: given to the engine's own CPU backend, prefill above all
  int64_t heads = 0;            // query heads of all rows that were decoded here
  int64_t tokens_read = 0, tokens_visible = 0;
  int64_t bytes_read = 0, bytes_dense = 0;
  double attained = 0.0;  // sum over heads of the estimate
  double bound = 0.0;     // sum over heads that have one
  int64_t heads_bounded = 0;
  int64_t cells_changed = 0;  // times that a layer's cache held other keys than were known
  int64_t index_bytes = 0;    // of all layers, at the time of asking
  double seconds_attend = 0.0, seconds_index = 0.0, seconds_compare = 0.0, seconds_handed_on = 0.0;

  // reports: of the heads of one call. bytes_per_token: of a key and a value.
  void add(std::span<const quorum::HeadReport> reports, int64_t bytes_per_token) {
    bool sparse = false;
    for (const quorum::HeadReport& report : reports) {
      sparse = sparse || !quorum::is_dense(report.path);
      tokens_read += report.tokens_read;
      tokens_visible += report.bytes_dense / bytes_per_token;
      bytes_read += report.bytes_read;
      bytes_dense += report.bytes_dense;
      attained += double(report.attained_ratio_estimate);
      if (report.confidence == 0.0f) continue;
      bound += double(report.attained_ratio_lower_bound);
      ++heads_bounded;
    }
    heads += int64_t(reports.size());
    calls_sparse += sparse ? 1 : 0;
  }

  std::string line() const {
    const auto share = [](double part, double whole) { return whole > 0.0 ? part / whole : 0.0; };
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << "{\"calls\": " << calls << ", \"calls_sparse\": " << calls_sparse << ", \"calls_handed_on\": " << calls_handed_on
        << ", \"tokens_read\": " << tokens_read << ", \"tokens_visible\": " << tokens_visible
        << ", \"tokens_read_share\": " << share(double(tokens_read), double(tokens_visible)) << ", \"bytes_read\": " << bytes_read
        << ", \"bytes_read_share\": " << share(double(bytes_read), double(bytes_dense))
        << ", \"attained_ratio_mean\": " << share(attained, double(heads)) << ", \"bound_mean\": " << share(bound, double(heads_bounded))
        << ", \"bound_share\": " << share(double(heads_bounded), double(heads)) << ", \"cells_changed\": " << cells_changed
        << ", \"index_bytes\": " << index_bytes << ", \"seconds\": {\"attend\": " << seconds_attend << ", \"index\": " << seconds_index
        << ", \"compare\": " << seconds_compare << ", \"handed_on\": " << seconds_handed_on << "}}";
    return out.str();
  }
};

// Appends the line to a file; "-" is standard error. A file that cannot be written is said so, and nothing else happens.
inline void write_statistics(const Statistics& statistics, const std::string& file) {
  if (file.empty()) return;
  std::FILE* out = file == "-" ? stderr : std::fopen(file.c_str(), "a");
  if (out == nullptr) {
    std::fprintf(stderr, "quorum: QUORUM_STATS_FILE must be a file that can be written, got '%s'\n", file.c_str());
    return;
  }
  std::fprintf(out, "%s%s\n", file == "-" ? "quorum: " : "", statistics.line().c_str());
  if (out != stderr) std::fclose(out);
}

}  // namespace quorum_ggml
