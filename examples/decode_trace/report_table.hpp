// The tables for a terminal.
#pragma once

#include <string>

#include "report.hpp"

namespace decode_trace {

// What the trace is, what its index costs, a line per target and KV head, then a line per target for all heads. Plain ASCII, at most
// 120 columns. Requires summarize().
std::string report_table(const TraceReport& trace);

// "576 of 576 cases read single tokens by code": how many cases of a row took which way.
std::string paths_text(const ReportRow& row);

// What the columns mean, a line each; printed once, under the tables.
std::string table_legend(const DemoReport& report);

}  // namespace decode_trace
