// The fixed mixing of coordinates: orthogonal for every head_dim, and it spreads a single coordinate.
#include "quorum/cpu/simd/rotate.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

std::vector<float> random_signs(int count, uint64_t seed) {
  test::Random random(seed);
  std::vector<float> signs;
  for (int i = 0; i < count; ++i) signs.push_back(random.uniform() < 0.5 ? -1.0f : 1.0f);
  return signs;
}

std::vector<float> rotated(std::vector<float> x, const std::vector<float>& signs) {
  simd::rotate(x.data(), signs.data(), int(x.size()));
  return x;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

}  // namespace

TEST_CASE("Hadamard transform: sums over the signs of the common bits") {
  for (const int n : {8, 16, 64, 512}) {
    std::vector<float> x = test::gaussian_floats(n, uint64_t(n)), y = x;
    simd::hadamard(y.data(), n);
    double worst = 0.0;
    for (int i = 0; i < n; ++i) {
      double want = 0.0;
      for (int j = 0; j < n; ++j) want += (__builtin_popcount(unsigned(i & j)) % 2 == 0 ? 1.0 : -1.0) * double(x[size_t(j)]);
      worst = test::larger_error(worst, std::fabs(want - double(y[size_t(i)])));
    }
    CAPTURE(n);
    CHECK(worst <= 1e-6 * n);
  }
}

TEST_CASE("the rotation is orthogonal: products of unit vectors stay, for every head_dim") {
  for (int d = 8; d <= 512; d += 8) {
    CAPTURE(d);
    const auto signs = random_signs(d, uint64_t(d));
    const auto a = test::gaussian_floats(d, 1), b = test::gaussian_floats(d, 2);
    const auto ra = rotated(a, signs), rb = rotated(b, signs);
    CHECK(test::near(dot(ra, rb), dot(a, b), 1e-5 * d));
    CHECK(test::near(dot(ra, ra), dot(a, a), 1e-5 * d));
  }
}

TEST_CASE("rotated unit vectors are an orthonormal basis") {
  for (const int d : {8, 24, 64, 80, 96}) {
    CAPTURE(d);
    const auto signs = random_signs(d, 7);
    std::vector<std::vector<float>> basis;
    for (int i = 0; i < d; ++i) {
      std::vector<float> unit(size_t(d), 0.0f);
      unit[size_t(i)] = 1.0f;
      basis.push_back(rotated(unit, signs));
    }
    double worst = 0.0;
    for (int i = 0; i < d; ++i)
      for (int j = 0; j < d; ++j)
        worst = test::larger_error(worst, std::fabs(dot(basis[size_t(i)], basis[size_t(j)]) - (i == j ? 1.0 : 0.0)));
    CHECK(worst <= 1e-5);
  }
}

TEST_CASE("a single coordinate is spread over many, for every head_dim") {
  for (int d = 24; d <= 512; d += 8) {
    const auto signs = random_signs(d, 8);
    double fourth_powers = 0.0;
    for (int i = 0; i < d; ++i) {
      std::vector<float> unit(size_t(d), 0.0f);
      unit[size_t(i)] = 1.0f;
      for (const float x : rotated(unit, signs)) fourth_powers += std::pow(double(x), 4);
    }
    // Mean over the coordinates of d * sum x^4: 1 if all are equal, 3 for a random direction, d if nothing was spread.
    CAPTURE(d);
    CHECK(fourth_powers <= 3.5);
  }
}

TEST_CASE("signs matter, nothing beyond head_dim is touched") {
  const int d = 24;
  std::vector<float> x = test::gaussian_floats(d + 8, 3), y = x;
  const auto ones = std::vector<float>(d, 1.0f), signs = random_signs(d, 9);
  simd::rotate(x.data(), ones.data(), d);
  simd::rotate(y.data(), signs.data(), d);
  CHECK(std::vector<float>(x.begin(), x.begin() + d) != std::vector<float>(y.begin(), y.begin() + d));
  const auto untouched = test::gaussian_floats(d + 8, 3);
  for (int c = d; c < d + 8; ++c) CHECK(x[size_t(c)] == untouched[size_t(c)]);
}
