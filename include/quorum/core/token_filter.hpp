// Which tokens of a sequence a query may see: a caller's mask, what has been erased, the row's own place, a sliding window.
#pragma once

#include <bit>

#include "quorum/core/config.hpp"
#include "quorum/core/element.hpp"

namespace quorum {

// Bit t % 64 of word t / 64.
QUORUM_HOST_DEVICE constexpr bool bit_of(const uint64_t* words, int t) { return (words[t / 64] >> (t % 64) & 1) != 0; }
constexpr int64_t mask_words(int64_t num_tokens) { return ceil_div(num_tokens, 64); }

// A token is visible if it lies in [begin, end), its bit of the mask is set and it has not been erased. An invisible one has weight 0: no
// key or value of it is read, no report counts it.
struct TokenFilter {
  const uint64_t* mask = nullptr;  // [mask_words(end)], null: all ones
  const uint64_t* live = nullptr;  // [mask_words(num_live)], of the index; null: nothing has been erased
  int num_live = 0;                // `live` speaks of tokens [0, num_live)
  int begin = 0;
  int end = 0;

  // Whether the visible tokens are all those of [begin, end).
  QUORUM_HOST_DEVICE bool is_range() const { return mask == nullptr && live == nullptr; }
  QUORUM_HOST_DEVICE bool passes(int token) const {
    return token >= begin && token < end && (mask == nullptr || bit_of(mask, token)) &&
           (live == nullptr || token >= num_live || bit_of(live, token));
  }

  // The visible ones of tokens [64 w, 64 w + 64) as bits.
  QUORUM_HOST_DEVICE uint64_t word(int w) const {
    const int first = 64 * w;
    uint64_t bits = from(begin - first) & ~from(end - first);
    if (mask != nullptr && bits != 0) bits &= mask[w];
    if (live != nullptr && first < num_live) bits &= live[w] | from(num_live - first);
    return bits;
  }
  // Number of visible tokens. Cost: a pass over the bits, nothing without any.
  QUORUM_HOST_DEVICE int count() const {
    if (is_range()) return end > begin ? end - begin : 0;
    int sum = 0;
    for (int w = begin / 64; 64 * w < end; ++w) sum += std::popcount(word(w));
    return sum;
  }
  // The visible token that `rank` others come before; `end` if there is none.
  QUORUM_HOST_DEVICE int nth(int rank) const {
    for (int w = begin / 64; 64 * w < end; ++w) {
      uint64_t bits = word(w);
      const int count = std::popcount(bits);
      for (; rank < count && rank > 0; --rank) bits &= bits - 1;
      if (rank < count) return 64 * w + std::countr_zero(bits);
      rank -= count;
    }
    return end;
  }
  // Lists visible tokens from `token` on, at most `capacity`, ascending; returns their number. Post: `token` is where to go on.
  QUORUM_HOST_DEVICE int list(int& token, int capacity, int32_t* out) const {
    int listed = 0;
    for (; token < end; token = token / 64 * 64 + 64)
      for (uint64_t bits = word(token / 64) & from(token % 64); bits != 0; bits &= bits - 1) {
        token = token / 64 * 64 + std::countr_zero(bits);
        if (listed == capacity) return listed;
        out[listed++] = token;
      }
    return listed;
  }

 private:
  // Ones from bit i of a word on.
  QUORUM_HOST_DEVICE static constexpr uint64_t from(int i) { return i <= 0 ? ~uint64_t(0) : i >= 64 ? 0 : ~uint64_t(0) << i; }
};

// Turns an additive mask of f16, 0 for visible and -inf for not, as ggml has them, into bits.
//
// Shapes: additive [count]; words [mask_words(count)], bits beyond count are 0. Errors: false if an entry is anything else (position biases
// are not supported); the words then mean nothing. Cost: reads 2 bytes a token; about a nanosecond each, much less where
// 64 neighbours are alike.
inline bool bits_of_additive_mask(const f16* additive, int count, uint64_t* words) {
  constexpr uint16_t kMinusInfinity = 0xfc00, kSign = 0x8000;
  bool understood = true;
  for (int first = 0; first < count; first += 64) {
    if (first + 64 <= count) {
      uint16_t not_shown = 0, not_hidden = 0;
      for (int i = first; i < first + 64; ++i) {
        not_shown = uint16_t(not_shown | additive[i].bits);
        not_hidden = uint16_t(not_hidden | (additive[i].bits ^ kMinusInfinity));
      }
      if (not_shown == 0 || not_hidden == 0) {
        words[first / 64] = not_shown == 0 ? ~uint64_t{0} : 0;
        continue;
      }
    }
    uint64_t bits = 0;
    for (int i = first; i < count && i < first + 64; ++i) {
      const bool visible = (additive[i].bits | kSign) == kSign;  // either zero
      understood = understood && (visible || additive[i].bits == kMinusInfinity);
      bits |= uint64_t(visible) << (i - first);
    }
    words[first / 64] = bits;
  }
  return understood;
}

}  // namespace quorum
