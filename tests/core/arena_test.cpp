#include "quorum/core/arena.hpp"

#include <doctest/doctest.h>

#include <initializer_list>

using namespace quorum;

TEST_CASE("arena: arrays one after the other, each at a multiple of the alignment; without a block it only counts") {
  alignas(256) static std::byte block[2048];
  for (const int64_t alignment : {64, 256}) {
    CAPTURE(alignment);
    Arena counting(nullptr, alignment), arena(block, alignment);
    CHECK(counting.take<float>(3) == nullptr);
    CHECK(reinterpret_cast<std::byte*>(arena.take<float>(3)) == block);
    CHECK(counting.take<int64_t>(alignment / 8 + 1) == nullptr);
    CHECK(reinterpret_cast<std::byte*>(arena.take<int64_t>(alignment / 8 + 1)) == block + alignment);
    const char* empty = arena.take<char>(0);
    CHECK(empty == arena.take<char>(1));  // an empty array takes no room
    counting.take<char>(1);
    CHECK(arena.used() == 4 * alignment);
    CHECK(counting.used() == arena.used());
  }
}
