// A row's queries in the coordinates of its index: transformed, rotated, rounded to int8 (algorithm.md eq. 3 and 4). One block, all heads
// of the group.
#pragma once

#include <cuda_fp16.h>

#include "quorum/core/shape.hpp"
#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/rotate.cuh"
#include "quorum/cuda/block/step.cuh"
#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

// Shared memory of a block; int8 rows of heads beyond the group are zero.
template <int kHeadDim>
struct QueryCoordinates {
  float query[kMaxGroupSize][kHeadDim];                              // scaled by sm_scale
  float transformed[kMaxGroupSize][kHeadDim];                        // y = inverse * q
  float mean_key[kHeadDim], eigenvalues[kHeadDim], signs[kHeadDim];  // of the metric
  float rotated[kMaxGroupSize][kHeadDim];                            // q'
  alignas(16) int8_t quantised[kMaxGroupSize][kHeadDim];
  QueryConstants constants[kMaxGroupSize];
};

// Eight neighbouring elements from i on, a multiple of 8, of a row aligned to 16 bytes.
__device__ __forceinline__ void load_eight(const std::byte* row, ElementType type, int i, float (&out)[8]) {
  if (type == ElementType::f32) {
    const float4* quads = reinterpret_cast<const float4*>(row) + i / 4;
    const float4 low = quads[0], high = quads[1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
    return;
  }
  const uint4 raw = reinterpret_cast<const uint4*>(row)[i / 8];
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float2 pair = type == ElementType::f16 ? unpack_f16(words[w]) : unpack_bf16(words[w]);
    out[2 * w] = pair.x;
    out[2 * w + 1] = pair.y;
  }
}

// Calls store(head, c, eight coordinates from c on) for the row's queries, and with zeros for heads from the group to num_heads.
template <int kHeadDim, class Store>
__device__ __forceinline__ void for_each_query_piece(const StepParams& p, int row, int num_heads, Store&& store) {
  constexpr int kPieces = kHeadDim / 8;
  const int group = p.group;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < num_heads * kPieces; i += int(blockDim.x)) {
    const int head = i / kPieces, c = i % kPieces * 8;
    float piece[8] = {};
    if (head < group) load_eight(p.queries.row(p.query_row(row, head), p.qo_head(row, head)), p.queries.type, c, piece);
    store(head, c, piece);
  }
}

// Leaves each of the lanes that differ in the bits from kBit down to 2 with two of the 2 kHalf sums over these lanes.
template <int kBit = 16, int kHalf = 16>
__device__ __forceinline__ void scatter_sums(float* value) {
  const bool upper = (int(threadIdx.x) & kBit) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float given = upper ? value[i] : value[i + kHalf], kept = upper ? value[i + kHalf] : value[i];
    value[i] = kept + __shfl_xor_sync(kFullMask, given, kBit);
  }
  if constexpr (kBit > 2) scatter_sums<kBit / 2, kHalf / 2>(value);
}

// y = inverse * q. A warp takes 16 outputs at a time; its lanes share the inputs, in rows of 32 bytes. queries_ready(): a barrier, once,
// before queries are used: the first factors are on their way by then.
template <int kHeadDim, class Ready>
__device__ __forceinline__ void transform_queries(const QueryMetricView& metric, int group, QueryCoordinates<kHeadDim>& s,
                                                  Ready&& queries_ready) {
  constexpr int kInputs = kHeadDim / 16, kTogether = kInputs < 8 ? kInputs : 8;  // of a lane
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize, half = lane % 2;
  bool waits = true;
#pragma unroll 1
  for (int out = warp; waits || out < kHeadDim / 16; out += int(blockDim.x) / kWarpSize)
#pragma unroll 1
    for (int first = 0; first < group; first += 4) {
      const bool own = out < kHeadDim / 16;
      const uint4* rows = reinterpret_cast<const uint4*>(metric.inverse + (int64_t(out) * kHeadDim + lane / 2) * 16 + half * 8);
      float sum[32] = {};
#pragma unroll 1
      for (int part = 0; part < kInputs; part += kTogether) {
        uint4 raw[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
          if (own) raw[i] = rows[(part + i) * 32];
        if (waits) queries_ready();
        waits = false;
        if (!own) break;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int in = lane / 2 + (part + i) * 16;
          const uint32_t words[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            const float2 factor = unpack_f16(words[w]);
#pragma unroll
            for (int h = 0; h < 4; ++h) {
              const float q = s.query[first + h][in];
              sum[h * 8 + 2 * w] += factor.x * q;
              sum[h * 8 + 2 * w + 1] += factor.y * q;
            }
          }
        }
      }
      if (!own) continue;
      scatter_sums(sum);
      const int place = lane & 0x1e;  // of the lane's two sums: head by 8, then output
      float* y = &s.transformed[first + place / 8][out * 16 + half * 8 + place % 8];
      y[0] = sum[0];
      y[1] = sum[1];
    }
}

