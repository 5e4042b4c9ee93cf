// The query's way into the index's coordinates: products and sums against double, rounding to int8 against its definition.
#include "quorum/cpu/simd/transform.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

template <int G>
void check_transform(int d) {
  const std::vector<float> wide = test::gaussian_floats(d * 16, 3), queries = test::gaussian_floats(G * (d + 16), 4);
  std::vector<f16> factors;
  for (const float x : wide) factors.push_back(from_float<f16>(x));
  factors.resize(factors.size() + 1);
  std::vector<float> out(20 * size_t{G}, kNan);
  simd::transform_block<G>(factors.data(), d, queries.data(), d + 16, out.data(), 20);
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < 16; ++i) {
      double want = 0.0;
      for (int c = 0; c < d; ++c) want += double(to_float(factors[size_t(c * 16 + i)])) * double(queries[size_t(g * (d + 16) + c)]);
      CAPTURE(d);
      CHECK(test::near(out[size_t(g * 20 + i)], want, 1e-5 * std::sqrt(double(d)) * 4.0));
    }
}

}  // namespace

TEST_CASE("transform: the matrix product of every group size") {
  for (const int d : {8, 16, 24, 64, 80, 256, 512}) {
    check_transform<1>(d);
    check_transform<2>(d);
    check_transform<3>(d);
    check_transform<4>(d);
  }
}

TEST_CASE("sums over coordinates") {
  for (const int count : {16, 48, 512}) {
    const std::vector<float> a = test::gaussian_floats(count, 1), b = test::gaussian_floats(count, 2);
    double dot = 0.0, squares = 0.0, largest = 0.0;
    for (int i = 0; i < count; ++i) {
      dot += double(a[size_t(i)]) * double(b[size_t(i)]);
      squares += double(a[size_t(i)]) * double(a[size_t(i)]) * double(b[size_t(i)]);
      largest = std::max(largest, std::fabs(double(a[size_t(i)])));
    }
    CHECK(test::near(simd::dot(a.data(), b.data(), count), dot, 1e-5 * count));
    CHECK(test::near(simd::weighted_square_sum(a.data(), b.data(), count), squares, 1e-5 * count));
    CHECK(simd::largest_magnitude(a.data(), count) == float(largest));
  }
}

TEST_CASE("rounding to int8: nearest, clamped, NaN to zero, and the sum") {
  std::vector<float> x = test::gaussian_floats(64, 5);
  x[3] = kNan;
  x[4] = kInfinity;
  x[5] = -kInfinity;
  x[6] = 0.0f;
  const float step = 2.0f / 127.0f;
  std::vector<int8_t> out(64);
  const int32_t sum = simd::quantise(x.data(), step, 64, out.data());
  int32_t total = 0;
  for (int i = 0; i < 64; ++i) {
    total += out[size_t(i)];
    if (i >= 3 && i <= 6) continue;
    const double steps = std::clamp(double(x[size_t(i)]) / double(step), -127.0, 127.0);
    CHECK(std::fabs(double(out[size_t(i)]) - steps) <= 0.5001);
  }
  CHECK(sum == total);
  CHECK(int(out[3]) == 0);
  CHECK(int(out[4]) == 127);
  CHECK(int(out[5]) == -127);
  CHECK(int(out[6]) == 0);
}
