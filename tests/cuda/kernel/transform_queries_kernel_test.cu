#include "quorum/cuda/kernel/transform_queries_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/score_reference.hpp"
#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
cudaError_t run(const cuda::StepParams& p) {
  const int64_t shared = sizeof(cuda::QueryCoordinates<kHeadDim>);
  const cudaError_t status = cuda::allow_dynamic_shared(cuda::transform_queries_kernel<kHeadDim>, shared);
  if (status != cudaSuccess) return status;
  const cuda::LaunchConfig config{dim3(unsigned(p.shape.num_kv_heads), unsigned(p.num_sequences)), cuda::kTransformThreads, shared};
  return cuda::launch(config, cuda::transform_queries_kernel<kHeadDim>, p);
}

template <int kHeadDim>
void check_transform(int group) {
  CAPTURE(group);
  CaseOptions options;
  options.shape = {2 * group, 2, kHeadDim, 0.0f};
  options.num_tokens = {120, 3, 90};  // the second has nothing indexed: it is attended densely, and its memory is left alone
  const HostCase host(options);
  const DeviceCase device(host);
  DecodeOptions decode;
  decode.dense_below = 80;
  const StepCase step(host, device, decode);
  const cuda::StepParams& p = step.params;
  const size_t rows = size_t(p.num_rows()) * kMaxGroupSize;
  StepCase::put(p.workspace.quantised, std::vector<int8_t>(rows * kHeadDim, 77));
  StepCase::put(p.workspace.scaled_queries, std::vector<float>(rows * kHeadDim, kNan));
  REQUIRE(run<kHeadDim>(p) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const auto quantised = download(p.workspace.quantised, rows * kHeadDim);
  const auto scaled = download(p.workspace.scaled_queries, rows * kHeadDim);
  const auto constants = download(p.workspace.constants, rows);
  for (int row = 0; row < p.num_rows(); ++row)
    for (int g = 0; g < kMaxGroupSize; ++g) {
      const size_t at = size_t(row * kMaxGroupSize + g);
      int sum = 0, outside = 0;
      if (p.sequence_of(row) == 1) {
        CHECK(quantised[at * kHeadDim] == 77);
        continue;
      }
      for (int c = 0; c < kHeadDim; ++c) sum += quantised[at * kHeadDim + size_t(c)];
      if (g >= group) {
        for (int c = 0; c < kHeadDim; ++c) outside += quantised[at * kHeadDim + size_t(c)] != 0 ? 1 : 0;
        CHECK(outside == 0);
        continue;
      }
      const ExpectedScores expected = expected_scores(host, p.sequence_of(row), p.kv_head_of(row) * group + g, true);
      const cuda::QueryConstants& own = constants[at];
      double largest = 0.0, square = 0.0;
      for (int c = 0; c < kHeadDim; ++c) {
        const double x = expected.rotated[size_t(c)];
        largest = std::max(largest, std::fabs(x));
        square += x * x;
        outside += std::fabs(double(quantised[at * kHeadDim + size_t(c)]) - x / double(own.step)) <= 0.51 ? 0 : 1;
        outside += std::fabs(double(scaled[at * kHeadDim + size_t(c)]) - expected.scaled[size_t(c)]) <= 1e-6 ? 0 : 1;
      }
      CHECK(outside == 0);
      CHECK(own.zero_dot == kCentroidZero * sum);
      CHECK(std::fabs(double(own.step) * 127.0 / largest - 1.0) <= 1e-4);
      CHECK(std::fabs(double(own.square) / square - 1.0) <= 1e-4);
      CHECK(std::fabs(double(own.half_variance) / expected.half_variance - 1.0) <= 1e-4);
      CHECK(std::fabs(double(own.mean_score) - expected.mean_score) <= 1e-4);
    }
}

TEST_CASE("cuda transform: coordinates and constants of each head, zeros beyond the group, dense rows left alone") {
  for (const int group : {1, 4, 5}) check_transform<64>(group);
  check_transform<96>(16);
  check_transform<128>(3);
  check_transform<256>(9);
}

TEST_CASE("cuda transform: queries of zeros and with NaN") {
  CaseOptions options;
  options.shape = {2, 1, 64, 0.0f};
  options.num_tokens = {90};
  const HostCase host(options);
  const DeviceCase device(host);
  DecodeOptions decode;
  decode.dense_below = 0;
  StepCase step(host, device, decode);
  std::vector<float> queries(128, 0.0f);
  queries[70] = kNan;
  const cuda::DeviceBuffer memory = upload(queries);
  step.params.queries.data = memory.as<>();
  REQUIRE(run<64>(step.params) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const auto constants = download(step.params.workspace.constants, 2);
  const auto quantised = download(step.params.workspace.quantised, 64);
  for (const int8_t x : quantised) CHECK(x == 0);
  CHECK(constants[0].zero_dot == 0);
  CHECK(constants[0].mean_score == 0.0f);
  CHECK(constants[0].step > 0.0f);
  CHECK(constants[1].mean_score != constants[1].mean_score);  // shows there
}

}  // namespace
}  // namespace quorum::test
