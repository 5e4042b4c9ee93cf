// When enough has been read.
#include "quorum/core/stopping_rule.hpp"

#include <doctest/doctest.h>

#include "tests/support/random.hpp"

using namespace quorum;

TEST_CASE("attained ratio") {
  CHECK(attained_ratio(3.0f, 1.0f) == 0.75f);
  CHECK(attained_ratio(0.0f, 1.0f) == 0.0f);
  CHECK(attained_ratio(1.0f, 0.0f) == 1.0f);
  CHECK(attained_ratio(0.0f, 0.0f) == 1.0f);    // nothing at all counts as everything
  CHECK(attained_ratio(1.0f, -1e-6f) == 1.0f);  // what rounding may leave of an empty rest
}

TEST_CASE("the target is met from the ratio on") {
  CHECK(meets_target(0.9, 0.1, 0.9));
  CHECK(meets_target(0.90001, 0.1, 0.9));
  CHECK_FALSE(meets_target(0.8999, 0.1, 0.9));
  CHECK(meets_target(1.0f, 0.0f, 1.0f));
  CHECK_FALSE(meets_target(1.0f, 0.001f, 1.0f));
  CHECK(meets_target(0.0f, 0.0f, 0.9f));  // nothing is left to read
}

TEST_CASE("NaN never meets a target") {
  CHECK_FALSE(meets_target(kNan, 1.0f, 0.5f));
  CHECK_FALSE(meets_target(1.0f, kNan, 0.5f));
}

TEST_CASE("both rules agree, and reading more never un-meets a target") {
  const uint64_t seed = 31;
  CAPTURE(seed);
  test::Random random(seed);
  int disagreements = 0, reversals = 0;
  for (int i = 0; i < 10000; ++i) {
    const double read = random.uniform(), rest = random.uniform(), target = random.uniform(0.01, 0.999);
    const double ratio = read / (read + rest);
    if (std::fabs(ratio - target) > 1e-9) disagreements += meets_target(read, rest, target) != (ratio >= target);
    const double moved = rest * random.uniform();
    reversals += meets_target(read, rest, target) && !meets_target(read + moved, rest - moved, target * (1.0 - 1e-12));
  }
  CHECK(disagreements == 0);
  CHECK(reversals == 0);
}
