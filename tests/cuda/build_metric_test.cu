#include "quorum/cuda/build_metric.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/device_array.cuh"
#include "tests/cuda/support/index_reference.hpp"
#include "tests/support/error_message.hpp"

namespace quorum::test {
namespace {

template <class T>
std::vector<T> rounded(const std::vector<float>& values) {
  std::vector<T> out;
  for (const float x : values) out.push_back(from_float<T>(x));
  return out;
}

// Factors of a metric are right if forward forward^T is the host's, and inverse undoes forward.
void check_factors(const std::vector<float>& found, const Factors& wanted, int heads, int d, double tolerance) {
  const size_t square = size_t(d) * size_t(d);
  double moment = 0.0, identity = 0.0;
  for (size_t h = 0; h < size_t(heads); ++h) {
    const float *forward = found.data() + h * square, *inverse = found.data() + (size_t(heads) + h) * square;
    const float* host = wanted.forward.data() + h * square;
    for (size_t a = 0; a < size_t(d); a += 3)
      for (size_t b = 0; b < size_t(d); ++b) {
        double product = 0.0, expected = 0.0, one = 0.0;
        for (size_t c = 0; c < size_t(d); ++c) {
          product += double(forward[a * size_t(d) + c]) * double(forward[b * size_t(d) + c]);
          expected += double(host[a * size_t(d) + c]) * double(host[b * size_t(d) + c]);
          one += double(inverse[a * size_t(d) + c]) * double(forward[c * size_t(d) + b]);
        }
        moment = std::max(moment, std::fabs(product - expected));
        identity = std::max(identity, std::fabs(one - (a == b ? 1.0 : 0.0)));
      }
  }
  CHECK(moment <= tolerance);
  CHECK(identity <= 1e-4);
}

template <class T>
void check_metric(const AttentionShape& shape, double tolerance) {
  CAPTURE(shape.head_dim);
  CAPTURE(shape.num_qo_heads);
  IndexOptions options;
  options.metric_shrinkage = 0.05f;
  std::vector<float> queries = skewed_queries(shape, 75, 4);
  queries[size_t(shape.head_dim) * 5 + 7] = kNan;  // a query that is left out
  const auto typed = rounded<T>(queries);
  const DeviceArray<T> on_device(typed);
  const DeviceArray<std::byte> memory(size_t(cuda::metric_bytes(shape)));
  const auto view = QueryView::contiguous(on_device.data(), 75, shape.num_qo_heads, shape.head_dim);
  const MetricFactorView factors = cuda::build_metric(shape, options, view, memory.data(), nullptr);
  CHECK(static_cast<const void*>(factors.forward) == memory.data());
  const std::vector<std::byte> bytes = memory.values();
  const auto* values = reinterpret_cast<const float*>(bytes.data());
  CHECK(factors.inverse - factors.forward == shape.num_kv_heads * shape.head_dim * shape.head_dim);
  const Factors wanted = factors_of(shape, options, QueryView::contiguous(typed.data(), 75, shape.num_qo_heads, shape.head_dim));
  check_factors({values, values + bytes.size() / 4}, wanted, shape.num_kv_heads, shape.head_dim, tolerance);
}

TEST_CASE("cuda metric: a factor of the host's metric and its inverse, for every head_dim, type and group") {
  constexpr double kTolerance = 1e-3;  // eigenvectors are orthogonal to kJacobiCosine
  check_metric<float>({6, 2, 64, 0.0f}, kTolerance);
  check_metric<f16>({2, 2, 96, 0.0f}, kTolerance);
  check_metric<bf16>({16, 1, 128, 0.0f}, kTolerance);
  check_metric<bf16>({4, 2, 256, 0.0f}, kTolerance);
}

TEST_CASE("cuda metric: without queries, or with none that is finite, the identity") {
  const AttentionShape shape{2, 2, 64, 0.0f};
  const DeviceArray<float> nan(std::vector<float>(2 * 64, kNan));
  for (const int rows : {0, 1}) {
    const DeviceArray<std::byte> memory(size_t(cuda::metric_bytes(shape)));
    cuda::build_metric(shape, {}, QueryView::contiguous(nan.data(), rows, 2, 64), memory.data(), nullptr);
    const std::vector<std::byte> bytes = memory.values();
    const auto* values = reinterpret_cast<const float*>(bytes.data());
    for (int i = 0; i < 4 * 64 * 64; ++i) CHECK(values[i] == (i % (64 * 64) % 65 == 0 ? 1.0f : 0.0f));
  }
}

TEST_CASE("cuda metric: errors") {
  const DeviceArray<std::byte> memory(1 << 16);
  const auto message_of = [&](AttentionShape shape, IndexOptions options, QueryView queries, std::byte* place) {
    return argument_error([&] { cuda::build_metric(shape, options, queries, place, nullptr); });
  };
  const AttentionShape shape{2, 2, 64, 0.0f};
  QueryView queries = QueryView::contiguous(reinterpret_cast<const float*>(memory.data()), 3, 2, 64);
  CHECK(message_of({2, 2, 80, 0.0f}, {}, queries, memory.data()) ==
        "cuda::build_metric: shape.head_dim must be 64, 96, 128 or 256, got 80");
  CHECK(message_of({3, 2, 64, 0.0f}, {}, queries, memory.data()) ==
        "cuda::build_metric: shape.num_qo_heads must be a multiple of shape.num_kv_heads, got 3");
  IndexOptions options;
  options.metric_shrinkage = 0.0f;
  CHECK(message_of(shape, options, queries, memory.data()) == "cuda::build_metric: options.metric_shrinkage must be in [1e-4, 1], got 0");
  CHECK(message_of(shape, {}, queries, memory.data() + 64)
            .starts_with("cuda::build_metric: memory must be not null and aligned to 256 bytes, got "));
  CHECK(message_of(shape, {}, queries, nullptr).starts_with("cuda::build_metric: memory must be not null and aligned to 256 bytes, got "));
  QueryView broken = queries;
  broken.num_rows = -1;
  CHECK(message_of(shape, {}, broken, memory.data()) == "cuda::build_metric: prompt_queries.num_rows must be at least 0, got -1");
  broken = queries;
  broken.data = nullptr;
  CHECK(message_of(shape, {}, broken, memory.data()) == "cuda::build_metric: prompt_queries.data must be not null, got null");
  broken = queries;
  broken.type = ElementType::q8_0;
  CHECK(message_of(shape, {}, broken, memory.data()) == "cuda::build_metric: prompt_queries.type must be f32, f16 or bf16, got q8_0");
}

}  // namespace
}  // namespace quorum::test
