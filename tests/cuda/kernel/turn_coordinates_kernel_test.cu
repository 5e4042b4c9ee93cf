#include "quorum/cuda/kernel/turn_coordinates_kernel.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
cudaError_t run_all(const BuildStage& stage) {
  const cudaError_t status =
      stage.run(cuda::turn_coordinates_kernel<kHeadDim>, dim3(1), cuda::kJacobiThreads, cuda::kTurnSharedBytes<kHeadDim>);
  return status != cudaSuccess ? status : stage.run(cuda::finish_metric_kernel<kHeadDim>, dim3(kHeadDim / 16), cuda::kBuildThreads);
}

std::vector<float> identities(int d, int heads) {
  std::vector<float> maps(size_t(heads * d * d), 0.0f);
  for (int h = 0; h < heads; ++h)
    for (int c = 0; c < d; ++c) maps[size_t((h * d + c) * d + c)] = 1.0f;
  return maps;
}

template <int kHeadDim>
void check_moment(int num_tokens) {
  CAPTURE(kHeadDim);
  CAPTURE(num_tokens);
  constexpr size_t d = kHeadDim;
  BuildStage stage(kHeadDim, num_tokens, BuildStage::options(1000, 25));
  stage.make_rows(6);
  cuda::BuildParams& p = stage.params;
  const std::vector<int32_t> assignment = stage.random_assignment(1);
  BuildStage::put(p.workspace.assignment, assignment);
  std::vector<float> means(size_t(2 * p.num_slots) * d);
  for (size_t i = 0; i < means.size(); ++i) means[i] = 0.1f * float(i % 13) - 0.5f;
  BuildStage::put(p.workspace.means, means);
  REQUIRE(stage.run(cuda::residual_moment_kernel<kHeadDim>, dim3(d / 32, d / 32), cuda::kBuildThreads) == cudaSuccess);
  const auto moment = BuildStage::get(p.workspace.moment, int64_t(2 * d * d));
  const int step = std::max(1, num_tokens / int(16 * d));
  for (int h = 0; h < 2; ++h) {
    double largest = 0.0, scale = 0.0;
    std::vector<std::vector<double>> residuals;
    for (int i = 0; i < num_tokens; i += step) {
      residuals.emplace_back(d);
      const int64_t slot = p.slots_of(h) + i / 1000 * p.slots_per_segment + assignment[size_t(p.tokens_of(h) + i)];
      for (size_t c = 0; c < d; ++c) residuals.back()[c] = stage.row(h, i, int(c)) - double(means[size_t(slot) * d + c]);
    }
    for (size_t a = 0; a < d; a += 3)
      for (size_t b = 0; b < d; b += 5) {
        double sum = 0.0;
        for (const auto& r : residuals) sum += r[a] * r[b];
        largest = std::max(largest, std::fabs(sum - double(moment[(size_t(h) * d + a) * d + b])));
        scale = std::max(scale, std::fabs(sum));
        CHECK(moment[(size_t(h) * d + a) * d + b] == moment[(size_t(h) * d + b) * d + a]);
      }
    CHECK(largest <= 1e-4 * scale);
  }
}

TEST_CASE("turn: the moment is that of the residuals, or of every few of them") {
  check_moment<64>(100);
  check_moment<64>(2100);  // two of three stay out
  check_moment<96>(70);
  check_moment<128>(65);
  check_moment<256>(40);
}

