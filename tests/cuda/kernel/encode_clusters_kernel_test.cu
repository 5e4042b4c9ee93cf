#include "quorum/cuda/kernel/encode_clusters_kernel.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/build_case.cuh"
#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
void check_centroids() {
  CAPTURE(kHeadDim);
  constexpr size_t d = kHeadDim;
  BuildStage stage(kHeadDim, 330, BuildStage::options(250, 12));  // 20 and 6 clusters
  cuda::BuildParams& p = stage.params;
  std::mt19937_64 random(d);
  std::normal_distribution<float> normal;
  std::vector<float> means(size_t(2 * p.num_slots) * d), map(2 * d * d);
  for (float& x : means) x = normal(random);
  for (size_t c = 0; c < d; ++c) means[3 * d + c] = 0.0f;  // a cluster without tokens
  for (float& x : map) x = normal(random);
  BuildStage::put(p.workspace.means, means);
  BuildStage::put(p.workspace.to_index, map);
  REQUIRE(stage.run(cuda::encode_centroids_kernel<kHeadDim>, dim3(unsigned(p.num_slots / 16)), cuda::kBuildThreads) == cudaSuccess);
  const auto bytes = BuildStage::get(p.index.centroids, int64_t(means.size()));
  const auto scale = BuildStage::get(p.index.centroid_scale, 2 * p.num_slots);
  for (size_t slot = 0; slot < size_t(2 * p.num_slots); ++slot) {
    const size_t h = slot / size_t(p.num_slots), j = slot % size_t(p.num_slots);
    const bool padding = j < 32 ? j >= size_t(p.segment(0).num_clusters) : j - 32 >= size_t(p.segment(1).num_clusters);
    std::vector<double> x(d);
    double largest = 0.0, worst = 0.0;
    for (size_t c = 0; c < d; ++c) {
      for (size_t i = 0; i < d; ++i) x[c] += double(means[slot * d + i]) * double(map[(h * d + i) * d + c]);
      largest = std::max(largest, std::fabs(x[c]));
    }
    CHECK((scale[slot] == 0.0f) == padding);
    if (padding) continue;
    if (largest > 0.0) CHECK(std::fabs(double(scale[slot]) - largest / 127.0) <= 1e-4 * largest / 127.0);
    for (size_t c = 0; c < d; ++c) {
      const uint8_t byte = bytes[slot / 16 * 16 * d + c / 4 * 64 + slot % 16 * 4 + c % 4];
      worst = std::max(worst, std::fabs(double(scale[slot]) * (byte - 128.0) - x[c]));
      if (largest == 0.0) CHECK(byte == 128);
    }
    CHECK(worst <= 0.501 * double(scale[slot]) + 1e-4);
  }
}

TEST_CASE("encode clusters: centroids as the index keeps them, padding without a scale") {
  check_centroids<64>();
  check_centroids<96>();
  check_centroids<128>();
  check_centroids<256>();
}

template <int kHeadDim>
void check_values(ElementType type) {
  CAPTURE(kHeadDim);
  constexpr size_t d = kHeadDim;
  CaseOptions options;
  options.shape = {2, 2, kHeadDim, 0.0f};
  options.type = type;
  options.num_tokens = {90};
  options.index = BuildStage::options(50, 6);
  HostCase host(options);
  host.poison(true, 0, 17, 1, 5, kInfinity);
  const DeviceCase device(host);
  BuildStage stage(kHeadDim, 90, options.index);
  cuda::BuildParams& p = stage.params;
  p.kv = device_kv(host, device);
  const std::vector<int32_t> assignment = stage.random_assignment(5);
  stage.set_clusters(assignment);
  REQUIRE(stage.run(cuda::mean_values_kernel<kHeadDim>, dim3(unsigned(p.num_slots / 8)), cuda::kBuildThreads) == cudaSuccess);
  const auto bytes = BuildStage::get(p.index.value_means, int64_t(2 * p.num_slots) * kHeadDim);
  const auto scale = BuildStage::get(p.index.value_mean_scale, 2 * p.num_slots), size = BuildStage::get(p.index.size, 2 * p.num_slots);
  const auto flags = BuildStage::get(p.workspace.value_flags, 2 * p.num_slots);
  const auto sums = BuildStage::get(p.workspace.value_sums, 2 * p.num_slots);
  for (int h = 0; h < 2; ++h)
    for (int s = 0; s < p.num_segments; ++s) {
      const cuda::BuildSegment segment = p.segment(s);
      for (int j = 0; j < segment.num_slots; ++j) {
        const size_t slot = size_t(p.slots_of(h) + segment.first_slot + j);
        std::vector<int> tokens;
        for (int i = segment.first_row; i < segment.first_row + segment.num_rows; ++i)
          if (assignment[size_t(p.tokens_of(h) + i)] == j) tokens.push_back(i);
        CHECK((scale[slot] == 0.0f) == (j >= segment.num_clusters));
        CHECK(flags[slot] == (h == 1 && std::count(tokens.begin(), tokens.end(), 17) > 0 ? 1 : 0));
        const ExpectedMean wanted = expected_value_mean(host, h, tokens);
        double worst = 0.0;
        for (size_t c = 0; c < d; ++c) worst = std::max(worst, std::fabs(double(scale[slot]) * bytes[slot * d + c] - wanted.mean[c]));
        CHECK(worst <= 0.501 * double(scale[slot]) + 1e-6);
        if (tokens.empty()) continue;
        CHECK(double(sums[slot].spread) == doctest::Approx(wanted.spread).epsilon(1e-4));
        CHECK(double(sums[slot].mean_square) == doctest::Approx(wanted.square * double(tokens.size())).epsilon(1e-4));
      }
    }
}

TEST_CASE("encode clusters: value means, what the error estimate knows of values, and flags of values that are not finite") {
  check_values<64>(ElementType::bf16);
  check_values<96>(ElementType::f16);
  check_values<128>(ElementType::bf16);
  check_values<256>(ElementType::f16);
  check_values<128>(ElementType::fp8_e4m3);
}

}  // namespace
}  // namespace quorum::test
