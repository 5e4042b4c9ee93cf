#include "quorum/cuda/kernel/key_coordinates_kernel.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/build_case.cuh"
#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

// Lengths and angles are what a rotation keeps: rows must have those of the keys, seen through the metric.
template <int kHeadDim>
void check_coordinates(bool with_metric, ElementType type) {
  CAPTURE(kHeadDim);
  CAPTURE(with_metric);
  CaseOptions options;
  options.shape = {2, 2, kHeadDim, 0.0f};
  options.type = type;
  options.num_tokens = {75};
  HostCase host(options);
  host.poison(false, 0, 20, 1, kHeadDim - 1, kNan);
  const DeviceCase device(host);
  const Factors factors = with_metric ? random_factors(options.shape, options.index, 3) : Factors{};
  const cuda::DeviceBuffer forward = upload(factors.forward), inverse = upload(factors.inverse);
  BuildStage stage(kHeadDim, 75, options.index);
  cuda::BuildParams& p = stage.params;
  p.kv = device_kv(host, device);
  p.metric = {forward.as<float>(), inverse.as<float>()};
  REQUIRE(stage.run(cuda::sum_keys_kernel<kHeadDim>, dim3(unsigned(p.key_tiles())), 32) == cudaSuccess);
  REQUIRE(stage.run(cuda::prepare_coordinates_kernel<kHeadDim>, dim3(kHeadDim / 16), cuda::kBuildThreads) == cudaSuccess);
  REQUIRE(stage.run(cuda::key_coordinates_kernel<kHeadDim>, dim3(unsigned(p.row_tiles())), cuda::kBuildThreads) == cudaSuccess);
  const auto flags = BuildStage::get(p.workspace.key_flags, 4);  // [head][tile]
  CHECK(flags == std::vector<int32_t>{0, 0, 1, 0});
  const auto rows = BuildStage::get(p.workspace.rows, 2 * p.padded_rows() * kHeadDim);
  const auto constants = BuildStage::get(p.workspace.constants, 2 * p.padded_rows());
  const auto mean = BuildStage::get(p.index.mean_key, 2 * kHeadDim);
  for (int h = 0; h < 2; ++h) {
    const ExpectedRows wanted = expected_rows(host, h, factors.forward);
    for (size_t c = 0; c < kHeadDim; ++c) CHECK(std::fabs(double(mean[size_t(h) * kHeadDim + c]) - wanted.mean_key[c]) <= 1e-5);
    double largest = 0.0, scale = 0.0;
    for (size_t i = 0; i < wanted.z.size(); ++i)
      for (size_t k = 0; k <= i; k += 7) {
        double found = 0.0, product = 0.0;
        const size_t a = size_t(h * p.padded_rows()) + i, b = size_t(h * p.padded_rows()) + k;
        for (size_t c = 0; c < kHeadDim; ++c) {
          found += double(rows[a * kHeadDim + c]) * double(rows[b * kHeadDim + c]);
          product += wanted.z[i][c] * wanted.z[k][c];
        }
        largest = std::max(largest, std::fabs(found * double(constants[a].scale) * double(constants[b].scale) - product));
        scale = std::max(scale, std::fabs(product));
      }
    CHECK(largest <= 0.01 * scale);
    for (size_t i = 0; i < wanted.z.size(); ++i) {
      const size_t at = size_t(h * p.padded_rows()) + i;
      int sum = 0, square = 0;
      for (size_t c = 0; c < kHeadDim; ++c) {
        sum += rows[at * kHeadDim + c];
        square += rows[at * kHeadDim + c] * rows[at * kHeadDim + c];
      }
      CHECK(constants[at].zero_dot == 128 * sum);
      CHECK(constants[at].square == square);
      CHECK(constants[at].inverse_scale == doctest::Approx(1.0f / constants[at].scale));
    }
  }
}

TEST_CASE("key coordinates: mean, flags, and rows with the lengths and angles of the keys") {
  check_coordinates<64>(false, ElementType::bf16);
  check_coordinates<64>(true, ElementType::f16);
  check_coordinates<96>(true, ElementType::bf16);
  check_coordinates<128>(false, ElementType::f16);
  check_coordinates<256>(true, ElementType::bf16);
  check_coordinates<96>(false, ElementType::fp8_e4m3);
}

TEST_CASE("key coordinates: the maps of keys and queries are each other's inverse") {
  const IndexOptions options;
  const Factors factors = random_factors({2, 2, 64, 0.0f}, options, 9);
  const cuda::DeviceBuffer forward = upload(factors.forward), inverse = upload(factors.inverse);
  BuildStage stage(64, 40, options);
  stage.params.metric = {forward.as<float>(), inverse.as<float>()};
  BuildStage::put(stage.params.workspace.key_sums, std::vector<float>(2 * 64, 36.0f));
  REQUIRE(stage.run(cuda::prepare_coordinates_kernel<64>, dim3(4), cuda::kBuildThreads) == cudaSuccess);
  CHECK(BuildStage::get(stage.params.index.mean_key, 128) == std::vector<float>(128, 1.0f));
  const auto keys = BuildStage::get(stage.params.workspace.forward, 2 * 64 * 64),
             queries = BuildStage::get(stage.params.workspace.inverse, 2 * 64 * 64);
  for (int h = 0; h < 2; ++h)
    for (int a = 0; a < 64; ++a)
      for (int b = 0; b < 64; ++b) {  // q.k = w(q).w(k): of unit vectors
        double dot = 0.0;
        for (int c = 0; c < 64; ++c) dot += double(keys[size_t((h * 64 + a) * 64 + c)]) * double(queries[size_t((h * 64 + b) * 64 + c)]);
        CHECK(std::fabs(dot - (a == b ? 1.0 : 0.0)) <= 1e-4);
      }
}

}  // namespace
}  // namespace quorum::test