// Constants and int8 coordinates of one head, by one warp. NaN becomes 0 here and shows in mean_score.
template <int kHeadDim>
__device__ __forceinline__ void quantise_query(int head, QueryCoordinates<kHeadDim>& s) {
  const int lane = int(threadIdx.x) % kWarpSize;
  float mean_score = 0.0f, variance = 0.0f, square = 0.0f, largest = 0.0f;
  for (int c = lane; c < kHeadDim; c += kWarpSize) {
    const float y = s.transformed[head][c], x = s.rotated[head][c];
    mean_score += s.query[head][c] * s.mean_key[c];
    variance += y * y * s.eigenvalues[c];
    square += x * x;
    largest = fmaxf(largest, fabsf(x));
  }
  const float step = fmaxf(warp_max(largest), 1e-20f) / 127.0f, inverse = 1.0f / step;
  int32_t sum = 0;
  for (int c = lane; c < kHeadDim; c += kWarpSize) {
    const float steps = fminf(fmaxf(s.rotated[head][c] * inverse, -127.0f), 127.0f);
    const int8_t rounded = steps == steps ? int8_t(rintf(steps)) : int8_t(0);
    s.quantised[head][c] = rounded;
    sum += rounded;
  }
  sum = warp_sum(sum);
  mean_score = warp_sum(mean_score);
  variance = warp_sum(variance);
  square = warp_sum(square);
  if (lane == 0) s.constants[head] = {mean_score, 0.5f * variance, square, step, kCentroidZero * sum};
}

// All of the above. Ends with a barrier.
template <int kHeadDim>
__device__ __forceinline__ void prepare_queries(const StepParams& p, int row, const QueryMetricView& metric,
                                                QueryCoordinates<kHeadDim>& s) {
  const int group = p.group, lane = int(threadIdx.x) % kWarpSize;
  for (int c = int(threadIdx.x); c < kHeadDim; c += int(blockDim.x)) {
    s.mean_key[c] = metric.mean_key[c];
    s.eigenvalues[c] = metric.eigenvalues[c];
    s.signs[c] = metric.signs[c];
  }
  for_each_query_piece<kHeadDim>(p, row, int(round_up(group, 4)), [&](int head, int c, const float(&piece)[8]) {
    for (int i = 0; i < 8; ++i) s.query[head][c + i] = piece[i] * p.shape.sm_scale;
  });
  transform_queries<kHeadDim>(metric, group, s, [] { __syncthreads(); });
  __syncthreads();
#pragma unroll 1
  for (int head = int(threadIdx.x) / kWarpSize; head < kMaxGroupSize; head += int(blockDim.x) / kWarpSize) {
    if (head >= group) {
      for (int c = lane; c < kHeadDim; c += kWarpSize) s.quantised[head][c] = 0;
      continue;
    }
    for (int c = lane; c < kHeadDim; c += kWarpSize) s.rotated[head][c] = s.transformed[head][c];
    __syncwarp();
    rotate<kHeadDim>(s.rotated[head], s.signs);
    quantise_query<kHeadDim>(head, s);
  }
  __syncthreads();
}

}  // namespace quorum::cuda
