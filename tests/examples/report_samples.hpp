// Reports small enough to be worked out by hand, and what tests of text look for.
#pragma once

#include <string>

#include "../../examples/decode_trace/report.hpp"

namespace decode_trace {

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

inline size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

// Two KV heads of one query head each, two queries; everything can be worked out by hand.
inline TraceReport small_trace() {
  TraceReport trace;
  trace.trace = "small.safetensors";
  trace.model = "Model <b> & \"quotes\"";
  trace.layer = "7";
  trace.num_tokens = 1000;
  trace.indexed_tokens = 990;
  trace.num_queries = 2;
  trace.num_qo_heads = 2;
  trace.num_kv_heads = 2;
  trace.head_dim = 64;
  trace.index_bytes = 60;
  trace.kv_bytes = 1000;
  trace.build_ms = 12.5;
  TargetRun run;
  run.target = 0.9;
  //            query, kv, qo, tokens, read, dense, attained, estimate, bound, error, coded
  run.cases = {{0, 0, 0, 100, 20, 200, 0.95, 0.94, 0.91, 0.01, 900},
               {0, 1, 1, 200, 40, 200, 0.90, 0.92, 0.91, 0.02, 700},
               {1, 0, 0, 300, 60, 200, 0.80, 0.90, kMissing, 0.03, 700},
               {1, 1, 1, 400, 80, 200, 0.99, 0.98, 0.89, 0.04, 500}};
  run.cases[3].path = quorum::DecodePath::dense_by_cost;
  run.dense_ms = {4.0, 2.0, 3.0};
  run.sparse_ms = {1.0, 2.0};
  trace.runs = {run};
  summarize(trace);
  return trace;
}

inline DemoReport small_report(int num_traces = 1) {
  DemoReport report;
  report.command = "decode_trace 'a&b.safetensors'";
  report.machine = "a \"machine\"";
  report.compiler = "a compiler";
  report.isa = "an ISA";
  report.options.threads = 2;
  for (int i = 0; i < num_traces; ++i) report.traces.push_back(small_trace());
  return report;
}

// The same cases for many heads and targets, with the longest numbers the table may meet.
inline TraceReport large_trace() {
  TraceReport trace = small_trace();
  trace.num_tokens = 1048576;
  trace.num_kv_heads = 12;
  const TargetRun run = trace.runs[0];
  trace.runs.clear();
  for (const double target : {0.3, 0.8, 0.995, 1.0}) {
    TargetRun next = run;
    next.target = target;
    next.dense_ms = next.sparse_ms = {1234.5};
    next.cases.clear();
    for (int head = 0; head < 12; ++head) {
      for (Case item : run.cases) {
        item.kv_head = item.qo_head = head;
        item.tokens = 1048576;
        item.bytes_read = 250;
        next.cases.push_back(item);
      }
    }
    trace.runs.push_back(next);
  }
  summarize(trace);
  return trace;
}

}  // namespace decode_trace
