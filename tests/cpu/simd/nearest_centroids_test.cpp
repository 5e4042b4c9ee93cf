// The search inside k-means: exact on every instruction set, for every number of rows, blocks and coordinates.
#include "quorum/cpu/simd/nearest_centroids.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "quorum/cpu/aligned_vector.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

// Rows and centroids, in the search's layouts. What it must not depend on is random: the bytes of missing centroids and of centroids beyond
// dim.
struct Problem {
  int num_rows, dim, stride, num_clusters, num_blocks;
  std::vector<int8_t> row_bytes;
  std::vector<float> row_scale;
  cpu::AlignedVector<uint8_t> blocks, centroid_bytes;
  std::vector<float> scale, half_norm;

  // query and byte make the elements of rows and centroids.
  template <class Query, class Byte>
  Problem(int rows, int dims, int clusters, test::Random& random, Query&& query, Byte&& byte)
      : num_rows(rows),
        dim(dims),
        stride(int(round_up(dims, 64))),
        num_clusters(clusters),
        num_blocks(int(ceil_div(clusters, 16))),
        row_bytes(size_t(rows * stride), int8_t(0)),
        row_scale(size_t(rows)),
        blocks(size_t(num_blocks * 16 * dims)),
        centroid_bytes(size_t(num_blocks * 16 * stride)),
        scale(size_t(num_blocks * 16)),
        half_norm(scale.size(), kInfinity) {
    for (int i = 0; i < rows; ++i)
      for (int c = 0; c < dims; ++c) row_bytes[size_t(i * stride + c)] = query();
    for (auto& b : centroid_bytes) b = uint8_t(random.below(256));
    for (int j = 0; j < num_blocks * 16; ++j)
      for (int c = 0; c < dims; ++c) {
        const uint8_t b = j < clusters ? byte() : uint8_t(random.below(256));
        centroid_bytes[size_t(j * stride + c)] = b;
        blocks[size_t((j / 16) * 16 * dims + (c / 4) * 64 + (j % 16) * 4 + c % 4)] = b;
      }
    // Powers of two and whole numbers: products and differences are exact in single precision.
    for (float& s : row_scale) s = float(1 << random.below(3)) * 0.5f;
    for (float& s : scale) s = float(1 << random.below(3));
    for (int j = 0; j < clusters; ++j) half_norm[size_t(j)] = float(2 * random.below(50000));
  }
  simd::ByteRows rows() const { return {row_bytes.data(), row_scale.data(), num_rows, dim, stride}; }
  simd::ByteCentroids centroids() const {
    return {blocks.data(), centroid_bytes.data(), scale.data(), half_norm.data(), num_blocks, dim, stride};
  }
  // x.c - |c|^2 / 2 divided by the row's scale, in double; -inf where there is no centroid.
  double value(int row, int cluster, int dims) const {
    int64_t dot = 0;
    for (int c = 0; c < dims; ++c)
      dot += int64_t(row_bytes[size_t(row * stride + c)]) * (int64_t(centroid_bytes[size_t(cluster * stride + c)]) - 128);
    return double(dot) * double(scale[size_t(cluster)]) - double(half_norm[size_t(cluster)]) / double(row_scale[size_t(row)]);
  }
};

Problem random_problem(int rows, int dim, int clusters, test::Random& random) {
  return {rows, dim, clusters, random, [&] { return int8_t(random.below(255) - 127); }, [&] { return uint8_t(random.below(256)); }};
}

// Lanes in which search_all differs from the reference, by cluster or value, or writes where it must not.
int wrong_lanes(const Problem& problem, int first_row, int num_rows, int dims) {
  std::vector<simd::LaneBest> best(size_t(num_rows) + 1);
  for (auto& lanes : best) {
    std::fill_n(lanes.value, 16, kNan);
    std::fill_n(lanes.cluster, 16, -77);
  }
  simd::search_all(problem.centroids(), problem.rows(), first_row, num_rows, dims, best.data());
  int wrong = 0;
  for (int r = 0; r < num_rows; ++r)
    for (int lane = 0; lane < 16; ++lane) {
      double want = -double(kInfinity);
      int cluster = lane;
      for (int j = lane; j < problem.num_clusters; j += 16) {
        const double value = problem.value(first_row + r, j, dims);
        if (value > want) {
          want = value;
          cluster = j;
        }
      }
      const simd::LaneBest& got = best[size_t(r)];
      wrong += !(double(got.value[lane]) == want) || got.cluster[lane] != cluster;
    }
  for (int lane = 0; lane < 16; ++lane) wrong += best.back().cluster[lane] != -77;
  return wrong;
}

