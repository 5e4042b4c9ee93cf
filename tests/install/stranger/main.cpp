// Uses quorum as somebody else's program would: only what is installed, no flag of its own.
#include <cstdio>
#include <quorum/core/error.hpp>
#include <quorum/version.hpp>
#include <string>

int main(int argc, char** argv) {
  const std::string version =
      std::to_string(QUORUM_VERSION_MAJOR) + "." + std::to_string(QUORUM_VERSION_MINOR) + "." + std::to_string(QUORUM_VERSION_PATCH);
  if (argc == 2 && version != argv[1]) {
    std::printf("the headers say version %s, the package says %s\n", version.c_str(), argv[1]);
    return 1;
  }
  try {
    quorum::require(false, "stranger", "answer", "42", 7);
  } catch (const quorum::Error& error) {
    std::printf("quorum %s: %s\n", version.c_str(), error.what());
    return error.code() == quorum::ErrorCode::invalid_argument ? 0 : 1;
  }
  return 1;
}
