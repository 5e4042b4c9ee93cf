#include "quorum/cuda/block/jacobi.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <utility>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

TEST_CASE("round robin: all pairs of rows meet once, and no row twice in a round") {
  for (const int rows : {4, 64, 96}) {
    std::set<std::pair<int, int>> met;
    for (int round = 0; round < rows - 1; ++round) {
      std::set<int> busy;
      for (int pair = 0; pair < rows / 2; ++pair) {
        const cuda::RowPair own = cuda::round_robin(round, pair, rows);
        CHECK(busy.insert(own.first).second);
        CHECK(busy.insert(own.second).second);
        CHECK(met.insert(std::minmax(own.first, own.second)).second);
      }
    }
    CHECK(met.size() == size_t(rows * (rows - 1) / 2));
  }
}

template <int kHeadDim>
__global__ void jacobi_kernel(float* turned, float* turn, float floor) {
  QUORUM_SHARED(int, rotated);
  cuda::jacobi<kHeadDim>(turned, turn, floor, rotated);
}

// A covariance with eigenvalues from 1 down to 1e-4, in random directions.
std::vector<float> covariance(int d, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> sum(size_t(d * d));
  for (int n = 0; n < 2 * d; ++n) {
    std::vector<double> x(static_cast<size_t>(d));
    const double common = normal(random);
    for (int c = 0; c < d; ++c) x[size_t(c)] = normal(random) * std::pow(10.0, -2.0 * c / d) + 0.3 * common;
    for (int a = 0; a < d; ++a)
      for (int b = 0; b < d; ++b) sum[size_t(a * d + b)] += x[size_t(a)] * x[size_t(b)] / d;
  }
  return {sum.begin(), sum.end()};
}
std::vector<float> identity(int d) {
  std::vector<float> matrix(size_t(d * d), 0.0f);
  for (int c = 0; c < d; ++c) matrix[size_t(c * (d + 1))] = 1.0f;
  return matrix;
}

template <int kHeadDim>
void check_eigenvectors() {
  CAPTURE(kHeadDim);
  constexpr size_t d = kHeadDim;
  const std::vector<float> matrix = covariance(kHeadDim, 3);
  const DeviceArray<float> turned(matrix), turn(identity(kHeadDim));
  REQUIRE(cuda::launch({.threads = cuda::kJacobiThreads}, jacobi_kernel<kHeadDim>, turned.data(), turn.data(), 1e-9f) == cudaSuccess);
  const std::vector<float> v = turn.values();
  double trace = 0.0, off = 0.0, diagonal = 0.0, orthogonality = 0.0;
  for (size_t c = 0; c < d; ++c) trace += double(matrix[c * (d + 1)]);
  for (size_t a = 0; a < d; ++a) {
    std::vector<double> image(d);
    for (size_t i = 0; i < d; ++i)
      for (size_t j = 0; j < d; ++j) image[i] += double(matrix[i * d + j]) * double(v[a * d + j]);
    for (size_t b = 0; b < d; ++b) {
      double product = 0.0, dot = 0.0;
      for (size_t i = 0; i < d; ++i) {
        product += image[i] * double(v[b * d + i]);
        dot += double(v[a * d + i]) * double(v[b * d + i]);
      }
      orthogonality = std::max(orthogonality, std::fabs(dot - (a == b ? 1.0 : 0.0)));
      (a == b ? diagonal : off) += a == b ? product : std::fabs(product);
    }
  }
  CHECK(orthogonality <= 3e-4);  // each of some thousand rotations rounds
  CHECK(std::fabs(diagonal - trace) <= 1e-4 * trace);
  CHECK(off <= 1e-2 * trace);  // all of them together
}

TEST_CASE("jacobi: the turn is orthogonal and makes a covariance diagonal, for every head_dim") {
  check_eigenvectors<64>();
  check_eigenvectors<96>();
}
TEST_CASE("jacobi: the same of long rows" * doctest::test_suite("long rows")) {
  check_eigenvectors<128>();
  check_eigenvectors<256>();
}

TEST_CASE("jacobi: nothing to do, and NaN, come to an end") {
  const DeviceArray<float> zero(std::vector<float>(64 * 64, 0.0f)), turn(identity(64));
  REQUIRE(cuda::launch({.threads = cuda::kJacobiThreads}, jacobi_kernel<64>, zero.data(), turn.data(), 0.0f) == cudaSuccess);
  CHECK(turn.values() == identity(64));
  const DeviceArray<float> nan(std::vector<float>(64 * 64, kNan));
  REQUIRE(cuda::launch({.threads = cuda::kJacobiThreads}, jacobi_kernel<64>, nan.data(), turn.data(), 0.0f) == cudaSuccess);
  CHECK(turn.values() == identity(64));
}

}  // namespace
}  // namespace quorum::test
