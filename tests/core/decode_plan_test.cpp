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

TEST_CASE("single tokens are read where there are codes, unless whole clusters are wanted") {
  DecodeOptions options;
  for (const bool codes : {false, true}) {
    options.unit = ReadUnit::automatic;
    CHECK(reads_tokens(options, codes) == codes);
    options.unit = ReadUnit::tokens;
    CHECK(reads_tokens(options, codes) == codes);
    options.unit = ReadUnit::clusters;
    CHECK(!reads_tokens(options, codes));
  }
}

TEST_CASE("a choice stands by codes alone with a budget or an error, not with a target or a certificate") {
  DecodeOptions options;
  CHECK(!chooses_once(options));
  options.fixed_budget = 10;
  CHECK(chooses_once(options));
  options.certificate.enabled = true;
  CHECK(!chooses_once(options));
  options.certificate.enabled = false;
  options.fixed_budget = 0;
  options.target_error = 0.1f;
  CHECK(chooses_once(options));
}

TEST_CASE("half of the tokens at random cost as much as all of them in order, unless tokens or a budget were asked for") {
  DecodeOptions options;
  CHECK(dense_is_cheaper(options, 50, 100));
  CHECK(!dense_is_cheaper(options, 49, 100));
  CHECK(dense_is_cheaper(options, kMaxCount, kMaxCount));
  options.fixed_budget = 1;
  CHECK(!dense_is_cheaper(options, 90, 100));
  options.fixed_budget = 0;
  options.unit = ReadUnit::tokens;
  CHECK(!dense_is_cheaper(options, 90, 100));
}
