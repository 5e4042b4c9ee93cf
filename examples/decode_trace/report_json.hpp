// report.json: the measurements for other programs.
#pragma once

#include <string>

#include "report.hpp"

namespace decode_trace {

// The whole report as one JSON object. Requires summarize() of every trace and at least one trace.
//
// Method: `traces` holds an object for each trace: {"trace", "index_bytes", "kv_bytes", "build_ms", "rows": [{"target",
//   "target_error", "tail", "tokens", "tokens_coded", "bytes_share", "attained", "estimate", "bound", "hit_rate", "bound_hit_rate",
//   "error_mean", "error_p95", "error_estimate", "paths", "dense_ms", "sparse_ms"}]}, besides "heads" (the same rows per KV head, with
//   "kv_head", times null) and what identifies the trace. The first trace's members stand at the top level too, so a reader of one trace
//   needs no list. What was not measured is null.
// Units: bytes, milliseconds; shares, rates, ratios and errors as fractions of 1.
std::string report_json(const DemoReport& report);

}  // namespace decode_trace
