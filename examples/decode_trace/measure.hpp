// Decodes every recorded query of a trace, dense and sparse, and compares: what main.cpp reports.
#pragma once

#include "quorum/io/trace.hpp"
#include "quorum/quorum.hpp"
#include "report.hpp"

namespace decode_trace {

// Builds the index over all tokens but the recorded queries' own, then decodes each query at its position.
//
// Truth: the attained ratio is the ratio of the softmax sums over the chosen tokens and over all; the error is against this library's
// dense attention over all keys. Times: one step of all heads, median over the queries, caches emptied before each.
// progress: called with a line of text when something that may take over a second begins.
TraceReport measure(const quorum::io::Trace& trace, const Options& options, quorum::Executor& executor,
                    void (*progress)(const std::string&));

}  // namespace decode_trace
