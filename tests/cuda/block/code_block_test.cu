#include "quorum/cuda/block/code_block.cuh"

#include <doctest/doctest.h>

#include <random>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

constexpr int kBlocks = 3;

template <int kHeadDim>
__global__ void dots_kernel(const __grid_constant__ SegmentView clusters, const int8_t* quantised, int32_t* dots, uint16_t* scales) {
  const int lane = int(threadIdx.x);
  cuda::CodeQueries<kHeadDim> queries[2];
  for (int t = 0; t < 2; ++t) queries[t].load(quantised, 8 * t);
  for (int block = 0; block < kBlocks; ++block) {
    cuda::CodeFragment<kHeadDim> codes;
    codes.load(clusters, block);
    int32_t dot[2][4];
    cuda::code_dots<kHeadDim, 2>(codes, queries, dot);
    for (int i = 0; i < 2; ++i) {
      const int token = block * kCodeBlock + lane / 4 + 8 * i;
      if (lane % 4 == 0) scales[token] = codes.scale[i];
      for (int t = 0; t < 2; ++t)
        for (int j = 0; j < 2; ++j) dots[token * kMaxGroupSize + 8 * t + lane % 4 * 2 + j] = dot[t][2 * i + j];
    }
  }
}

// Sums over set bits, bit by bit, for codes and queries of any bytes.
template <int kHeadDim>
void check_dots() {
  CAPTURE(kHeadDim);
  constexpr int kTokens = kBlocks * kCodeBlock;
  std::mt19937 random(7);
  std::vector<uint8_t> bytes(size_t(kBlocks * code_block_bytes(kHeadDim)));
  std::vector<int8_t> queries(size_t(kMaxGroupSize) * kHeadDim);
  for (uint8_t& byte : bytes) byte = uint8_t(random());
  for (int8_t& q : queries) q = int8_t(int(random() % 255) - 127);
  std::fill_n(bytes.begin(), code_block_bytes(kHeadDim), uint8_t(0xff));  // the largest sums there are
  std::fill_n(queries.begin(), kHeadDim, int8_t(-127));
  std::fill_n(queries.begin() + kHeadDim, kHeadDim, int8_t(127));
  std::vector<f16> scale;
  for (int i = 0; i < kTokens; ++i) scale.push_back(f16{uint16_t(100 + i)});
  const DeviceArray<uint8_t> codes(bytes);
  const DeviceArray<int8_t> quantised(queries);
  const DeviceArray<f16> code_scale(scale);
  const DeviceArray<int32_t> output(size_t(kTokens) * kMaxGroupSize);
  const DeviceArray<uint16_t> scales(static_cast<size_t>(kTokens));
  SegmentView clusters;
  clusters.codes = codes.data();
  clusters.code_scale = code_scale.data();
  REQUIRE(cuda::launch({.threads = 32}, dots_kernel<kHeadDim>, clusters, static_cast<const int8_t*>(quantised.data()), output.data(),
                       scales.data()) == cudaSuccess);
  const std::vector<int32_t> dots = output.values();
  const std::vector<uint16_t> got_scales = scales.values();
  int wrong = 0;
  for (int token = 0; token < kTokens; ++token) {
    wrong += got_scales[size_t(token)] == scale[size_t(token)].bits ? 0 : 1;
    for (int head = 0; head < kMaxGroupSize; ++head) {
      int32_t expected = 0;
      for (int c = 0; c < kHeadDim; ++c) {
        const CodeBit bit = code_bit(c, token % kCodeBlock);
        const uint8_t byte = bytes[size_t(token / kCodeBlock * code_block_bytes(kHeadDim) + bit.byte)];
        if ((byte >> bit.shift & 1) != 0) expected += queries[size_t(head * kHeadDim + c)];
      }
      wrong += dots[size_t(token * kMaxGroupSize + head)] == expected ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("code block: sums over the set bits of all tokens and heads are exact, for every head_dim") {
  check_dots<64>();
  check_dots<96>();
  check_dots<128>();
  check_dots<256>();
}

__global__ void spread_kernel(uint32_t* out) { out[threadIdx.x] = cuda::spread_bits(threadIdx.x); }

TEST_CASE("code block: four bits become four bytes of 0 or 1, the lowest first") {
  const DeviceArray<uint32_t> output(16);
  REQUIRE(cuda::launch({.threads = 16}, spread_kernel, output.data()) == cudaSuccess);
  const std::vector<uint32_t> words = output.values();
  for (uint32_t bits = 0; bits < 16; ++bits)
    for (int i = 0; i < 4; ++i) CHECK((words[bits] >> (8 * i) & 0xff) == (bits >> i & 1));
}

}  // namespace
}  // namespace quorum::test
