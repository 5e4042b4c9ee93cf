#include "quorum/cuda/kernel/encode_residuals_kernel.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

template <int kHeadDim>
void check_codes(int num_tokens, int cluster_size) {
  CAPTURE(kHeadDim);
  CAPTURE(num_tokens);
  constexpr size_t d = kHeadDim;
  constexpr int kBytes = int(code_block_bytes(kHeadDim));
  BuildStage stage(kHeadDim, num_tokens, BuildStage::options(100, cluster_size));
  stage.make_rows(2);
  cuda::BuildParams& p = stage.params;
  const std::vector<int32_t> assignment = stage.random_assignment(9);
  stage.set_clusters(assignment);
  std::mt19937_64 random(d);
  std::normal_distribution<float> normal;
  std::vector<float> means(size_t(2 * p.num_slots) * d), map(2 * d * d);
  for (float& x : means) x = 0.2f * normal(random);
  for (float& x : map) x = normal(random);
  BuildStage::put(p.workspace.means, means);
  BuildStage::put(p.workspace.to_index, map);
  REQUIRE(stage.run(cuda::count_code_blocks_kernel<cuda::kBuildThreads>, dim3(1), cuda::kBuildThreads) == cudaSuccess);
  REQUIRE(stage.run(cuda::encode_residuals_kernel<kHeadDim>, dim3(unsigned(p.max_code_blocks)), cuda::kBuildThreads) == cudaSuccess);
  const auto indptr = BuildStage::get(p.index.code_indptr, 2 * (p.num_slots + 1));
  const auto cluster_indptr = BuildStage::get(p.index.cluster_indptr, 2 * (p.num_slots + 1));
  const auto tokens = BuildStage::get(p.index.cluster_tokens, 2 * num_tokens);
  const auto codes = BuildStage::get(p.index.codes, 2 * int64_t(p.max_code_blocks) * kBytes);
  const auto scales = BuildStage::get(p.index.code_scale, 2 * int64_t(p.max_code_blocks) * 16);
  const auto squares = BuildStage::get(p.workspace.code_squares, 2 * int64_t(p.max_code_blocks));
  for (int h = 0; h < 2; ++h) {
    int blocks = 0, wrong = 0;
    for (int j = 0; j < p.num_slots; ++j) {
      const size_t at = size_t(p.indptr_of(h) + j);
      const int first = cluster_indptr[at], count = cluster_indptr[at + 1] - first;
      CHECK(indptr[at] == blocks);
      for (int block = 0; block < (count + 15) / 16; ++block) {
        const size_t place = size_t(h * p.max_code_blocks + blocks++);
        double square = 0.0;
        for (int lane = 0; lane < 16; ++lane) {
          const int i = block * 16 + lane;
          double sum = 0.0;
          for (size_t c = 0; c < d; ++c) {
            double x = 0.0;
            if (i < count)
              for (size_t k = 0; k < d; ++k)
                x += (stage.row(h, tokens[size_t(p.tokens_of(h) + first + i)], int(k)) - double(means[size_t(p.slots_of(h) + j) * d + k])) *
                     double(map[(size_t(h) * d + k) * d + c]);
            const CodeBit bit = code_bit(int(c), lane);
            const bool set = (codes[place * size_t(kBytes) + size_t(bit.byte)] >> bit.shift & 1) != 0;
            wrong += std::fabs(x) > 1e-4 && set != (x > 0.0) ? 1 : 0;
            wrong += i >= count && set ? 1 : 0;
            sum += std::fabs(x) / double(d);
          }
          const double scale = double(to_float(scales[place * 16 + size_t(lane)]));
          wrong += std::fabs(scale - sum) <= 1e-3 * sum ? 0 : 1;
          square += scale * scale;
        }
        CHECK(double(squares[place]) == doctest::Approx(square).epsilon(1e-4));
      }
    }
    CHECK(wrong == 0);
    CHECK(indptr[size_t(p.indptr_of(h) + p.num_slots)] == blocks);
    CHECK(blocks <= p.max_code_blocks);
  }
}

TEST_CASE("encode residuals: a bit a coordinate and a scale a token, in blocks of their cluster's own") {
  check_codes<64>(230, 9);
  check_codes<64>(60, 30);  // clusters of several blocks
  check_codes<64>(5, 1);    // more slots than tokens
  check_codes<96>(110, 20);
  check_codes<128>(60, 9);
  check_codes<256>(40, 9);
}

TEST_CASE("encode residuals: more clusters than threads") {
  BuildStage stage(64, 700, BuildStage::options(1000, 2));
  stage.set_clusters(stage.random_assignment(1));
  cuda::BuildParams& p = stage.params;
  REQUIRE(p.num_slots > cuda::kBuildThreads);
  REQUIRE(stage.run(cuda::count_code_blocks_kernel<cuda::kBuildThreads>, dim3(1), cuda::kBuildThreads) == cudaSuccess);
  const auto indptr = BuildStage::get(p.index.code_indptr, p.num_slots + 1);
  const auto size = BuildStage::get(p.index.size, p.num_slots);
  int blocks = 0;
  for (int j = 0; j < p.num_slots; ++j) {
    CHECK(indptr[size_t(j)] == blocks);
    blocks += (int(size[size_t(j)]) + 15) / 16;
  }
  CHECK(indptr.back() == blocks);
}

}  // namespace
}  // namespace quorum::test
