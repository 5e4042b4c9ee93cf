// Skipping a test case whose input is not on this machine, without hiding that it was skipped.
#pragma once

#include <cstdio>
#include <string>

namespace quorum::test {

inline int& skipped_count() {
  static int count = 0;
  return count;
}

// Says why a test case returns early. A file all of whose cases are skipped is reported as skipped by ctest.
inline void skip(const std::string& reason) {
  ++skipped_count();
  std::printf("skipped: %s\n", reason.c_str());
}

}  // namespace quorum::test
