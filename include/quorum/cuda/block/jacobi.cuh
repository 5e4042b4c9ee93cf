// Eigenvectors of a symmetric matrix by one block: Jacobi's method from one side (Hestenes), whose rotations need pairs of rows only.
//
// Rows of `turned` (the matrix times the turn so far) are made orthogonal by plane rotations, which `turn` collects. Pairs that share no
// row turn at the same time; a round robin meets all pairs in head_dim - 1 rounds. No order of threads enters, so the result is the same
// always.
#pragma once

#include "quorum/cuda/block/warp.cuh"

namespace quorum::cuda {

inline constexpr int kJacobiThreads = 512;
// A variance needs few digits: rows count as orthogonal below this cosine. The bound of sweeps is for what does not converge.
inline constexpr float kJacobiCosine = 1e-3f;
inline constexpr int kJacobiSweeps = 16;
// Lanes for a pair: each has head_dim / 8 elements of both rows, in fours.
inline constexpr int kPairLanes = 8;

// Rows that meet as the `pair`-th of a round: the last one stays, the others go round.
struct RowPair {
  int first, second;
};
QUORUM_HOST_DEVICE constexpr RowPair round_robin(int round, int pair, int num_rows) {
  const int others = num_rows - 1;
  if (pair == 0) return {others, round};
  return {(round + pair) % others, (round + others - pair) % others};
}

// The rotation that makes two rows orthogonal, from their squared lengths and their product: first' = c first - s second,
// second' = s first + c second.
struct PlaneRotation {
  float cosine = 1.0f, sine = 0.0f;

  __device__ static __forceinline__ PlaneRotation of(float first_square, float second_square, float product) {
    const float ratio = (second_square - first_square) / (2.0f * product);
    const float tangent = copysignf(1.0f, ratio) / (fabsf(ratio) + sqrtf(1.0f + ratio * ratio));
    const float cosine = 1.0f / sqrtf(1.0f + tangent * tangent);
    return {cosine, cosine * tangent};
  }
};

// Turns two rows; by the 8 lanes of a pair.
template <int kHeadDim>
__device__ __forceinline__ void rotate_rows(float* first, float* second, PlaneRotation r) {
  const int lane = int(threadIdx.x) % kPairLanes;
#pragma unroll 2
  for (int i = lane; i < kHeadDim / 4; i += kPairLanes) {
    float4& a = reinterpret_cast<float4*>(first)[i];
    float4& b = reinterpret_cast<float4*>(second)[i];
    const float4 x = a, y = b;
    a = {r.cosine * x.x - r.sine * y.x, r.cosine * x.y - r.sine * y.y, r.cosine * x.z - r.sine * y.z, r.cosine * x.w - r.sine * y.w};
    b = {r.sine * x.x + r.cosine * y.x, r.sine * x.y + r.cosine * y.y, r.sine * x.z + r.cosine * y.z, r.sine * x.w + r.cosine * y.w};
  }
}

// Products of two rows over the 8 lanes of a pair, all of which get them.
struct RowProducts {
  float first_square = 0.0f, second_square = 0.0f, product = 0.0f;
};
template <int kHeadDim>
__device__ __forceinline__ RowProducts row_products(const float* first, const float* second) {
  RowProducts sum;
#pragma unroll 2
  for (int i = int(threadIdx.x) % kPairLanes; i < kHeadDim / 4; i += kPairLanes) {
    const float4 x = reinterpret_cast<const float4*>(first)[i], y = reinterpret_cast<const float4*>(second)[i];
    sum.first_square += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    sum.second_square += y.x * y.x + y.y * y.y + y.z * y.z + y.w * y.w;
    sum.product += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
  }
  return {warp_sum<1, kPairLanes>(sum.first_square), warp_sum<1, kPairLanes>(sum.second_square), warp_sum<1, kPairLanes>(sum.product)};
}

// turned, turn: [kHeadDim][kHeadDim], the matrix and the identity; post: turn orthogonal, its rows eigenvectors, and turned = turn matrix.
// floor: products below it are rounding. rotated: shared memory, one word. Starts and ends with a barrier.
template <int kHeadDim>
__device__ __forceinline__ void jacobi(float* turned, float* turn, float floor, int& rotated) {
  const int warp = int(threadIdx.x) / kWarpSize, in_warp = int(threadIdx.x) % kWarpSize / kPairLanes;
  constexpr int kPairs = kWarpSize / kPairLanes;  // of a warp
  static_assert(kHeadDim / 2 % kPairs == 0, "all lanes of a warp have a pair, or none");
#pragma unroll 1
  for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
    __syncthreads();
    if (threadIdx.x == 0) rotated = 0;
    __syncthreads();
#pragma unroll 1
    for (int round = 0; round < kHeadDim - 1; ++round) {
#pragma unroll 1
      for (int pair = warp * kPairs + in_warp; pair < kHeadDim / 2; pair += kJacobiThreads / kPairLanes) {
        const RowPair rows = round_robin(round, pair, kHeadDim);
        float *first = turned + rows.first * kHeadDim, *second = turned + rows.second * kHeadDim;
        const RowProducts p = row_products<kHeadDim>(first, second);
        const float product = fabsf(p.product);
        if (!(product > floor) || !(product > kJacobiCosine * sqrtf(p.first_square) * sqrtf(p.second_square))) continue;
        const PlaneRotation r = PlaneRotation::of(p.first_square, p.second_square, p.product);
        rotate_rows<kHeadDim>(first, second, r);
        rotate_rows<kHeadDim>(turn + rows.first * kHeadDim, turn + rows.second * kHeadDim, r);
        if (int(threadIdx.x) % kPairLanes == 0) atomicOr(&rotated, 1);
      }
      __syncthreads();
    }
    if (rotated == 0) break;
  }
  __syncthreads();
}

// The eigenvalue of a row that jacobi() left, whatever is left off the diagonal.
template <int kHeadDim>
__device__ __forceinline__ float jacobi_eigenvalue(const float* turned, const float* turn, int row) {
  float value = 0.0f;
  for (int i = 0; i < kHeadDim; ++i) value = fmaf(turned[row * kHeadDim + i], turn[row * kHeadDim + i], value);
  return value;
}

}  // namespace quorum::cuda
