#include "quorum/cuda/block/cluster_mean.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
__global__ void mean_kernel(const __grid_constant__ cuda::BuildParams p, const int32_t* tokens, int count, float* mean, float* spread) {
  const cuda::LaneRow<kHeadDim> own = cuda::cluster_mean<kHeadDim>(p, 1, tokens, count);
  for (int i = 0; i < own.kWords; ++i)
    for (int k = 0; k < 4 && own.has(i); ++k) mean[own.coordinate(i) + k] = own.x[i][k];
  const float square = count > 0 ? cuda::cluster_spread<kHeadDim>(p, 1, tokens, count, own) : 0.0f;
  if (threadIdx.x == 0) *spread = square;
}

template <int kHeadDim>
void check_mean(int count) {
  CAPTURE(kHeadDim);
  CAPTURE(count);
  IndexOptions options = BuildStage::options(64, 8);
  options.num_sink_tokens = 3;
  BuildStage stage(kHeadDim, 60, options);
  stage.make_rows(1);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(3 + (i * 11) % 57);
  const DeviceArray<int32_t> list(tokens);
  const DeviceArray<float> mean(kHeadDim), spread(1);
  REQUIRE(cuda::launch({.threads = 32}, mean_kernel<kHeadDim>, stage.params, static_cast<const int32_t*>(list.data()), count, mean.data(),
                       spread.data()) == cudaSuccess);
  const std::vector<float> found = mean.values();
  double square = 0.0;
  for (int c = 0; c < kHeadDim; ++c) {
    double sum = 0.0;
    for (const int32_t token : tokens) sum += stage.row(1, token - 3, c) / count;
    CHECK(std::fabs(double(found[size_t(c)]) - sum) <= 1e-5);
    for (const int32_t token : tokens) square += std::pow(stage.row(1, token - 3, c) - sum, 2) / count;
  }
  CHECK(std::fabs(double(spread.values()[0]) - square) <= 1e-4 * square + 1e-9);
}

TEST_CASE("cluster mean: mean and spread of the rows, of none, one and many") {
  for (const int count : {0, 1, 2, 5, 33}) check_mean<64>(count);
  check_mean<96>(7);
  check_mean<128>(7);
  check_mean<256>(7);
}

}  // namespace
}  // namespace quorum::test
