// Dot products of queries with the signs of 16 residual codes by one warp, with int8 tensor cores (algorithm.md eq. 13).
//
// A bit becomes a byte of 0 or 1 in a register, and the int8 query of scoring is the other operand: sum of +-q' = 2 (sum over set bits) -
// (sum of all). A CPU looks sums of four up in tables instead; both round q' once, see docs/numerics.md.
#pragma once

#include <type_traits>

#include "quorum/core/residual_code.hpp"
#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/step.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// The order in which coordinates enter the product is free, as long as both operands keep it. Step s of lane l takes the byte
// `first_byte(l)
// + s` of a token's code, counted through its lines: 4 coordinates in each half. So a lane's bytes lie side by side, and a warp loads whole
// sectors.
template <int kHeadDim>
struct CodeOrder {
  static constexpr int kLines = code_lines(kHeadDim), kSteps = kLines;
  static_assert(kLines * kCodeLineDim == kHeadDim);

  static __device__ __forceinline__ int byte_of(int step) { return int(threadIdx.x) % 4 * kLines + step; }
  // First coordinate of the low half of a byte; the high half begins 16 later.
  static __device__ __forceinline__ int coordinate_of(int byte) { return byte / 4 * kCodeLineDim + byte % 4 * 4; }
};

// Four bits as bytes of 0 or 1.
__device__ __forceinline__ uint32_t spread_bits(uint32_t bits) { return (bits * 0x00204081u) & 0x01010101u; }

// A block of codes on its way: those of tokens l / 4 and l / 4 + 8, as many bytes as lie side by side in one word.
template <int kHeadDim>
struct CodeFragment {
  using Order = CodeOrder<kHeadDim>;
  static constexpr int kLines = Order::kLines;
  static constexpr int kPartBytes = kLines % 4 == 0 ? 4 : kLines % 2 == 0 ? 2 : 1, kParts = kLines / kPartBytes;
  using Part = std::conditional_t<kPartBytes == 4, uint32_t, std::conditional_t<kPartBytes == 2, uint16_t, uint8_t>>;

  Part part[2][kParts];
  uint16_t scale[2];  // f16

  // block: of the index.
  __device__ __forceinline__ void load(const SegmentView& clusters, int block) {
    const int token = int(threadIdx.x) % kWarpSize / 4;
    const uint8_t* codes = clusters.codes + int64_t(block) * code_block_bytes(kHeadDim);
    const auto* scales = reinterpret_cast<const uint16_t*>(clusters.code_scale) + int64_t(block) * kCodeBlock;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale[i] = scales[token + 8 * i];
#pragma unroll
      for (int k = 0; k < kParts; ++k) {
        const int byte = Order::byte_of(k * kPartBytes);
        part[i][k] = *reinterpret_cast<const Part*>(codes + byte / 4 * kCodeLineBytes + (token + 8 * i) * 4 + byte % 4);
      }
    }
  }
  // The codes' part in a step of the product.
  __device__ __forceinline__ void expand(int step, uint32_t (&operand)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t byte = uint32_t(part[i][step / kPartBytes]) >> (8 * (step % kPartBytes));
      operand[i] = spread_bits(byte & 15u);
      operand[2 + i] = spread_bits(byte >> 4 & 15u);
    }
  }
};

// The int8 queries of 8 heads in the order of codes.
template <int kHeadDim>
struct CodeQueries {
  uint32_t word[CodeOrder<kHeadDim>::kSteps][2];

  // quantised: StepWorkspace::quantised of the row.
  __device__ __forceinline__ void load(const int8_t* quantised, int first) {
    const int8_t* own = quantised + (first + int(threadIdx.x) % kWarpSize / 4) * kHeadDim;
#pragma unroll
    for (int s = 0; s < CodeOrder<kHeadDim>::kSteps; ++s)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        word[s][i] = *reinterpret_cast<const uint32_t*>(own + CodeOrder<kHeadDim>::coordinate_of(CodeOrder<kHeadDim>::byte_of(s)) + 16 * i);
  }
};

// Sums of the int8 coordinates whose bits are set: dot[t][2 i + j] is that of token l / 4 + 8 i and head 8 t + 2 (l % 4) + j.
template <int kHeadDim, int kHeadTiles>
__device__ __forceinline__ void code_dots(const CodeFragment<kHeadDim>& codes, const CodeQueries<kHeadDim> (&queries)[kHeadTiles],
                                          int32_t (&dot)[kHeadTiles][4]) {
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) dot[t][i] = 0;
#pragma unroll
  for (int s = 0; s < CodeOrder<kHeadDim>::kSteps; ++s) {
    uint32_t operand[4];
    codes.expand(s, operand);
#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) mma_m16n8k32_u8s8(dot[t], operand, queries[t].word[s]);
  }
}

}  // namespace quorum::cuda
