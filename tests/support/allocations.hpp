// How often the program has called operator new, in any form.
#pragma once

#include <cstdint>

namespace quorum::test {

int64_t num_allocations();

}  // namespace quorum::test
