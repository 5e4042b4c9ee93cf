#include "quorum/cuda/block/rotate.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
__global__ void rotate_kernel(const float* signs, float* rows) {
  QUORUM_SHARED(float[kHeadDim], x);
  float* row = rows + int(blockIdx.x) * kHeadDim;
  for (int c = int(threadIdx.x); c < kHeadDim; c += cuda::kWarpSize) x[c] = row[c];
  __syncwarp();
  cuda::rotate<kHeadDim>(x, signs);
  for (int c = int(threadIdx.x); c < kHeadDim; c += cuda::kWarpSize) row[c] = x[c];
}

// The rotation of unit vectors is a matrix; it must be orthogonal, and without a large entry.
template <int kHeadDim>
void check_rotation() {
  std::vector<float> signs, rows(static_cast<size_t>(kHeadDim) * static_cast<size_t>(kHeadDim), 0.0f);
  for (int c = 0; c < kHeadDim; ++c) {
    signs.push_back(c * 7 % 3 == 0 ? -1.0f : 1.0f);
    rows[size_t(c) * kHeadDim + size_t(c)] = 1.0f;
  }
  const DeviceArray<float> of_signs(signs), matrix(rows);
  REQUIRE(cuda::launch({.grid = dim3(unsigned(kHeadDim)), .threads = 32}, rotate_kernel<kHeadDim>,
                       static_cast<const float*>(of_signs.data()), matrix.data()) == cudaSuccess);
  const std::vector<float> rotated = matrix.values();
  for (int a = 0; a < kHeadDim; ++a)
    for (int b = 0; b <= a; ++b) {
      double dot = 0.0;
      for (int c = 0; c < kHeadDim; ++c) dot += double(rotated[size_t(a * kHeadDim + c)]) * double(rotated[size_t(b * kHeadDim + c)]);
      CHECK(std::fabs(dot - (a == b ? 1.0 : 0.0)) <= 1e-5);
    }
  for (const float x : rotated) CHECK(std::fabs(x) <= 0.6f);
}

TEST_CASE("rotation: it keeps lengths and angles, for powers of two and others") {
  check_rotation<64>();
  check_rotation<96>();
}

}  // namespace
}  // namespace quorum::test
