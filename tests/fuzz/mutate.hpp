// Mutations that keep a structure, so that executions get past the first check of a reader.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "quorum/core/random.hpp"
#include "tests/fuzz/fuzz_target.hpp"

namespace quorum::fuzz {

// Random choices from one seed.
class Draw {
 public:
  explicit Draw(uint64_t seed) : stream_(mix_bits(seed)) {}
  uint64_t bits() { return mix_bits(stream_ ^ ++count_); }
  size_t below(size_t bound) { return bound == 0 ? 0 : size_t(bits() % bound); }
  bool one_in(size_t n) { return below(n) == 0; }
  // One of the words between single spaces; two spaces stand for an empty word between them.
  std::string_view of(std::string_view words) {
    for (size_t skipped = below(1 + size_t(std::count(words.begin(), words.end(), ' '))); skipped > 0; --skipped)
      words.remove_prefix(words.find(' ') + 1);
    return words.substr(0, words.find(' '));
  }

 private:
  uint64_t stream_, count_ = 0;
};

// The fuzzer's own mutation of some bytes, which may grow by `room`.
inline void mutate_bytes(std::string& text, size_t room = 16) {
  const size_t size = text.size();
  text.resize(size + room);
  text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size, text.size()));
}

// Writes a result back into the fuzzer's buffer.
inline size_t put(std::string_view text, uint8_t* data, size_t max_size) {
  const size_t size = std::min(text.size(), max_size);
  std::copy_n(text.data(), size, reinterpret_cast<char*>(data));
  return size;
}

// Where a value that starts with a bracket or a quote ends, one past it; the end of the text if it never does.
inline size_t end_of_value(std::string_view text, size_t begin) {
  bool quoted = false;
  int depth = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '\\') {
      ++i;
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && (c == '{' || c == '[')) {
      ++depth;
    } else if (!quoted && (c == '}' || c == ']')) {
      --depth;
    }
    if (!quoted && depth <= 0 && std::string_view("\"}]").find(c) != std::string_view::npos) return i + 1;
  }
  return text.size();
}

// Puts another number in the place of one at or behind `from`. These and the following return false if there is nothing to change.
inline bool mutate_number(std::string& text, size_t from, Draw& draw) {
  const size_t begin = text.find_first_of("-0123456789", from);
  if (begin == std::string::npos) return false;
  const size_t end = std::min(text.find_first_not_of("-+.eE0123456789", begin), text.size());
  text.replace(begin, end - begin,
               draw.of("0 1 2 3 4 8 12 16 24 65 255 4096 -1 -0 00 1e2 0.5 1E+9 2e-07 1. 2147483648 4294967296 9223372036854775807 "
                       "9223372036854775808"));
  return true;
}

inline bool mutate_string(std::string& text, size_t from, Draw& draw) {
  const size_t begin = text.find('"', from);
  if (begin == std::string::npos) return false;
  const std::string_view content = draw.of(
      "dtype shape data_offsets __metadata__ F16 BF16 F32 F64 I32 U8 BOOL keys values queries prompt_queries query_positions layer "
      "layout NHD sm_scale 1 0.125 nan \\u0041 \\n \\ud83d\\ude00 \\ud800 \\udc00  a b -1 \xc3\xa9\x80\xff");
  text.replace(begin, end_of_value(text, begin) - begin, '"' + std::string(content) + '"');
  return true;
}

// Puts one value in the place of another of its kind, doubles it or removes it, at times with the comma after it.
inline bool mutate_value(std::string& text, size_t from, Draw& draw) {
  const size_t begin = text.find_first_of("{[\"", from);
  if (begin == std::string::npos) return false;
  size_t end = end_of_value(text, begin);
  const size_t other = text.find(text[begin], draw.below(text.size()));
  if (other != std::string::npos && draw.one_in(2)) {
    text.replace(begin, end - begin, text.substr(other, end_of_value(text, other) - other));
    return true;
  }
  if (end < text.size() && (text[end] == ',' || text[end] == ':') && !draw.one_in(3)) ++end;
  const std::string value = text.substr(begin, end - begin);
  if (draw.one_in(2)) {
    text.erase(begin, value.size());
  } else {
    text.insert(draw.one_in(2) ? begin : draw.below(text.size()), value);
  }
  return true;
}

// Changes one number, string, bracketed value or byte of a JSON-like text.
inline void mutate_json(std::string& text, Draw& draw) {
  const size_t from = draw.below(text.size());
  switch (draw.below(7)) {
    case 0:
      if (mutate_number(text, from, draw)) return;
      break;
    case 1:
      if (mutate_string(text, from, draw)) return;
      break;
    case 2:
    case 3:
      if (mutate_value(text, from, draw)) return;
      break;
    case 4:
      text.insert(from, draw.of("{ } [ ] , : \" \\ \n \t null true false {} [] \"\" -  "));
      return;
    case 5:
      text.erase(from, 1 + draw.below(3));
      return;
    default:
      break;
  }
  mutate_bytes(text);
}

}  // namespace quorum::fuzz
