#include "quorum/cuda/block/cache_rows.cuh"

#include <doctest/doctest.h>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
__global__ void load_kernel(const std::byte* row, ElementType type, float* out, int* finite) {
  float2 pairs[cuda::kPairsOfLane<kHeadDim>];
  const bool all = cuda::load_finite_row<kHeadDim>(row, type, 0.25f, pairs);
  for (int i = 0; i < cuda::kPairsOfLane<kHeadDim>; ++i) {
    const int pair = i * 32 + int(threadIdx.x);
    if (2 * pair >= kHeadDim) continue;
    out[2 * pair] = pairs[i].x;
    out[2 * pair + 1] = pairs[i].y;
  }
  finite[threadIdx.x] = all ? 1 : 0;
}

template <class T, int kHeadDim>
void check_row(int bad_at, float bad) {
  CAPTURE(kHeadDim);
  CAPTURE(bad_at);
  std::vector<T> row;
  std::vector<float> wanted;
  for (int c = 0; c < kHeadDim; ++c) {
    const float x = c == bad_at ? bad : 0.5f * float(c % 19) - 3.0f;  // exact in all types
    row.push_back(from_float<T>(x));
    wanted.push_back(bad_at >= 0 ? 0.0f : 0.25f * x);
  }
  const DeviceArray<T> input(row);
  const DeviceArray<float> output(row.size());
  const DeviceArray<int> finite(32);
  REQUIRE(cuda::launch({.threads = 32}, load_kernel<kHeadDim>, reinterpret_cast<const std::byte*>(input.data()), ElementTypeOf<T>::value,
                       output.data(), finite.data()) == cudaSuccess);
  CHECK(output.values() == wanted);
  CHECK(finite.values() == std::vector<int>(32, bad_at < 0 ? 1 : 0));
}

TEST_CASE_TEMPLATE("cache rows: elements of every type times the scale; one that is not finite makes the row zero", T, float, f16, bf16,
                   fp8_e4m3) {
  check_row<T, 64>(-1, 0.0f);
  check_row<T, 96>(-1, 0.0f);
  check_row<T, 128>(-1, 0.0f);
  check_row<T, 256>(-1, 0.0f);
  check_row<T, 96>(95, kNan);
  check_row<T, 64>(0, kInfinity);
  check_row<T, 256>(200, -kInfinity);
}

}  // namespace
}  // namespace quorum::test
