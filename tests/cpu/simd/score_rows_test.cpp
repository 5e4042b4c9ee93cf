// Scores of tiles of rows against double precision: every tail of head_dim, rows and heads, every element type.
#include "quorum/cpu/simd/score_rows.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using simd::kTileRows;
using simd::RowTile;

namespace {

constexpr int kHeadDims[] = {8, 16, 24, 32, 64, 72, 80, 96, 128, 192, 256, 512};
constexpr int kRowCounts[] = {0, 1, 3, 4, 5, 31, 32};
constexpr float kUntouched = -777.0f;

// Largest error of the scores of `num_rows` rows, in units of the rounding that sums of head_dim products may have; infinite if anything
// but these scores was written. Rows lie in no order, with NaN between them.
template <class T, int G>
double score_error(int head_dim, int num_rows, uint64_t seed) {
  const ElementType type = ElementTypeOf<T>::value;
  const int stride = int(round_up(head_dim, kRowAlignment)), score_stride = kTileRows + 3;
  test::Random random(seed);
  const int64_t between = head_dim + block_elements(type);
  test::ElementBlock block(type, kTileRows * between);
  const std::byte* rows[kTileRows];
  std::vector<int64_t> starts;
  for (int r = 0; r < num_rows; ++r) {
    const int64_t start = (r * 7 + 3) % kTileRows * between;
    block.set_row(start, test::gaussian_floats(head_dim, random.bits()).data(), head_dim);
    rows[r] = block.at(start);
    starts.push_back(start);
  }
  std::vector<float> queries(size_t(G * stride), 0.0f), scores(size_t(G * score_stride), kUntouched);
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < head_dim; ++c) queries[size_t(g * stride + c)] = float(random.gaussian());
  const int num_prefetch = num_rows / 2;
  const float scale = 0.3f;  // types without one leave it aside
  const double scale_of_elements = type == ElementType::fp8_e4m3 ? double(scale) : 1.0;
  simd::score_tile<T, G>({rows, rows, num_rows, num_prefetch, head_dim, scale}, queries.data(), stride, scores.data(), score_stride);
  double worst = 0.0;
  for (int g = 0; g < G; ++g)
    for (int r = 0; r < score_stride; ++r) {
      const float got = scores[size_t(g * score_stride + r)];
      if (r >= num_rows) {
        if (got != kUntouched) return double(kInfinity);
        continue;
      }
      double want = 0.0, size = 0.0;
      for (int c = 0; c < head_dim; ++c) {
        const double product = double(queries[size_t(g * stride + c)]) * scale_of_elements * block.get(starts[size_t(r)] + c);
        want += product;
        size += std::fabs(product);
      }
      // At least 4 chains of head_dim / 4 additions, their sum, and one rounding of every product; one of a scaled element.
      const double bound = 0x1p-24 * (head_dim / 4.0 + 5.0) * size;
      const double error = std::fabs(double(got) - want) / bound;
      worst = test::larger_error(worst, error);
    }
  return worst;
}

template <class T>
double worst_over_heads(int head_dim, int num_rows, uint64_t seed) {
  return std::max(std::max(score_error<T, 1>(head_dim, num_rows, seed), score_error<T, 2>(head_dim, num_rows, seed)),
                  std::max(score_error<T, 3>(head_dim, num_rows, seed), score_error<T, 4>(head_dim, num_rows, seed)));
}

}  // namespace

TEST_CASE_TEMPLATE("scores are the dot products, and nothing else is written", T, float, f16, bf16, q8_0, fp8_e4m3) {
  for (const int head_dim : kHeadDims)
    for (const int num_rows : kRowCounts) {
      if (head_dim % block_elements(ElementTypeOf<T>::value) != 0) continue;
      const uint64_t seed = uint64_t(head_dim * 100 + num_rows);
      CAPTURE(head_dim);
      CAPTURE(num_rows);
      CAPTURE(seed);
      CHECK(worst_over_heads<T>(head_dim, num_rows, seed) <= 1.0);
    }
}

TEST_CASE("a NaN or infinite row poisons its own score alone") {
  const int d = 72;
  test::ElementBlock block(ElementType::f32, 4 * d);
  for (int64_t i = 0; i < 4 * d; ++i) block.set(i, 1.0f);
  block.set(1 * d + 71, kNan);
  block.set(2 * d + 5, kInfinity);
  const std::byte* rows[4] = {block.at(0), block.at(d), block.at(2 * d), block.at(3 * d)};
  std::vector<float> queries(80, 0.0f), scores(4);
  std::fill_n(queries.begin(), d, 0.5f);
  simd::score_tile<float, 1>({rows, nullptr, 4, 0, d}, queries.data(), 80, scores.data(), 4);
  CHECK(scores[0] == 36.0f);
  CHECK(std::isnan(scores[1]));
  CHECK(scores[2] == kInfinity);
  CHECK(scores[3] == 36.0f);
}

TEST_CASE("horizontal sums of sixteen accumulators keep their order") {
  simd::Vector accumulators[16];
  for (int i = 0; i < 16; ++i) {
    float lanes[simd::kVectorSize];
    for (int lane = 0; lane < simd::kVectorSize; ++lane) lanes[lane] = float((i + 1) * (lane + 1));
    accumulators[i] = simd::load(lanes);
  }
  float sums[16];
  simd::reduce_accumulators<16>(accumulators, sums);
  const int lane_sum = simd::kVectorSize * (simd::kVectorSize + 1) / 2;
  for (int i = 0; i < 16; ++i) CHECK(sums[i] == float((i + 1) * lane_sum));
  float five[5];
  simd::reduce_accumulators<5>(accumulators, five);
  for (int i = 0; i < 5; ++i) CHECK(five[i] == float((i + 1) * lane_sum));
}

TEST_CASE("sums of whole rows, one to four of them") {
  constexpr int kSize = simd::kVectorSize;
  float rows[4 * kSize], sums[5];
  for (int i = 0; i < 4 * kSize; ++i) rows[i] = float(i * 7 % 11 - 3);
  const auto check = [&](auto count) {
    std::fill_n(sums, 5, 99.0f);
    simd::reduce_rows<count()>(rows, sums);
    for (int r = 0; r < 5; ++r) {
      float want = r < count() ? 0.0f : 99.0f;
      for (int i = 0; i < kSize && r < count(); ++i) want += rows[r * kSize + i];
      CHECK(sums[r] == want);
    }
  };
  check(std::integral_constant<int, 1>{});
  check(std::integral_constant<int, 2>{});
  check(std::integral_constant<int, 3>{});
  check(std::integral_constant<int, 4>{});
}
