// What the fuzz targets share: how a broken property stops the program, and what may leave a reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "quorum/core/error.hpp"

// A target defines the first and, if it knows a structure to keep, the second; libFuzzer or standalone.cpp calls them. The third is theirs.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace quorum::fuzz {

// The name that every target gives its input; each message must hold it.
inline constexpr const char* kInputName = "input";

// Inputs that a target's reader took: without any, nothing behind its first checks was tested.
inline unsigned long long num_accepted = 0;

inline void expect(bool holds, const char* property) {
  if (holds) return;
  std::fprintf(stderr, "broken property: %s\n", property);
  std::abort();
}

// Whether `read` succeeds. If not, it must throw Error(invalid_file) whose message holds `name`; anything else ends the program.
template <class Read>
bool accepts(Read&& read, const char* name = kInputName) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    expect(error.code() == ErrorCode::invalid_file, "a broken input is an invalid_file");
    expect(std::string_view(error.what()).find(name) != std::string_view::npos, "a message names the input");
    expect(std::string_view(error.what()).find(" must be ") != std::string_view::npos, "a message names the rule");
    return false;
  }
}

// Reads every byte, so that a sanitizer sees one that is not there.
inline void touch(const std::byte* bytes, size_t count) {
  unsigned sum = 0;
  for (size_t i = 0; i < count; ++i) sum += unsigned(bytes[i]);
  volatile unsigned kept = sum;
  (void)kept;
}

inline std::span<const std::byte> input_bytes(const uint8_t* data, size_t size) { return {reinterpret_cast<const std::byte*>(data), size}; }

}  // namespace quorum::fuzz
