#include "quorum/cuda/block/cache_rows.cuh"

#include <doctest/doctest.h>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
__global__ void load_kernel(const uint16_t* row, ElementType type, float* out, int* finite) {
  float2 pairs[cuda::kPairsOfLane<kHeadDim>];
  const bool all = cuda::load_finite_row<kHeadDim>(reinterpret_cast<const std::byte*>(row), type, pairs);
  for (int i = 0; i < cuda::kPairsOfLane<kHeadDim>; ++i) {
    const int pair = i * 32 + int(threadIdx.x);
    if (2 * pair >= kHeadDim) continue;
    out[2 * pair] = pairs[i].x;
    out[2 * pair + 1] = pairs[i].y;
  }
  finite[threadIdx.x] = all ? 1 : 0;
}

template <int kHeadDim>
void check_row(ElementType type, int bad_at, float bad) {
  CAPTURE(kHeadDim);
  CAPTURE(bad_at);
  std::vector<uint16_t> row;
  std::vector<float> wanted;
  for (int c = 0; c < kHeadDim; ++c) {
    const float x = c == bad_at ? bad : 0.5f * float(c % 19) - 3.0f;
    row.push_back(type == ElementType::f16 ? from_float<f16>(x).bits : from_float<bf16>(x).bits);
    wanted.push_back(bad_at >= 0 ? 0.0f : x);
  }
  const DeviceArray<uint16_t> input(row);
  const DeviceArray<float> output(row.size());
  const DeviceArray<int> finite(32);
  REQUIRE(cuda::launch({.threads = 32}, load_kernel<kHeadDim>, static_cast<const uint16_t*>(input.data()), type, output.data(),
                       finite.data()) == cudaSuccess);
  CHECK(output.values() == wanted);
  CHECK(finite.values() == std::vector<int>(32, bad_at < 0 ? 1 : 0));
}

TEST_CASE("cache rows: elements of both types; one that is not finite makes the row zero") {
  for (const ElementType type : {ElementType::f16, ElementType::bf16}) {
    check_row<64>(type, -1, 0.0f);
    check_row<96>(type, -1, 0.0f);
    check_row<128>(type, -1, 0.0f);
    check_row<256>(type, -1, 0.0f);
    check_row<96>(type, 95, kNan);
    check_row<64>(type, 0, kInfinity);
    check_row<256>(type, 200, -kInfinity);
  }
}

}  // namespace
}  // namespace quorum::test
