// int8 dot products: exact integers on every instruction set.
#include "quorum/cpu/simd/int8_dot.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/random.hpp"

using namespace quorum;

namespace {

// Number of wrong integers for G heads; bytes and queries from the given generators.
template <int G, class Byte, class Query>
int wrong_dots(int head_dim, Byte&& byte, Query&& query) {
  const int stride = int(round_up(head_dim, kRowAlignment)) + 16;
  std::vector<uint8_t> block(size_t(head_dim * 16));
  std::vector<int8_t> queries(size_t(G * stride), int8_t(99));
  for (auto& b : block) b = byte();
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < head_dim; ++c) queries[size_t(g * stride + c)] = query();
  std::vector<int32_t> dots(G * 16, -1);
  simd::int8_dot_block<G>(block.data(), queries.data(), stride, head_dim, dots.data());
  int wrong = 0;
  for (int g = 0; g < G; ++g)
    for (int lane = 0; lane < 16; ++lane) {
      int32_t want = 0;
      for (int c = 0; c < head_dim; ++c)
        want += int32_t(block[size_t((c / 4) * 64 + lane * 4 + c % 4)]) * int32_t(queries[size_t(g * stride + c)]);
      wrong += dots[size_t(g * 16 + lane)] != want;
    }
  return wrong;
}

template <class Byte, class Query>
int wrong_for_all_groups(int head_dim, Byte&& byte, Query&& query) {
  return wrong_dots<1>(head_dim, byte, query) + wrong_dots<2>(head_dim, byte, query) + wrong_dots<3>(head_dim, byte, query) +
         wrong_dots<4>(head_dim, byte, query);
}

}  // namespace

TEST_CASE("random bytes and queries, all head_dims") {
  const uint64_t seed = 51;
  CAPTURE(seed);
  test::Random random(seed);
  for (int head_dim = 8; head_dim <= 512; head_dim += 8) {
    CAPTURE(head_dim);
    CHECK(wrong_for_all_groups(
              head_dim, [&] { return uint8_t(random.below(256)); }, [&] { return int8_t(random.below(256) - 128); }) == 0);
  }
}

TEST_CASE("extremes do not saturate") {
  for (const int byte : {0, 1, 127, 128, 255})
    for (const int query : {-128, -127, -1, 0, 1, 127}) {
      CAPTURE(byte);
      CAPTURE(query);
      CHECK(wrong_for_all_groups(
                512, [&] { return uint8_t(byte); }, [&] { return int8_t(query); }) == 0);
    }
}
