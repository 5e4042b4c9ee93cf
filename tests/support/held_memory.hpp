// Bytes that the program holds from malloc, for tests of promises about memory.
#pragma once

#include <cstdint>

namespace quorum::test {

bool counts_held_memory();  // false under a sanitizer, which brings its own malloc, and with other C libraries than glibc
int64_t held_memory();
int64_t most_held_memory();      // since the program started, or since
void forget_most_held_memory();  // this was called

}  // namespace quorum::test
