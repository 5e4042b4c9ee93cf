#include "quorum/cuda/block/warp.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

using namespace quorum::cuda;
using quorum::test::DeviceArray;

namespace {

struct Results {
  float sum, maximum, quarter_sum;
  int inclusive;
};

__global__ void warp_kernel(const float* values, Results* results) {
  const int thread = int(threadIdx.x);
  Results own;
  own.sum = warp_sum(values[thread]);
  own.maximum = warp_max(values[thread]);
  own.quarter_sum = warp_sum<1, 4>(values[thread]);
  own.inclusive = warp_inclusive_sum(int(values[thread]));
  results[thread] = own;
}

}  // namespace

TEST_CASE("sums and maxima of each of three warps") {
  constexpr size_t kThreads = 96;
  std::vector<float> values(kThreads);
  for (size_t i = 0; i < kThreads; ++i) values[i] = float(int(i * 37 % 101) - 50);
  const DeviceArray<float> input(values);
  const DeviceArray<Results> output(kThreads);
  REQUIRE(launch({.threads = int(kThreads)}, warp_kernel, static_cast<const float*>(input.data()), output.data()) == cudaSuccess);
  const std::vector<Results> results = output.values();
  for (size_t thread = 0; thread < kThreads; ++thread) {
    const size_t first = thread / 32 * 32, quarter = thread / 4 * 4;
    float sum = 0, maximum = values[first], inclusive = 0, quarter_sum = 0;
    for (size_t i = first; i < first + 32; ++i) {
      sum += values[i];
      maximum = std::max(maximum, values[i]);
      if (i <= thread) inclusive += values[i];
      if (i >= quarter && i < quarter + 4) quarter_sum += values[i];
    }
    CAPTURE(thread);
    CHECK(results[thread].sum == sum);
    CHECK(results[thread].maximum == maximum);
    CHECK(results[thread].quarter_sum == quarter_sum);
    CHECK(float(results[thread].inclusive) == inclusive);
  }
}
