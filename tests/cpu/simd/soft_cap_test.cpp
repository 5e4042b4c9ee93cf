// The hyperbolic tangent and soft-capping against the standard library in double.
#include "quorum/cpu/simd/soft_cap.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

using namespace quorum;

namespace {

float tangent(float x) {
  float lanes[simd::kVectorSize];
  simd::store(lanes, simd::hyperbolic_tangent(simd::Vector(x)));
  return lanes[simd::kVectorSize - 1];
}

}  // namespace

TEST_CASE("tanh: relative error below 4e-7 everywhere, odd, within [-1, 1]") {
  double worst = 0.0;
  for (double x = 1e-6; x < 100.0; x *= 1.0007) {
    const double want = std::tanh(double(float(x)));
    worst = std::max(worst, std::fabs(double(tangent(float(x))) - want) / want);
    CHECK(tangent(-float(x)) == -tangent(float(x)));
    CHECK(tangent(float(x)) <= 1.0f);
  }
  CAPTURE(worst);
  CHECK(worst <= 4e-7);
}

TEST_CASE("tanh: zero, infinities, NaN") {
  CHECK(tangent(0.0f) == 0.0f);
  CHECK(tangent(kInfinity) == 1.0f);
  CHECK(tangent(-kInfinity) == -1.0f);
  CHECK(std::isnan(tangent(kNan)));
}

TEST_CASE("scores are capped in place, `count` of them, on whole vectors and ends") {
  for (const float cap : {0.5f, 30.0f, 50.0f})
    for (int count = 0; count <= 3 * simd::kVectorSize + 1; ++count) {
      std::vector<float> scores(size_t(count) + 1);
      for (int i = 0; i <= count; ++i) scores[size_t(i)] = 7.0f * float(i - 10);
      std::vector<float> capped = scores;
      simd::soft_cap_scores(capped.data(), count, cap);
      int wrong = 0;
      for (int i = 0; i < count; ++i) {
        const double want = double(cap) * std::tanh(double(scores[size_t(i)]) / double(cap));
        wrong += !(std::fabs(double(capped[size_t(i)]) - want) <= 6e-7 * std::fabs(want));
        wrong += capped[size_t(i)] != simd::soft_cap(scores[size_t(i)], cap);
      }
      CHECK(wrong == 0);
      CHECK(capped.back() == scores.back());
    }
}