// Rows for which search_candidates is not the first of the best of 16 random candidates, some of them equal.
int wrong_candidates(const Problem& problem, test::Random& random) {
  int wrong = 0;
  for (int i = 0; i < problem.num_rows; ++i) {
    int32_t candidates[16];
    for (int32_t& candidate : candidates) candidate = random.below(problem.num_clusters);
    int want = 0;
    for (int lane = 1; lane < 16; ++lane)
      if (problem.value(i, candidates[lane], problem.dim) > problem.value(i, candidates[want], problem.dim)) want = lane;
    wrong += simd::search_candidates(problem.centroids(), candidates, problem.rows(), i) != candidates[want];
  }
  return wrong;
}

}  // namespace

TEST_CASE("all dims, and only the first of them") {
  const uint64_t seed = 61;
  CAPTURE(seed);
  test::Random random(seed);
  for (int dim = 8; dim <= 512; dim += 8) {
    CAPTURE(dim);
    const Problem problem = random_problem(9, dim, 75, random);
    CHECK(wrong_lanes(problem, 0, 9, dim) == 0);
    CHECK(wrong_candidates(problem, random) == 0);
    for (const int dims : {4, int(round_up(dim / 2, 4)), dim - 4}) {
      CAPTURE(dims);
      CHECK(wrong_lanes(problem, 0, 9, dims) == 0);
    }
  }
}

TEST_CASE("all numbers of rows, from any first row") {
  const uint64_t seed = 62;
  CAPTURE(seed);
  test::Random random(seed);
  for (int rows = 1; rows <= simd::kSearchRows; ++rows)
    for (const int clusters : {16, 90}) {
      CAPTURE(rows);
      CAPTURE(clusters);
      CHECK(wrong_lanes(random_problem(rows, 24, clusters, random), 0, rows, 24) == 0);
      CHECK(wrong_lanes(random_problem(rows + 5, 24, clusters, random), 5, rows, 24) == 0);
    }
  CHECK(wrong_lanes(random_problem(3, 24, 20, random), 3, 0, 24) == 0);  // no row: nothing is written
}

TEST_CASE("all numbers of centroids up to nine blocks: the missing ones never win") {
  const uint64_t seed = 63;
  CAPTURE(seed);
  test::Random random(seed);
  for (int clusters = 1; clusters <= 144; ++clusters) {
    CAPTURE(clusters);
    const Problem problem = random_problem(6, 40, clusters, random);
    CHECK(wrong_lanes(problem, 0, 6, 40) == 0);
    CHECK(wrong_candidates(problem, random) == 0);
  }
}

TEST_CASE("of equal centroids the first wins, in a lane and among candidates") {
  const uint64_t seed = 64;
  CAPTURE(seed);
  test::Random random(seed);
  Problem problem = random_problem(7, 16, 144, random);
  // Every block is the first one again, the fifth excepted, which is a copy with a larger norm.
  for (int j = 16; j < 144; ++j) {
    std::copy_n(problem.centroid_bytes.begin() + j % 16 * problem.stride, 16, problem.centroid_bytes.begin() + j * problem.stride);
    problem.scale[size_t(j)] = problem.scale[size_t(j % 16)];
    problem.half_norm[size_t(j)] = problem.half_norm[size_t(j % 16)] + (j / 16 == 4 ? 2.0f : 0.0f);
  }
  for (int b = 1; b < 9; ++b) std::copy_n(problem.blocks.begin(), 16 * 16, problem.blocks.begin() + b * 16 * 16);
  CHECK(wrong_lanes(problem, 0, 7, 16) == 0);
  std::vector<simd::LaneBest> best(7);
  simd::search_all(problem.centroids(), problem.rows(), 0, 7, 16, best.data());
  for (const auto& lanes : best)
    for (int lane = 0; lane < 16; ++lane) CHECK(lanes.cluster[lane] == lane);
  const int32_t candidates[16] = {69, 5 + 128, 5 + 16, 5, 69, 5 + 32, 5 + 16, 5, 69, 5, 5, 5, 5, 5, 5, 5};
  for (int i = 0; i < 7; ++i) CHECK(simd::search_candidates(problem.centroids(), candidates, problem.rows(), i) == 5 + 128);
}

