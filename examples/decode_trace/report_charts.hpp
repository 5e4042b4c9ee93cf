// The four charts of report.html, each one inline SVG; empty if the report holds nothing for it.
#pragma once

#include <string>

#include "report.hpp"

namespace decode_trace {

// Tokens read: a dot a query, by KV head and target, with median and middle half.
std::string budget_chart(const TraceReport& trace);

// Share of the attention weight reached against the target: truth, estimate, bound. With target errors: error against target error.
std::string attained_chart(const TraceReport& trace);

// Relative output error against the share of dense bytes, both logarithmic.
std::string error_chart(const TraceReport& trace);

// Median time of a step, dense and sparse, by target.
std::string time_chart(const TraceReport& trace);

}  // namespace decode_trace