// With the identity for the rotated metric, inverse is the turn itself, and to_index the turn and then the rotation.
template <int kHeadDim>
void check_turn() {
  CAPTURE(kHeadDim);
  constexpr size_t d = kHeadDim;
  BuildStage stage(kHeadDim, 50, BuildStage::options(1000, 25));
  cuda::BuildParams& p = stage.params;
  std::vector<float> moment(2 * d * d);
  std::mt19937_64 random(d);
  std::normal_distribution<float> normal;
  for (int n = 0; n < int(d); ++n) {  // a sum of outer products, of a few large directions and many small ones
    std::vector<float> x(d);
    const float common = 2.0f * normal(random);
    for (size_t c = 0; c < d; ++c) x[c] = (c % 9 == 0 ? 1.0f : 0.1f) * normal(random) + 0.1f * common;
    for (size_t i = 0; i < d * d; ++i) moment[i] += x[i / d] * x[i % d];
  }  // that of the second head is zero
  BuildStage::put(p.workspace.moment, moment);
  BuildStage::put(p.workspace.inverse, identities(kHeadDim, 2));
  std::vector<float> signs(2 * d);
  for (size_t c = 0; c < 2 * d; ++c) signs[c] = c % 3 == 0 ? -1.0f : 1.0f;
  BuildStage::put(p.index.signs, signs);
  REQUIRE(run_all<kHeadDim>(stage) == cudaSuccess);
  const auto turn = BuildStage::get(p.workspace.turn, int64_t(2 * d * d)),
             to_index = BuildStage::get(p.workspace.to_index, int64_t(2 * d * d));
  const auto eigenvalues = BuildStage::get(p.index.eigenvalues, int64_t(2 * d));
  const auto inverse = BuildStage::get(p.index.inverse, int64_t(2 * d * d));
  double trace = 0.0, sum = 0.0, worst = 0.0;
  for (size_t c = 0; c < d; ++c) trace += double(moment[c * (d + 1)]);
  for (size_t c = 0; c < d; ++c) {
    sum += double(eigenvalues[c]);
    CHECK(eigenvalues[c] >= 0.0f);
    CHECK(eigenvalues[d + c] == doctest::Approx(1.0 / d));
    for (size_t i = 0; i < d; ++i) {  // moment v = eigenvalue v, up to what is left off the diagonal
      double image = 0.0;
      for (size_t k = 0; k < d; ++k) image += double(moment[i * d + k]) / trace * double(turn[c * d + k]);
      worst = std::max(worst, std::fabs(image - double(eigenvalues[c]) * double(turn[c * d + i])));
      CHECK(turn[(d + c) * d + i] == (c == i ? 1.0f : 0.0f));
      const float packed = to_float(inverse[(c / 16 * d + i) * 16 + c % 16]);
      CHECK(std::fabs(packed - turn[c * d + i]) <= 1e-3f * std::fabs(turn[c * d + i]) + 1e-4f);
    }
  }
  CHECK(std::fabs(sum - 1.0) <= 1e-3);
  CHECK(worst <= 1e-3);
  double longest = 0.0, angle = 0.0;  // to_index is orthogonal
  for (size_t a = 0; a < 2 * d; a += 3)
    for (size_t b = a / d * d; b <= a; ++b) {
      double dot = 0.0;
      for (size_t c = 0; c < d; ++c) dot += double(to_index[a * d + c]) * double(to_index[b * d + c]);
      (a == b ? longest : angle) = std::max(a == b ? longest : angle, std::fabs(dot - (a == b ? 1.0 : 0.0)));
    }
  CHECK(longest <= 1e-3);
  CHECK(angle <= 1e-3);
}

TEST_CASE("turn: eigenvectors and eigenvalues of the moment, packed; a zero moment leaves coordinates as they are") {
  check_turn<64>();
  check_turn<96>();
}
TEST_CASE("turn: the same of long rows" * doctest::test_suite("long rows")) {
  check_turn<128>();
  check_turn<256>();
}

TEST_CASE("turn: a moment that is not finite leaves coordinates as they are") {
  BuildStage stage(64, 50, BuildStage::options(1000, 25), 1);
  std::vector<float> moment(64 * 64, 1.0f);
  moment[65] = kNan;
  BuildStage::put(stage.params.workspace.moment, moment);
  BuildStage::put(stage.params.workspace.inverse, identities(64, 1));
  BuildStage::put(stage.params.index.signs, std::vector<float>(64, 1.0f));
  REQUIRE(run_all<64>(stage) == cudaSuccess);
  CHECK(BuildStage::get(stage.params.workspace.turn, 64 * 64) == identities(64, 1));
  CHECK(BuildStage::get(stage.params.index.eigenvalues, 64) == std::vector<float>(64, 1.0f / 64));
}

}  // namespace
}  // namespace quorum::test