TEST_CASE("rows of zeros go to the shortest centroid") {
  test::Random random(65);
  Problem problem(
      5, 72, 60, random, [] { return int8_t(0); }, [&] { return uint8_t(random.below(256)); });
  CHECK(wrong_lanes(problem, 0, 5, 72) == 0);
  CHECK(wrong_candidates(problem, random) == 0);
  std::vector<int32_t> candidates(16);
  for (int lane = 0; lane < 16; ++lane) candidates[size_t(lane)] = 16 + lane;
  problem.half_norm[16 + 11] = -2.0f;
  CHECK(simd::search_candidates(problem.centroids(), candidates.data(), problem.rows(), 2) == 16 + 11);
}

TEST_CASE("extremes do not saturate") {
  test::Random random(66);
  for (const int dim : {8, 64, 136, 512})
    for (const int query : {-127, 0, 127})
      for (const int byte : {0, 1, 128, 255}) {
        CAPTURE(dim);
        CAPTURE(query);
        CAPTURE(byte);
        Problem problem(
            5, dim, 70, random, [&] { return int8_t(query); }, [&] { return uint8_t(byte); });
        std::fill(problem.scale.begin(), problem.scale.end(), 1.0f);
        CHECK(wrong_lanes(problem, 0, 5, dim) == 0);
        CHECK(wrong_candidates(problem, random) == 0);
      }
}

TEST_CASE("scales and norms that are not whole: within the rounding of single precision") {
  const uint64_t seed = 67;
  CAPTURE(seed);
  test::Random random(seed);
  for (const int dim : {16, 64, 104, 256}) {
    Problem problem = random_problem(21, dim, 110, random);
    for (float& s : problem.row_scale) s = float(random.uniform(0.01, 3.0));
    for (float& s : problem.scale) s = float(random.uniform(0.01, 3.0));
    for (int j = 0; j < 110; ++j) problem.half_norm[size_t(j)] = float(random.uniform(0.0, 1e5));
    std::vector<simd::LaneBest> best(21);
    simd::search_all(problem.centroids(), problem.rows(), 0, 21, dim, best.data());
    for (int i = 0; i < 21; ++i) {
      const double rest = 1e5 / double(problem.row_scale[size_t(i)]);
      const double tolerance = 0x1p-24 * (4.0 * rest + 2.0 * 3.0 * 127.0 * 127.0 * dim);
      int32_t candidates[16];
      double largest = -double(kInfinity);
      for (int lane = 0; lane < 16; ++lane) {
        candidates[lane] = best[size_t(i)].cluster[lane];
        REQUIRE(candidates[lane] % 16 == lane);
        CHECK(test::near(double(best[size_t(i)].value[lane]), problem.value(i, candidates[lane], dim), tolerance));
      }
      for (int j = 0; j < 110; ++j) largest = std::max(largest, problem.value(i, j, dim));
      const int nearest = simd::search_candidates(problem.centroids(), candidates, problem.rows(), i);
      CHECK(problem.value(i, nearest, dim) >= largest - 2.0 * tolerance);
    }
  }
}

TEST_CASE("best lane: the first of equals; NaN and -inf never beat the first") {
  float values[16] = {3, 1, 7, 7, 2, 7, 0, -1, 4, 5, 6, 6, 7, 1, 1, 1};
  CHECK(simd::best_lane(values) == 2);
  values[15] = 8.0f;
  CHECK(simd::best_lane(values) == 15);
  values[3] = kNan;
  CHECK(simd::best_lane(values) == 15);
  std::fill_n(values, 16, -kInfinity);
  CHECK(simd::best_lane(values) == 0);
}

TEST_CASE("the centroids' zero point in a dot product") {
  const int8_t row[8] = {1, -2, 127, -127, 5, 0, 0, 9};
  CHECK(simd::zero_point_dot(row, 8) == 128 * 13);
  CHECK(simd::zero_point_dot(row, 4) == -128);
  CHECK(simd::zero_point_dot(row, 0) == 0);
}
