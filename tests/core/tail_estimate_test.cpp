// Scaling of the unread rest.
#include "quorum/core/tail_estimate.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace quorum;

TEST_CASE("scaled estimates add up to the amount") {
  const float estimates[3] = {0.5f, 0.25f, 0.125f};
  const float scale = tail_scale(3.5f, 0.875f);
  float sum = 0.0f;
  for (const float estimate : estimates) sum += scale * estimate;
  CHECK(sum == 3.5f);
}

TEST_CASE("nothing to scale gives nothing") {
  CHECK(tail_scale(3.0f, 0.0f) == 0.0f);
  CHECK(tail_scale(3.0f, -1.0f) == 0.0f);
  CHECK(tail_scale(3.0f, kNan) == 0.0f);
  CHECK(tail_scale(0.0f, 2.0f) == 0.0f);
}

static_assert(kTailCoverage > 0.0f && kTailCoverage <= 1.0f);

TEST_CASE("names") {
  CHECK(std::string(tail_name(Tail::drop)) == "drop");
  CHECK(std::string(tail_name(Tail::estimated)) == "estimated");
  CHECK(std::string(tail_name(Tail::calibrated)) == "calibrated");
}
