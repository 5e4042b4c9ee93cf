// report.html: one page for people, complete in itself.
#pragma once

#include <string>

#include "report.hpp"

namespace decode_trace {

// Headline numbers, four charts and tables per trace, then how it was measured. No script, no font, nothing to load; follows the reader's
// light or dark setting. Requires summarize() of every trace and at least one trace.
std::string report_html(const DemoReport& report);

}  // namespace decode_trace
