// Second stage: the order in which clusters are read, by a counting sort over buckets of log share (algorithm.md eq. 6).
#pragma once

#include "quorum/cpu/score_clusters.hpp"
#include "quorum/cpu/simd/order_buckets.hpp"

namespace quorum::cpu {

inline constexpr int32_t kEmptyCluster = -1;

// Bucket of every cluster of blocks [first, last) and the worker's histogram of them. log_total[g]: log of head g's total weight.
inline void fill_buckets(const HeadTask& task, const ClusterHeadView& head, const float* log_total, int first, int last) {
  using simd::Vector;
  int32_t* histogram = task.own().histogram;
  std::fill_n(histogram, kNumOrderBuckets, 0);
  for (int block = first; block < last; ++block) {
    const float* size = visible_sizes(task, head, block);
    float share[kClusterBlock], buffer[kClusterBlock];
    for (int g = 0; g < task.num_heads; ++g) {
      const float* log_weight = capped_log_weights(task, block, g, buffer);
      for (int lane = 0; lane < kClusterBlock; lane += simd::kVectorSize) {
        const Vector largest = g == 0 ? Vector(-kInfinity) : simd::load(share + lane);
        simd::store(share + lane, simd::maximum(simd::load(log_weight + lane) - Vector(log_total[g]), largest));
      }
    }
    int32_t* buckets = task.shared->bucket + block * kClusterBlock;
    simd::order_buckets(share, buckets);
    for (int lane = 0; lane < kClusterBlock; ++lane) {
      if (size[lane] > 0.0f)
        ++histogram[buckets[lane]];
      else
        buckets[lane] = kEmptyCluster;
    }
  }
}

// Turns the worker's histogram into the position of its first cluster in every bucket. Returns the number of clusters of all workers.
// Post: positions are by bucket, then by worker; workers hold ascending ids, so ties go by cluster id.
inline int place_buckets(const HeadTask& task, int32_t* place) {
  int position = 0;
  for (int bucket = 0; bucket < kNumOrderBuckets; ++bucket) {
    for (int w = 0; w < task.team.num_workers; ++w) {
      if (w == task.team.worker) place[bucket] = position;
      position += task.workers[w].histogram[bucket];
    }
  }
  return position;
}

// Writes the clusters of blocks [first, last) to their positions: id and size.
inline void scatter_clusters(const HeadTask& task, const ClusterHeadView& head, int32_t* place, int first, int last) {
  HeadScratch& shared = *task.shared;
  for (int block = first; block < last; ++block) {
    const float* size = visible_sizes(task, head, block);
    for (int lane = 0; lane < kClusterBlock; ++lane) {
      const int32_t bucket = shared.bucket[block * kClusterBlock + lane];
      if (bucket == kEmptyCluster) continue;
      const int position = place[bucket]++;
      shared.cluster[position] = block * kClusterBlock + lane;
      shared.size[position] = int32_t(size[lane]);
    }
  }
}

// Brings the expected weights of positions [first, last) into reading order. Reading at random and writing in order is faster than the
// other way round: a core waits for no load, but holds few stores that miss.
inline void gather_estimates(const HeadTask& task, int first, int last) {
  for (int g = 0; g < task.num_heads; ++g)
    simd::gather_lanes(task.shared->estimate, task.num_heads, g, task.shared->cluster + first, last - first,
                       task.shared->ordered.row(g) + first);
}

}  // namespace quorum::cpu
