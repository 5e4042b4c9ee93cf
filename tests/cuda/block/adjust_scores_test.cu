#include "quorum/cuda/block/adjust_scores.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

__global__ void cap_kernel(const float* scores, float cap, float* out) { out[threadIdx.x] = cuda::soft_cap(scores[threadIdx.x], cap); }

TEST_CASE("soft cap: what tanh gives, far out too; NaN stays") {
  std::vector<float> scores;
  for (int i = 0; i < 64; ++i) scores.push_back(float(i - 32) * 0.37f);
  scores[0] = -1e30f, scores[1] = 1e30f, scores[2] = kInfinity, scores[3] = -kInfinity, scores[4] = kNan, scores[5] = 1e-20f;
  const DeviceArray<float> from(scores), to(scores.size());
  for (const float cap : {0.5f, 3.0f, 50.0f}) {
    REQUIRE(cuda::launch({.threads = 64}, cap_kernel, from.data(), cap, to.data()) == cudaSuccess);
    const std::vector<float> got = to.values();
    for (size_t i = 0; i < scores.size(); ++i) {
      if (i == 4) continue;
      CHECK(std::fabs(double(got[i]) - double(cap) * std::tanh(double(scores[i]) / double(cap))) <= 1e-5 * double(cap));
    }
    CHECK(std::isnan(got[4]));
  }
}

struct TileScores {
  float score[2][4];
};
__global__ void mask_kernel(const cuda::StepParams p, int row, const int32_t* tokens, TileScores* out) {
  QUORUM_SHARED(cuda::ColumnRange[16], ranges);
  cuda::load_column_ranges(p, row, 16, ranges);
  __syncthreads();
  float score[2][4] = {{1.0f, 1.0f, 1.0f, 1.0f}, {1.0f, 1.0f, 1.0f, 1.0f}};
  cuda::mask_tile<2>(ranges, p.heads->live, p.heads->always.num_known, tokens[threadIdx.x % 16], score);
  for (int t = 0; t < 2; ++t)
    for (int j = 0; j < 4; ++j) out[threadIdx.x].score[t][j] = score[t][j];
}

TEST_CASE("mask: a column keeps the tokens that its query row sees and that live, in the layout of scores") {
  constexpr int kTokens = 70, kWindow = 9;
  std::vector<uint64_t> live(2, ~uint64_t(0));
  live[0] &= ~(uint64_t(1) << 60);
  const DeviceArray<uint64_t> live_words(live);
  FlatHeadView head;
  head.live = live_words.data();
  head.always.num_known = 65;
  const DeviceArray<FlatHeadView> heads(std::vector<FlatHeadView>{head});
  const DeviceArray<int32_t> lengths(std::vector<int32_t>{kTokens});
  cuda::StepParams p;
  p.shape = {3, 1, 64, 0.125f};
  p.shape.sliding_window = kWindow;
  p.heads = heads.data();
  p.kv.num_tokens = lengths.data();
  p.num_sequences = 1;
  p.deal_query_rows(7, true, RowSets::shared);
  CHECK(p.group == 15);
  CHECK(p.num_sets == 2);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 16; ++i) tokens.push_back(kTokens - 16 + i);
  const DeviceArray<int32_t> of_tile(tokens);
  const DeviceArray<TileScores> output(32);
  for (int row = 0; row < 2; ++row) {
    REQUIRE(cuda::launch({.threads = 32}, mask_kernel, p, row, of_tile.data(), output.data()) == cudaSuccess);
    const std::vector<TileScores> got = output.values();
    int wrong = 0;
    for (int lane = 0; lane < 32; ++lane)
      for (int t = 0; t < 2; ++t)
        for (int j = 0; j < 4; ++j) {
          const int column = std::min(t * 8 + lane % 4 * 2 + j % 2, 14), token = tokens[size_t(lane / 4 + j / 2 * 8)];
          const int query = std::min(row * 5 + column / 3, 6), own = kTokens - 7 + query;  // the place where it stands
          const bool seen = token <= own && token > own - kWindow && token != 60;
          wrong += got[size_t(lane)].score[t][j] == (seen ? 1.0f : -kInfinity) ? 0 : 1;
        }
    CHECK(wrong == 0);
  }
}

}  // namespace
}  // namespace quorum::test
