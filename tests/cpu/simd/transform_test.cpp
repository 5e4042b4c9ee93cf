// The query's way into the index's coordinates, piece by piece, against double precision.
#include "quorum/cpu/simd/transform.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "tests/reference/attention_reference.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

// Largest error of one block for G heads, in units of the rounding of a sum of head_dim products.
template <int G>
double transform_error(int head_dim, uint64_t seed) {
  const int stride = int(round_up(head_dim, kRowAlignment)), out_stride = 16 + 5;
  test::Random random(seed);
  std::vector<f16> factors(size_t(head_dim * 16));
  for (f16& factor : factors) factor = from_float<f16>(float(random.gaussian()));
  std::vector<float> queries(size_t(G * stride), kNan), out(size_t(G * out_stride), -777.0f);
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < head_dim; ++c) queries[size_t(g * stride + c)] = float(random.gaussian());
  simd::transform_block<G>(factors.data(), head_dim, queries.data(), stride, out.data(), out_stride);
  double worst = 0.0;
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < out_stride; ++i) {
      const float got = out[size_t(g * out_stride + i)];
      if (i >= 16) {
        if (got != -777.0f) return double(kInfinity);
        continue;
      }
      double want = 0.0, size = 0.0;
      for (int c = 0; c < head_dim; ++c) {
        const double product = reference::decode_f16(factors[size_t(c * 16 + i)].bits) * double(queries[size_t(g * stride + c)]);
        want += product;
        size += std::fabs(product);
      }
      worst = test::larger_error(worst, std::fabs(double(got) - want) / (0x1p-24 * (head_dim + 2.0) * size));
    }
  return worst;
}

}  // namespace

TEST_CASE("a block of sixteen coordinates, all head_dims and heads") {
  for (const int head_dim : {8, 16, 24, 64, 72, 80, 96, 128, 192, 256, 512}) {
    const uint64_t seed = uint64_t(head_dim);
    CAPTURE(seed);
    CHECK(transform_error<1>(head_dim, seed) <= 1.0);
    CHECK(transform_error<2>(head_dim, seed) <= 1.0);
    CHECK(transform_error<3>(head_dim, seed) <= 1.0);
    CHECK(transform_error<4>(head_dim, seed) <= 1.0);
  }
}

TEST_CASE("sums of products and of weighted squares") {
  for (int count = 16; count <= 512; count += 16) {
    const auto a = test::gaussian_floats(count, 1), b = test::gaussian_floats(count, 2);
    double dot = 0.0, squares = 0.0, dot_size = 0.0, square_size = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      dot += double(a[i]) * double(b[i]);
      squares += double(a[i]) * double(a[i]) * double(b[i]);
      dot_size += std::fabs(double(a[i]) * double(b[i]));
      square_size += std::fabs(double(a[i]) * double(a[i]) * double(b[i]));
    }
    CAPTURE(count);
    CHECK(test::near(simd::dot(a.data(), b.data(), count), dot, 0x1p-24 * (count + 2) * dot_size));
    CHECK(test::near(simd::weighted_square_sum(a.data(), b.data(), count), squares, 0x1p-24 * (count + 3) * square_size));
  }
}

TEST_CASE("largest magnitude: of both signs, NaN does not count, infinity does") {
  for (int at = 0; at < 48; ++at)
    for (const float sign : {1.0f, -1.0f}) {
      auto x = test::gaussian_floats(48, 3, 0.1f);
      x[size_t(at)] = sign * 5.0f;
      REQUIRE(simd::largest_magnitude(x.data(), 48) == 5.0f);
      x[size_t((at + 7) % 48)] = kNan;
      REQUIRE(simd::largest_magnitude(x.data(), 48) == 5.0f);
      x[size_t((at + 9) % 48)] = sign * kInfinity;
      REQUIRE(simd::largest_magnitude(x.data(), 48) == kInfinity);
    }
  const std::vector<float> zeros(16, 0.0f), nans(16, kNan);
  CHECK(simd::largest_magnitude(zeros.data(), 16) == 0.0f);
  CHECK(simd::largest_magnitude(nans.data(), 16) == 0.0f);
}

TEST_CASE("all finite: one NaN or infinity anywhere is noticed, large numbers, denormals and zeros are finite") {
  for (const int count : {16, 48, 512}) {
    const auto finite = test::gaussian_floats(count, 5, 1e37f);
    CHECK(simd::all_finite(finite.data(), count));
    for (int at = 0; at < count; ++at)
      for (const float element : {kNan, -kNan, kInfinity, -kInfinity}) {
        auto x = finite;
        x[size_t(at)] = element;
        REQUIRE_FALSE(simd::all_finite(x.data(), count));
        x[size_t((at + 5) % count)] = -element;  // two of them do not cancel
        REQUIRE_FALSE(simd::all_finite(x.data(), count));
      }
  }
  const std::vector<float> largest(64, std::numeric_limits<float>::max()), least(64, std::numeric_limits<float>::denorm_min());
  std::vector<float> zeros(65, -0.0f);
  zeros[64] = kNan;
  CHECK(simd::all_finite(largest.data(), 64));
  CHECK(simd::all_finite(least.data(), 64));
  CHECK(simd::all_finite(zeros.data(), 64));  // what lies beyond is not read
  CHECK(simd::all_finite(zeros.data(), 0));
}

TEST_CASE("rounding to int8: nearest, clamped, and the sum") {
  const auto x = test::gaussian_floats(512, 4);
  const float step = 4.0f / 127.0f;
  std::vector<int8_t> out(513, int8_t(99));
  const int32_t sum = simd::quantise(x.data(), step, 512, out.data());
  int want_sum = 0, wrong = 0;
  for (size_t i = 0; i < 512; ++i) {
    const double steps = std::clamp(double(x[i]) / double(step), -127.0, 127.0);
    wrong += !test::near(out[i], steps, 0.5001);
    want_sum += out[i];
  }
  CHECK(wrong == 0);
  CHECK(sum == want_sum);
  CHECK(out[512] == 99);
}

TEST_CASE("rounding to int8: extremes and NaN are defined") {
  const std::vector<float> x{1e30f, -1e30f, kInfinity, -kInfinity, kNan, 127.0f, -127.0f, 128.0f,
                             0.5f,  1.5f,   2.5f,      -0.5f,      0.0f, -0.0f,  126.6f,  -1.4f};
  int8_t out[16];
  const int32_t sum = simd::quantise(x.data(), 1.0f, 16, out);
  const int8_t want[16] = {127, -127, 127, -127, 0, 127, -127, 127, 0, 2, 2, 0, 0, 0, 127, -1};
  int32_t want_sum = 0;
  for (int i = 0; i < 16; ++i) {
    CAPTURE(i);
    CHECK(int(out[i]) == int(want[i]));
    want_sum += want[i];
  }
  CHECK(sum == want_sum);
}
