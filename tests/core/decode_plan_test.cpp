#include "quorum/core/decode_plan.hpp"

#include <doctest/doctest.h>

using namespace quorum;

TEST_CASE("first path: what forbids a sparse step, and what comes first") {
  DecodeOptions options;
  options.dense_below = 100;
  const IndexedHead head{true, false, 64};
  CHECK(first_path(head, 101, options, 64) == DecodePath::sparse);
  CHECK(first_path(head, 100, options, 64) == DecodePath::dense_by_length);
  CHECK(first_path({false, false, 64}, 1000, options, 64) == DecodePath::dense_by_length);
  CHECK(first_path({true, true, 64}, 1000, options, 64) == DecodePath::dense_by_numerics);
  CHECK(first_path(head, 1000, options, 63) == DecodePath::dense_by_capacity);
  options.target_ratio = 1.0f;
  CHECK(first_path({true, true, 64}, 1000, options, 64) == DecodePath::dense_by_target);
  options.fixed_budget = 10;  // the target does not count then
  CHECK(first_path(head, 1000, options, 64) == DecodePath::sparse);
  options.fixed_budget = 0;
  options.target_error = 0.05f;
  CHECK(first_path(head, 1000, options, 64) == DecodePath::sparse);
}
