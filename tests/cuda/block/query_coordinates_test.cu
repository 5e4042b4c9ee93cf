#include "quorum/cuda/block/query_coordinates.cuh"

#include <doctest/doctest.h>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

__global__ void load_kernel(const float* as_f32, const uint16_t* as_f16, const uint16_t* as_bf16, float* results) {
  float eight[8];
  const std::byte* rows[] = {reinterpret_cast<const std::byte*>(as_f32), reinterpret_cast<const std::byte*>(as_f16),
                             reinterpret_cast<const std::byte*>(as_bf16)};
  const ElementType types[] = {ElementType::f32, ElementType::f16, ElementType::bf16};
  for (int t = 0; t < 3; ++t) {
    cuda::load_eight(rows[t], types[t], 8, eight);
    for (int i = 0; i < 8; ++i) results[t * 8 + i] = eight[i];
  }
}

TEST_CASE("query coordinates: eight elements of every type") {
  std::vector<float> values;
  std::vector<uint16_t> halves, bfloats;
  for (int i = 0; i < 16; ++i) {
    values.push_back(float(i) - 9.5f);
    halves.push_back(from_float<f16>(values.back()).bits);
    bfloats.push_back(from_float<bf16>(values.back()).bits);
  }
  const DeviceArray<float> f32(values), output(24);
  const DeviceArray<uint16_t> h(halves), b(bfloats);
  REQUIRE(cuda::launch({.threads = 1}, load_kernel, static_cast<const float*>(f32.data()), static_cast<const uint16_t*>(h.data()),
                       static_cast<const uint16_t*>(b.data()), output.data()) == cudaSuccess);
  const std::vector<float> found = output.values();
  for (int t = 0; t < 3; ++t)
    for (int i = 0; i < 8; ++i) CHECK(found[size_t(t * 8 + i)] == values[size_t(8 + i)]);
}

}  // namespace
}  // namespace quorum::test
