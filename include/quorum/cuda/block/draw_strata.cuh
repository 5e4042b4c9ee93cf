// A stratified sample from a distribution over clusters by one block: a thread a stratum (algorithm.md eq. 8 and 9).
#pragma once

#include "quorum/core/certificate.hpp"
#include "quorum/core/sample_points.hpp"
#include "quorum/cuda/block/block_scan.cuh"

namespace quorum::cuda {

// Unit of probabilities: they are integers, so that the strata meet without gaps.
inline constexpr float kDrawUnit = 0x1p40f;

// Probabilities by draw_rule(), in steps.
struct DrawSteps {
  float per_share, per_token;

  __device__ __forceinline__ explicit DrawSteps(const DrawRule& rule)
      : per_share(float(rule.per_share) * kDrawUnit), per_token(float(rule.per_token) * kDrawUnit) {}
  __device__ __forceinline__ unsigned long long of(float share, float tokens) const {
    return static_cast<unsigned long long>(share * per_share + tokens * per_token);
  }
};

template <int kThreads>
struct DrawShared {
  unsigned long long start[kThreads];
  unsigned long long warp_sums[kThreads / kWarpSize];
};

// Calls take(stratum, cluster, its probability, how far into it the point lies, [0, 1)) for every stratum, in the stratum's thread.
// [first, last): the thread's clusters, runs of `run` in the order of threads. steps_of(cluster): its probability in any unit. Returns the
// number of draws, 0 if there is nothing to draw from. By the whole block; ends with a barrier.
template <int kThreads, class StepsOf, class Take>
__device__ __forceinline__ int draw_strata(int first, int last, int run, const SamplePoints& points, DrawShared<kThreads>& s,
                                           StepsOf&& steps_of, Take&& take) {
  unsigned long long own = 0, total = 0;
#pragma unroll 1
  for (int cluster = first; cluster < last; ++cluster) own += steps_of(cluster);
  s.start[threadIdx.x] = block_exclusive_sum<kThreads>(own, total, s.warp_sums);
  __syncthreads();
  const int num_draws = total == 0 ? 0 : points.num_samples, stratum = int(threadIdx.x);
  if (stratum < num_draws) {
    const auto point = static_cast<unsigned long long>(points.point(stratum) * double(total));
    int low = 0;  // the last thread whose clusters begin at or before the point
#pragma unroll 1
    for (int high = kThreads - 1; low < high;) {
      const int middle = (low + high + 1) / 2;
      if (s.start[middle] <= point)
        low = middle;
      else
        high = middle - 1;
    }
    int cluster = low * run;
    unsigned long long begin = s.start[low], steps = steps_of(cluster);
#pragma unroll 1
    while (begin + steps <= point) {
      begin += steps;
      steps = steps_of(++cluster);
    }
    take(stratum, cluster, float(steps) / float(total), float(point - begin) / float(steps));
  }
  __syncthreads();
  return num_draws;
}

}  // namespace quorum::cuda
