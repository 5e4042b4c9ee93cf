// Weighted sums of rows against double precision: every tail of head_dim, rows and heads, every element type.
#include "quorum/cpu/simd/accumulate_rows.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using simd::kTileRows;

namespace {

constexpr int kHeadDims[] = {8, 16, 24, 32, 64, 72, 80, 96, 128, 192, 256, 512};
constexpr int kRowCounts[] = {0, 1, 3, 4, 5, 31, 32};
constexpr float kUntouched = -777.0f;

// Elements of a row that one T holds.
template <class T>
constexpr int kTogether = std::is_same_v<T, q8_0> ? q8_0::kElements : 1;

template <class T>
void fill_row(T* row, int head_dim, test::Random& random) {
  if constexpr (std::is_same_v<T, q8_0>) {
    quantise_q8_0(test::gaussian_floats(head_dim, random.bits()).data(), head_dim, row);
  } else {
    for (int c = 0; c < head_dim; ++c) {
      const double x = random.gaussian();
      if constexpr (std::is_same_v<T, int8_t>)
        row[c] = int8_t(std::lround(x * 40.0));
      else
        row[c] = from_float<T>(float(x));
    }
  }
}
template <class T>
double element(const T* row, int c) {
  if constexpr (std::is_same_v<T, q8_0>)
    return double(to_float(row[c / 32].scale)) * double(row[c / 32].q[c % 32]);
  else if constexpr (std::is_same_v<T, int8_t>)
    return double(row[c]);
  else
    return double(to_float(row[c]));
}
// The scale that tiles are given, and what it makes of an element: types without one leave it aside.
constexpr float kScale = 0.3f;
template <class T>
constexpr double kScaleOfElements = std::is_same_v<T, fp8_e4m3> ? double(kScale) : 1.0;

// What lies between rows: NaN, or a byte that would show.
template <class T>
T between_rows() {
  if constexpr (std::is_same_v<T, q8_0>)
    return {from_float<f16>(kNan), {}};
  else if constexpr (std::is_same_v<T, int8_t>)
    return int8_t(127);
  else
    return from_float<T>(kNan);
}

// Largest error in units of the rounding of a sum of num_rows products; infinite if anything beyond the accumulators' padding was
// written. Accumulators start at random values.
template <class T, int G>
double accumulate_error(int head_dim, int num_rows, uint64_t seed) {
  test::Random random(seed);
  const int stride = int(round_up(head_dim, kRowAlignment)), weight_stride = kTileRows + 1;
  const int between = head_dim / kTogether<T> + 5;
  std::vector<T> block(size_t(kTileRows * between), between_rows<T>());
  const std::byte* rows[kTileRows];
  std::vector<const T*> starts;
  for (int r = 0; r < num_rows; ++r) {
    T* row = block.data() + ((r * 5 + 1) % kTileRows) * between;
    fill_row(row, head_dim, random);
    rows[r] = reinterpret_cast<const std::byte*>(row);
    starts.push_back(row);
  }
  std::vector<float> weights(size_t(G * weight_stride), kNan), out(size_t(G * stride) + 16, kUntouched);
  for (int g = 0; g < G; ++g) {
    for (int r = 0; r < num_rows; ++r) weights[size_t(g * weight_stride + r)] = float(random.uniform());
    for (int c = 0; c < head_dim; ++c) out[size_t(g * stride + c)] = float(random.gaussian());
  }
  const std::vector<float> before = out;
  simd::accumulate_tile<T, G>({rows, rows, num_rows, num_rows, head_dim, kScale}, weights.data(), weight_stride, out.data(), stride);
  for (size_t i = size_t(G * stride); i < out.size(); ++i)
    if (out[i] != kUntouched) return double(kInfinity);
  double worst = 0.0;
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < head_dim; ++c) {
      double want = double(before[size_t(g * stride + c)]), size = std::fabs(want);
      for (int r = 0; r < num_rows; ++r) {
        const double product = double(weights[size_t(g * weight_stride + r)]) * kScaleOfElements<T> * element(starts[size_t(r)], c);
        want += product;
        size += std::fabs(product);
      }
      const double error = std::fabs(double(out[size_t(g * stride + c)]) - want) / (0x1p-24 * (num_rows + 2.0) * size);
      worst = test::larger_error(worst, error);
    }
  return worst;
}

template <class T>
double worst_over_heads(int head_dim, int num_rows, uint64_t seed) {
  return std::max(std::max(accumulate_error<T, 1>(head_dim, num_rows, seed), accumulate_error<T, 2>(head_dim, num_rows, seed)),
                  std::max(accumulate_error<T, 3>(head_dim, num_rows, seed), accumulate_error<T, 4>(head_dim, num_rows, seed)));
}

}  // namespace

TEST_CASE_TEMPLATE("weighted sums are added to what was there", T, float, f16, bf16, int8_t, q8_0, fp8_e4m3) {
  for (const int head_dim : kHeadDims)
    for (const int num_rows : kRowCounts) {
      if (head_dim % kTogether<T> != 0) continue;
      const uint64_t seed = uint64_t(head_dim * 100 + num_rows);
      CAPTURE(head_dim);
      CAPTURE(num_rows);
      CAPTURE(seed);
      CHECK(worst_over_heads<T>(head_dim, num_rows, seed) <= 1.0);
    }
}

TEST_CASE("a NaN value poisons its own column alone, whatever its weight") {
  const int d = 24;
  std::vector<float> row(d, 1.0f), out(32, 0.0f);
  row[17] = kNan;
  const std::byte* rows[1] = {reinterpret_cast<const std::byte*>(row.data())};
  const float weight = 0.0f;
  simd::accumulate_tile<float, 1>({rows, nullptr, 1, 0, d}, &weight, 1, out.data(), 32);
  for (int c = 0; c < d; ++c) CHECK(std::isnan(out[size_t(c)]) == (c == 17));
}
