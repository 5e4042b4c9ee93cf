// Which tokens are visible: every operation of a filter agrees with asking token by token.
#include "quorum/core/token_filter.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "tests/support/random.hpp"

using namespace quorum;

namespace {

std::vector<uint64_t> random_words(int count, test::Random& random, int kind) {
  std::vector<uint64_t> words;
  for (int i = 0; i < count; ++i)
    words.push_back(kind == 0 ? 0 : kind == 1 ? ~uint64_t(0) : kind == 2 ? random.bits() : random.bits() & random.bits() & random.bits());
  return words;
}

// count(), nth(), word() and list() against `visible`, the tokens that should pass.
int disagreements(const TokenFilter& filter, const std::vector<int>& visible, int num_tokens) {
  int wrong = filter.count() != int(visible.size());
  for (int t = 0; t < num_tokens; ++t) {
    const bool want = std::count(visible.begin(), visible.end(), t) > 0;
    wrong += filter.passes(t) != want;
    wrong += (filter.word(t / 64) >> (t % 64) & 1) != uint64_t(want);
  }
  for (int rank = 0; rank < int(visible.size()); ++rank) wrong += filter.nth(rank) != visible[size_t(rank)];
  wrong += filter.nth(int(visible.size())) != filter.end;
  for (const int capacity : {1, 7, 1000}) {
    std::vector<int32_t> listed(1000);
    std::vector<int> all;
    int token = filter.begin;
    for (int count = 1; count > 0;) {
      count = filter.list(token, capacity, listed.data());
      all.insert(all.end(), listed.begin(), listed.begin() + count);
    }
    wrong += all != visible;
  }
  return wrong;
}

}  // namespace

TEST_CASE("a filter is the conjunction of mask, erasure and range, in all its operations") {
  test::Random random(5);
  for (const int num_tokens : {1, 63, 64, 65, 200})
    for (int kind = 0; kind < 4; ++kind)
      for (const bool masks : {false, true})
        for (const int num_live : {0, 1, 64, 130}) {
          const auto mask = random_words(4, random, kind), live = random_words(3, random, 2);
          for (int trial = 0; trial < 4; ++trial) {
            TokenFilter filter;
            filter.mask = masks ? mask.data() : nullptr;
            filter.live = num_live > 0 ? live.data() : nullptr;
            filter.num_live = num_live;
            filter.begin = trial == 0 ? 0 : random.below(num_tokens);
            filter.end = trial == 0 ? num_tokens : random.below(num_tokens + 1);
            std::vector<int> visible;
            for (int t = 0; t < num_tokens; ++t) {
              const bool in_mask = !masks || (mask[size_t(t / 64)] >> (t % 64) & 1) != 0;
              const bool is_live = num_live == 0 || t >= num_live || (live[size_t(t / 64)] >> (t % 64) & 1) != 0;
              if (t >= filter.begin && t < filter.end && in_mask && is_live) visible.push_back(t);
            }
            CAPTURE(num_tokens);
            CAPTURE(filter.begin);
            CAPTURE(filter.end);
            CHECK(disagreements(filter, visible, num_tokens) == 0);
            CHECK(filter.is_range() == (!masks && num_live == 0));
          }
        }
}

TEST_CASE("words of a mask") {
  CHECK(mask_words(0) == 0);
  CHECK(mask_words(1) == 1);
  CHECK(mask_words(64) == 1);
  CHECK(mask_words(65) == 2);
}

TEST_CASE("an additive mask of zeros and -inf becomes bits; anything else is refused") {
  const f16 minus_infinity = {0xfc00}, minus_zero = {0x8000};
  for (const int count : {0, 1, 63, 64, 65, 130}) {
    std::vector<f16> additive(size_t(count) + 1, from_float<f16>(-1.0f));  // the last one is beyond
    test::Random random(9);
    std::vector<bool> want;
    for (int i = 0; i < count; ++i) {
      want.push_back(random.uniform() < 0.5);
      additive[size_t(i)] = !want.back() ? minus_infinity : i % 3 == 0 ? minus_zero : f16{};
    }
    std::vector<uint64_t> words(size_t(mask_words(count)) + 1, 0x1234);
    CHECK(bits_of_additive_mask(additive.data(), count, words.data()));
    int wrong = 0;
    for (int i = 0; i < 64 * int(mask_words(count)); ++i) wrong += bit_of(words.data(), i) != (i < count && want[size_t(i)]);
    CHECK(wrong == 0);
    CHECK(words.back() == 0x1234);
    for (const f16 other : {from_float<f16>(-0.5f), from_float<f16>(1.0f), f16{0x7c00}, f16{0x7e00}, f16{0xfbff}}) {
      if (count == 0) continue;
      additive[size_t(count - 1)] = other;
      CHECK_FALSE(bits_of_additive_mask(additive.data(), count, words.data()));
    }
  }
}
