#include "quorum/core/config.hpp"

#include <doctest/doctest.h>

#include <cmath>

namespace quorum {
namespace {

TEST_CASE("config: division and rounding upwards, exact where nothing is left, beyond 32 bits too") {
  for (const int64_t divisor : {int64_t(1), int64_t(7), int64_t(16), int64_t(1) << 33})
    for (const int64_t value : {int64_t(0), int64_t(1), divisor - 1, divisor, divisor + 1, 5 * divisor, 5 * divisor + 1}) {
      CAPTURE(divisor);
      CAPTURE(value);
      const int64_t quotient = ceil_div(value, divisor);
      CHECK(quotient * divisor >= value);
      CHECK((quotient - 1) * divisor < value);
      CHECK(round_up(value, divisor) == quotient * divisor);
    }
  static_assert(round_up(17, 16) == 32 && ceil_div(17, 16) == 2);
}

TEST_CASE("config: constants") {
  CHECK(std::isinf(kInfinity));
  CHECK(kInfinity > 0.0f);
  CHECK(std::isnan(kNan));
  CHECK(double(kLog2e) == doctest::Approx(std::log2(std::exp(1.0))).epsilon(1e-7));
  CHECK(kRowAlignment * sizeof(float) == 64);
}

}  // namespace
}  // namespace quorum
