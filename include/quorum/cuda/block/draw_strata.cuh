// A stratified sample from a distribution over clusters by a team of blocks: a thread a stratum, in the block that has its cluster
// (algorithm.md eq. 8 and 9).
#pragma once

#include "quorum/core/certificate.hpp"
#include "quorum/core/sample_points.hpp"
#include "quorum/cuda/block/block_scan.cuh"
#include "quorum/cuda/block/block_team.cuh"

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
  unsigned long long start[kThreads];  // within the block
  unsigned long long of_block[kMaxTeamBlocks];
  unsigned long long warp_sums[kThreads / kWarpSize];
};

// Calls take(stratum, cluster, its probability, how far into it the point lies, [0, 1)) for every stratum, in the stratum's thread.
// steps_of(cluster): the probability of a cluster of the block in any unit. Returns the number of draws, 0 if there is nothing to draw
// from. By all blocks of the team; ends with a barrier of each.
template <int kThreads, class StepsOf, class Take>
__device__ __forceinline__ int draw_strata(const ClusterRuns& runs, const SamplePoints& points, DrawShared<kThreads>& s, StepsOf&& steps_of,
                                           Take&& take) {
  unsigned long long own = 0, of_block = 0, total = 0;
#pragma unroll 1
  for (int cluster = runs.first; cluster < runs.last; ++cluster) own += steps_of(cluster);
  s.start[threadIdx.x] = block_exclusive_sum<kThreads>(own, of_block, s.warp_sums);
  const unsigned long long before = runs.team.exclusive_sum(of_block, total, s.of_block);
  __syncthreads();
  const int num_draws = total == 0 ? 0 : points.num_samples, stratum = int(threadIdx.x);
  const auto of_all = stratum < num_draws ? static_cast<unsigned long long>(points.point(stratum) * double(total)) : 0ull;
  if (stratum < num_draws && of_all >= before && of_all - before < of_block) {
    const unsigned long long point = of_all - before;
    int low = 0;  // the last thread whose clusters begin at or before the point
#pragma unroll 1
    for (int high = kThreads - 1; low < high;) {
      const int middle = (low + high + 1) / 2;
      if (s.start[middle] <= point)
        low = middle;
      else
        high = middle - 1;
    }
    int cluster = runs.block_begin + low * runs.run;
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
