#include "quorum/cuda/block/attend_tile.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

constexpr int kHeadDim = 64, kTokens = 16;

// Attention over tiles of given keys and values by one warp; results [8 kHeadTiles][kHeadDim], then maximum and sum of each head.
template <class T, int kHeadTiles>
__global__ void attend_tiles_kernel(const cuda::Operand<T>* queries, const T* keys, const T* values, int num_tiles, int count_of_last,
                                    float* results) {
  constexpr int kStride = cuda::kTileStride<T, kHeadDim>, kQueryStride = cuda::kTileStride<cuda::Operand<T>, kHeadDim>,
                kHeads = 8 * kHeadTiles;
  QUORUM_SHARED(cuda::Operand<T>[kHeads * kQueryStride], query_rows);
  constexpr int kElements = cuda::kTileElements<T, kHeadDim>;
  QUORUM_SHARED(T[2 * kElements], tile);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < kHeads * kHeadDim; i += 32) {
    const int c = i % kHeadDim;
    query_rows[i / kHeadDim * kQueryStride + cuda::query_place<T>(c / 2 * 2) + c % 2] = queries[i];
  }
  cuda::TileState<kHeadDim, kHeadTiles> state;
  state.clear();
  for (int t = 0; t < num_tiles; ++t) {
    __syncwarp();
    for (int i = lane; i < kTokens * kHeadDim; i += 32) {
      const int at = i / kHeadDim * kStride + i % kHeadDim;
      tile[at] = keys[t * kTokens * kHeadDim + i];
      tile[kElements + at] = values[t * kTokens * kHeadDim + i];
    }
    __syncwarp();
    float score[kHeadTiles][4];
    cuda::score_tile<T, kHeadDim, kHeadTiles>(tile, query_rows, score);
    const int count = t + 1 < num_tiles ? kTokens : count_of_last;
    for (int h = 0; h < kHeadTiles; ++h)
      for (int i = 0; i < 4; ++i) score[h][i] = lane / 4 + i / 2 * 8 < count ? score[h][i] * kLog2e : -kInfinity;
    cuda::weigh_tile<kHeadDim, kHeadTiles>(score, state);
    uint32_t weight[kHeadTiles][2];
    cuda::pack_weights<cuda::Operand<T>, kHeadTiles>(score, weight);
    cuda::accumulate_tile<T, kHeadDim, kHeadTiles>(tile + kElements, weight, state);
  }
  const auto places = cuda::OutputPlaces::of<T>();
  for (int h = 0; h < kHeadTiles; ++h)
    for (int j = 0; j < 2; ++j) {
      const int head = h * 8 + lane % 4 * 2 + j;
      const float sum = cuda::warp_sum<4>(state.sum[h][j]);
      for (int m = 0; m < kHeadDim / 16; ++m)
        for (int i = 0; i < 2; ++i) results[head * kHeadDim + m * 16 + places.first + places.step * i] = state.output[m][h][2 * i + j];
      if (lane < 4) {
        results[kHeads * kHeadDim + 2 * head] = state.max[h][j];
        results[kHeads * kHeadDim + 2 * head + 1] = sum;
      }
    }
}

template <class T>
std::vector<T> random_elements(size_t count, float scale, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<T> out;
  for (size_t i = 0; i < count; ++i) out.push_back(from_float<T>(scale * normal(random)));
  return out;
}

template <class T, int kHeadTiles>
void check_attention(int num_tiles, int count_of_last, double tolerance) {
  constexpr int kHeads = 8 * kHeadTiles;
  std::mt19937_64 random(7);
  const size_t rows = size_t(num_tiles) * kTokens * kHeadDim;
  const auto queries = random_elements<cuda::Operand<T>>(kHeads * kHeadDim, 0.3f, random);
  const auto keys = random_elements<T>(rows, 1.0f, random), values = random_elements<T>(rows, 1.0f, random);
  const DeviceArray<cuda::Operand<T>> q(queries);
  const DeviceArray<T> k(keys), v(values);
  const DeviceArray<float> output(kHeads * kHeadDim + 2 * kHeads);
  REQUIRE(cuda::launch({.threads = 32}, attend_tiles_kernel<T, kHeadTiles>, static_cast<const cuda::Operand<T>*>(q.data()),
                       static_cast<const T*>(k.data()), static_cast<const T*>(v.data()), num_tiles, count_of_last,
                       output.data()) == cudaSuccess);
  const std::vector<float> found = output.values();
  const int num_tokens = (num_tiles - 1) * kTokens + count_of_last;
  for (int head = 0; head < kHeads; ++head) {
    CAPTURE(head);
    double sum = 0.0;
    std::vector<double> expected(kHeadDim, 0.0);
    for (int t = 0; t < num_tokens; ++t) {
      double score = 0.0;
      for (int c = 0; c < kHeadDim; ++c)
        score += double(to_float(queries[size_t(head * kHeadDim + c)])) * double(to_float(keys[size_t(t * kHeadDim + c)]));
      sum += std::exp(score);
      for (int c = 0; c < kHeadDim; ++c) expected[size_t(c)] += std::exp(score) * double(to_float(values[size_t(t * kHeadDim + c)]));
    }
    const double max = double(found[size_t(kHeads * kHeadDim + 2 * head)]), total = double(found[size_t(kHeads * kHeadDim + 2 * head + 1)]);
    CHECK(std::fabs(max / double(kLog2e) + std::log(total) - std::log(sum)) <= 1e-3);
    for (int c = 0; c < kHeadDim; ++c)
      CHECK(std::fabs(double(found[size_t(head * kHeadDim + c)]) / total - expected[size_t(c)] / sum) <= tolerance);
  }
}

TEST_CASE("attend tile: attention over one and several tiles, the last one partly filled, for 8 and 16 heads") {
  check_attention<bf16, 1>(1, 16, 1e-2);
  check_attention<bf16, 2>(3, 1, 1e-2);
  check_attention<f16, 1>(2, 9, 2e-3);
  check_attention<f16, 2>(1, 8, 2e-3);
  check_attention<fp8_e4m3, 1>(2, 9, 2e-3);
  check_attention<fp8_e4m3, 2>(3, 16, 2e-3);
}

}  // namespace
}  // namespace quorum::test
