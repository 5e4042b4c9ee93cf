// Buckets of the reading order for a block of 16 clusters at once, and the way from blocks into that order.
#pragma once

#include "quorum/core/cluster_order.hpp"
#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// buckets[i] = order_bucket(log_shares[i]), 16 of them; the same integers as the scalar rule for every input.
inline void order_buckets(const float* log_shares, int32_t* buckets) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  // vmaxps returns its second operand if either is NaN: NaN goes to bucket 0.
  __m512 depth = _mm512_mul_ps(_mm512_loadu_ps(log_shares), _mm512_set1_ps(-float(kOrderBucketsPerNat)));
  depth = _mm512_min_ps(_mm512_max_ps(depth, _mm512_setzero_ps()), _mm512_set1_ps(float(kNumOrderBuckets - 1)));
  _mm512_storeu_si512(buckets, _mm512_cvttps_epi32(depth));
#elif defined(__SSE2__) && !defined(QUORUM_SCALAR)
  for (int i = 0; i < 16; i += 4) {
    __m128 depth = _mm_mul_ps(_mm_loadu_ps(log_shares + i), _mm_set1_ps(-float(kOrderBucketsPerNat)));
    depth = _mm_min_ps(_mm_max_ps(depth, _mm_setzero_ps()), _mm_set1_ps(float(kNumOrderBuckets - 1)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(buckets + i), _mm_cvttps_epi32(depth));
  }
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  // NaN stays NaN through fmax and fmin, and converts to 0.
  for (int i = 0; i < 16; i += 4) {
    float32x4_t depth = vmulq_n_f32(vld1q_f32(log_shares + i), -float(kOrderBucketsPerNat));
    depth = vminq_f32(vmaxq_f32(depth, vdupq_n_f32(0.0f)), vdupq_n_f32(float(kNumOrderBuckets - 1)));
    vst1q_s32(buckets + i, vcvtq_s32_f32(depth));
  }
#else
  for (int i = 0; i < 16; ++i) buckets[i] = order_bucket(log_shares[i]);
#endif
}

// out[i] = blocks[id / 16][head][id % 16] for the ids of count clusters; blocks [blocks][num_heads][16].
inline void gather_lanes(const float* blocks, int num_heads, int head, const int32_t* ids, int count, float* out) {
  const float* lanes = blocks + head * 16;
  int i = 0;
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  for (; i + 16 <= count; i += 16) {
    const __m512i id = _mm512_loadu_si512(ids + i), first_of_block = _mm512_andnot_si512(_mm512_set1_epi32(15), id);
    const __m512i at = _mm512_add_epi32(id, _mm512_mullo_epi32(first_of_block, _mm512_set1_epi32(num_heads - 1)));
    _mm512_storeu_ps(out + i, _mm512_i32gather_ps(at, lanes, 4));
  }
#endif
  for (; i < count; ++i) out[i] = lanes[int64_t(ids[i] / 16) * num_heads * 16 + ids[i] % 16];
}

}  // namespace quorum::simd
