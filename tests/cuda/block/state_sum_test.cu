#include "quorum/cuda/block/state_sum.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

__global__ void sum_kernel(const float* scores, const float* counts, int num_states, AttentionState* results) {
  AttentionState own;
  for (int i = int(threadIdx.x); i < num_states; i += cuda::kWarpSize) cuda::add_weight(own, scores[i], counts[i]);
  results[threadIdx.x] = own;
  __syncwarp();
  const AttentionState by_lanes = cuda::warp_merge(own), by_range = cuda::warp_merge_range(results, 16, 2);
  __syncwarp();
  if (threadIdx.x == 0) {
    results[32] = by_lanes;
    results[33] = by_range;
  }
}

std::vector<AttentionState> sum(const std::vector<float>& scores, const std::vector<float>& counts) {
  const DeviceArray<float> on_device(scores), of_each(counts);
  const DeviceArray<AttentionState> output(34);
  REQUIRE(cuda::launch({.threads = 32}, sum_kernel, static_cast<const float*>(on_device.data()), static_cast<const float*>(of_each.data()),
                       int(scores.size()), output.data()) == cudaSuccess);
  return output.values();
}

TEST_CASE("state sum: lanes and a range of states join to the sum of all") {
  std::vector<float> scores, counts;
  double all = 0.0, even = 0.0;
  for (int i = 0; i < 77; ++i) {
    scores.push_back(i % 11 == 0 ? -kInfinity : float(i * 29 % 23) - 40.0f);
    counts.push_back(float(i % 5));
    const double weight = counts.back() == 0.0f ? 0.0 : double(counts.back()) * std::exp(double(scores.back()));
    all += weight;
    if (i % 32 % 2 == 0) even += weight;
  }
  const std::vector<AttentionState> states = sum(scores, counts);
  CHECK(std::fabs(double(states[32].lse()) - std::log(all)) <= 1e-5);
  CHECK(std::fabs(double(states[33].lse()) - std::log(even)) <= 1e-5);
}

TEST_CASE("state sum: nothing is empty, NaN is not lost") {
  const std::vector<AttentionState> nothing = sum({-kInfinity, 3.0f}, {1.0f, 0.0f}), poisoned = sum({1.0f, kNan, 2.0f}, {1.0f, 1.0f, 1.0f});
  CHECK(nothing[32].lse() == -kInfinity);
  CHECK(std::isnan(poisoned[32].lse()));
}

}  // namespace
}  // namespace quorum::test
