#include "quorum/cuda/kernel/query_metric_kernel.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

TEST_CASE("query metric: the lower half of the moment, of each group's own queries") {
  constexpr int d = 96, kRows = 21, kHeads = 2, kGroup = 3;
  std::vector<float> queries(size_t(kRows * kHeads * kGroup * d));
  for (size_t i = 0; i < queries.size(); ++i) queries[i] = float(int(i * 37 % 23) - 11) * 0.25f;
  const DeviceArray<float> rows(queries), forward(size_t(kHeads * d * d));
  cuda::MetricParams p{QueryView::contiguous(rows.data(), kRows, kHeads * kGroup, d), kHeads, kGroup, d, 0.1f, forward.data(), nullptr};
  REQUIRE(cuda::launch({.grid = dim3(3, 3, kHeads), .threads = cuda::kMomentThreads}, cuda::query_moment_kernel<d>, p) == cudaSuccess);
  const std::vector<float> moment = forward.values();
  for (int h = 0; h < kHeads; ++h)
    for (int a = 0; a < d; ++a)
      for (int b = 0; b <= a; ++b) {
        double sum = 0.0;
        for (int i = 0; i < kRows; ++i)
          for (int g = 0; g < kGroup; ++g) {
            const float* q = queries.data() + size_t((i * kHeads + h) * kGroup + g) * d;
            sum += double(q[a]) * double(q[b]);
          }
        CHECK(std::fabs(double(moment[size_t((h * d + a) * d + b)]) - sum) <= 1e-3);
      }
}

TEST_CASE("query metric: the factor of a moment made by hand, and its inverse") {
  constexpr int d = 64;
  constexpr float kShrinkage = 0.25f;
  // Pairs of coordinates with the moment (5 4; 4 5): eigenvalues 9 and 1, roots 3 and 1, along their sum and their difference.
  std::vector<float> moment(size_t(d * d), kNan);  // nothing above the diagonal is read
  for (int a = 0; a < d; ++a)
    for (int b = 0; b <= a; ++b) moment[size_t(a * d + b)] = a == b ? 5.0f : a == b + 1 && a % 2 == 1 ? 4.0f : 0.0f;
  const DeviceArray<float> forward(moment), inverse(size_t(d * d));
  const cuda::MetricParams p{{}, 1, 1, d, kShrinkage, forward.data(), inverse.data()};
  REQUIRE(cuda::launch({.threads = cuda::kJacobiThreads}, cuda::factor_metric_kernel<d>, p) == cudaSuccess);
  const std::vector<float> factor = forward.values(), back = inverse.values();
  const double sum = 0.75 * 3.0 / 2.0 + 0.25, difference = 0.75 * 1.0 / 2.0 + 0.25;  // roots over their mean of 2, shrunk
  for (int a = 0; a < d; ++a)
    for (int b = 0; b < d; ++b) {
      double metric = 0.0, product = 0.0;
      for (int c = 0; c < d; ++c) {
        metric += double(factor[size_t(a * d + c)]) * double(factor[size_t(b * d + c)]);
        product += double(factor[size_t(a * d + c)]) * double(back[size_t(c * d + b)]);
      }
      const double wanted = a == b ? (sum + difference) / 2.0 : a / 2 == b / 2 ? (sum - difference) / 2.0 : 0.0;
      CHECK(std::fabs(metric - wanted) <= 1e-4);
      CHECK(std::fabs(product - (a == b ? 1.0 : 0.0)) <= 1e-4);
    }
}

}  // namespace
}  // namespace quorum::test
