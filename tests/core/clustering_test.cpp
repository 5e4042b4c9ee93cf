#include "quorum/core/clustering.hpp"

#include <doctest/doctest.h>

#include <set>
#include <vector>

using namespace quorum;

TEST_CASE("indexed tokens: all but sinks and window, each listed or indexed once") {
  IndexOptions options;
  options.num_sink_tokens = 4;
  options.window_tokens = 3;
  for (int n = 0; n < 12; ++n) {
    const IndexedTokens tokens = IndexedTokens::of(n, options);
    CHECK(tokens.count == (n > 7 ? n - 7 : 0));
    std::vector<int32_t> all;
    for (int i = 0; i < tokens.num_listed(); ++i) all.push_back(tokens.listed(i));
    for (int i = 0; i < tokens.count; ++i) all.push_back(tokens.first + i);
    CHECK(std::set<int32_t>(all.begin(), all.end()).size() == size_t(n));
    CHECK(int(all.size()) == n);
    if (n > 7) CHECK(tokens.listed(4) == n - 3);
  }
  CHECK(IndexedTokens::of(2, options).first == 2);
}

TEST_CASE("number of clusters: whole blocks beyond the first, at least one") {
  CHECK(num_clusters_for(1, 10) == 1);
  CHECK(num_clusters_for(39, 10) == 3);
  CHECK(num_clusters_for(160, 10) == 16);
  CHECK(num_clusters_for(170, 10) == 32);
  CHECK(num_clusters_for(8192, 32) == 256);
}

TEST_CASE("seed rows: from the first to the last, ascending") {
  CHECK(seed_row(0, 100, 1) == 0);
  for (const int clusters : {2, 7, 100}) {
    CHECK(seed_row(0, 100, clusters) == 0);
    CHECK(seed_row(clusters - 1, 100, clusters) == 99);
    for (int j = 1; j < clusters; ++j) CHECK(seed_row(j, 100, clusters) > seed_row(j - 1, 100, clusters));
  }
}

TEST_CASE("rotation signs: both, by seed and head") {
  int negative = 0, same_head = 0, same_seed = 0;
  for (int c = 0; c < 256; ++c) {
    const float sign = rotation_sign(1, 0, c);
    CHECK((sign == 1.0f || sign == -1.0f));
    negative += sign < 0.0f ? 1 : 0;
    same_head += sign == rotation_sign(1, 1, c) ? 1 : 0;
    same_seed += sign == rotation_sign(5, 0, c) ? 1 : 0;
  }
  for (const int count : {negative, same_head, same_seed}) CHECK((count > 90 && count < 166));
}

TEST_CASE("int8 rows: the largest magnitude is 127 steps; zeros have a scale; halves go away from zero") {
  CHECK(int8_scale(254.0f) == 2.0f);
  CHECK(int8_scale(0.0f) > 0.0f);
  CHECK(int8_steps(-254.0f, 2.0f) == -127);
  CHECK(int8_steps(5.0f, 2.0f) == 3);
  CHECK(int8_steps(-5.0f, 2.0f) == -3);
  CHECK(int8_steps(0.0f, int8_scale(0.0f)) == 0);
}

TEST_CASE("centroid bytes: every place of a block once") {
  std::set<int> places;
  for (int c = 0; c < 64; ++c)
    for (int j = 0; j < kClusterBlock; ++j) places.insert(centroid_byte(c, j));
  CHECK(places.size() == 64 * 16);
  CHECK(*places.rbegin() == 64 * 16 - 1);
  CHECK(centroid_byte(5, 3) == 64 + 12 + 1);  // [1][3][1]
}
