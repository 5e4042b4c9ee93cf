// What the tests of the readers share: files built in memory, their mutations, and the text of the error they cause.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quorum/core/error.hpp"

namespace quorum::test {

// Message of the quorum::Error that `call` throws; empty if it throws none.
inline std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

inline std::span<const std::byte> as_bytes(std::string_view text) { return {reinterpret_cast<const std::byte*>(text.data()), text.size()}; }

// Little-endian bytes of a number.
template <class T>
std::string raw(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

// 8 bytes length, JSON header, data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  return raw(uint64_t(header.size())) + header + data;
}

// Deterministic damage to a file: 1 to 4 of bit flip, byte change, cut, insertion, doubled or moved range.
class Mutator {
 public:
  Mutator(std::string original, uint32_t seed) : original_(std::move(original)), random_(seed) {}

  std::string next() {
    std::string text = original_;
    for (uint32_t count = 1 + below(4); count > 0; --count) mutate(text);
    return text;
  }

  void mutate(std::string& text) {
    constexpr std::string_view kTelling = "{}[]\",:\\019-eE.u \n\x80\xff";
    const size_t at = below(text.size() + 1);
    switch (below(6)) {
      case 0:
        if (at < text.size()) text[at] = char(text[at] ^ (1 << below(8)));
        break;
      case 1:
        if (at < text.size()) text[at] = kTelling[below(kTelling.size())];
        break;
      case 2:
        text.resize(at);
        break;
      case 3:
        text.insert(at, 1, kTelling[below(kTelling.size())]);
        break;
      case 4:
        text.erase(at, below(8));
        break;
      default:
        text.insert(at, text.substr(below(text.size() + 1), below(24)));
    }
  }

 private:
  uint32_t below(size_t bound) { return bound == 0 ? 0 : uint32_t(random_() % bound); }

  std::string original_;
  std::mt19937 random_;
};

}  // namespace quorum::test
