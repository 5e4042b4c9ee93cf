// Lists of tokens.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace quorum::test {

inline std::vector<int32_t> token_run(int begin, int end) {
  std::vector<int32_t> tokens(static_cast<size_t>(end - begin));
  std::iota(tokens.begin(), tokens.end(), begin);
  return tokens;
}

}  // namespace quorum::test
