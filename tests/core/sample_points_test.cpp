#include "quorum/core/sample_points.hpp"

#include <doctest/doctest.h>

#include <initializer_list>

using namespace quorum;

TEST_CASE("sample points: one in each stratum, the same for the same key") {
  const SamplePoints points = SamplePoints::of(3, 8, 1000, 0, 64), again = SamplePoints::of(3, 8, 1000, 0, 64);
  for (int s = 0; s < 64; ++s) {
    CHECK(points.point(s) >= s / 64.0);
    CHECK(points.point(s) < (s + 1) / 64.0);
    CHECK(points.point(s) == again.point(s));
  }
}

TEST_CASE("sample points: seed, head, length and draws before give other points") {
  const SamplePoints points = SamplePoints::of(3, 8, 1000, 0, 16);
  for (const SamplePoints& other : {SamplePoints::of(4, 8, 1000, 0, 16), SamplePoints::of(3, 9, 1000, 0, 16),
                                    SamplePoints::of(3, 8, 1001, 0, 16), SamplePoints::of(3, 8, 1000, 16, 16)}) {
    int equal = 0;
    for (int s = 0; s < 16; ++s) equal += points.point(s) == other.point(s) ? 1 : 0;
    CHECK(equal == 0);
  }
}

TEST_CASE("sample points: tokens of a cluster come up alike, and never one that is not there") {
  int counts[5] = {};
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const SamplePoints points = SamplePoints::of(seed, 0, 10, 0, 100);
    for (int s = 0; s < 100; ++s) {
      const int token = points.token_of(s, 5);
      REQUIRE(token >= 0);
      REQUIRE(token < 5);
      ++counts[token];
      CHECK(points.token_of(s, 1) == 0);
    }
  }
  for (const int count : counts) {
    CHECK(count > 850);  // of 1000; the standard deviation is 28
    CHECK(count < 1150);
  }
}
