// Recorded layers of real models: the one of the repository, and those of a folder that the machine may have.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/skip.hpp"

namespace quorum::test {

inline constexpr const char* kExampleTrace = "examples/data/smollm2_135m_kjv_8k_layer12.safetensors";

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// The traces in the folder that QUORUM_SHARED names, sorted. Says so if there are none to be had. Sanitizers do without: real data takes no
// other way through the memory than made-up data, and they take minutes for it.
inline std::vector<std::string> shared_traces() {
  std::vector<std::string> found;
  const char* folder = std::getenv("QUORUM_SHARED");
  if (folder == nullptr || kSanitized) {
    skip(kSanitized ? "further traces, under a sanitizer" : "further traces: QUORUM_SHARED is not set");
    return found;
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") found.push_back(entry.path().string());
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace quorum::test
