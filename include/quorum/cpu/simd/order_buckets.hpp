// Buckets of the reading order for a block of 16 clusters at once.
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
#else
  for (int i = 0; i < 16; ++i) buckets[i] = order_bucket(log_shares[i]);
#endif
}

}  // namespace quorum::simd
