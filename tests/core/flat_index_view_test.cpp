#include "quorum/core/flat_index_view.hpp"

#include <doctest/doctest.h>

using namespace quorum;

TEST_CASE("flat index view: what is always read are sinks and everything behind the index") {
  FlatHeadView head;
  CHECK(head.empty());
  CHECK(head.num_always(7) == 7);
  CHECK(head.always_token(6) == 6);
  const int32_t sinks[] = {0, 1, 2, 3};
  head.always = {sinks, 4, 100};
  head.num_indexed = 96;
  CHECK(!head.empty());
  CHECK(head.num_always(100) == 4);
  CHECK(head.num_always(103) == 7);
  CHECK(head.always_token(3) == 3);
  CHECK(head.always_token(4) == 100);
  CHECK(head.always_token(6) == 102);
}

TEST_CASE("flat index view: blocks of 16 clusters") {
  FlatHeadView head;
  CHECK(head.num_blocks() == 0);
  head.clusters.num_clusters = 48;
  CHECK(head.num_blocks() == 3);
}
