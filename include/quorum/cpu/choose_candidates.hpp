// Second stage where the index has residual codes: the clusters whose tokens are looked at one by one (algorithm.md eq. 14).
#pragma once

#include "quorum/cpu/score_clusters.hpp"
#include "quorum/cpu/threshold.hpp"

namespace quorum::cpu {

// Keys of clusters of blocks [first, last), and their histogram: expected weight of a token as a share of the head's total, largest over
// the heads.
inline void fill_cluster_keys(const HeadTask& task, const ClusterHeadView& head, const float* inverse_total, int first, int last) {
  using simd::Vector;
  clear(task.own().cluster_keys, task.num_heads);
  for (int block = first; block < last; ++block) {
    const ClusterRef first_of_block = cluster_at(head, block * kClusterBlock);
    const SegmentView& segment = *first_of_block.segment;
    const int local = first_of_block.local;
    const float* size = visible_sizes(task, head, block);
    simd::prefetch(segment.code_indptr + local);  // of candidates; all together it is little, one by one each would be waited for
    simd::prefetch(segment.cluster_indptr + local);
    if (segment.value_mean_scale != nullptr) simd::prefetch(segment.value_mean_scale + local);
    float* keys = task.shared->share + block * kClusterBlock;
    const float* estimates = task.shared->estimate + int64_t(block) * task.num_heads * kClusterBlock;
    for (int lane = 0; lane < kClusterBlock; lane += simd::kVectorSize) {
      Vector largest(0.0f);
      for (int g = 0; g < task.num_heads; ++g) {
        const float* estimate = estimates + g * kClusterBlock;
        largest = simd::maximum(simd::load(estimate + lane) * Vector(inverse_total[g]), largest);
      }
      const Vector tokens = simd::load(size + lane);
      simd::store(keys + lane, simd::where_positive(tokens, largest / simd::maximum(tokens, Vector(1.0f)), Vector(0.0f)));
    }
  }
  for (int block = first; block < last; ++block) {
    uint16_t buckets[kClusterBlock];
    simd::key_buckets(task.shared->share + block * kClusterBlock, buckets);
    const float* estimates = task.shared->estimate + int64_t(block) * task.num_heads * kClusterBlock;
    add_block(task.own().cluster_keys, task.num_heads, buckets, estimates, kClusterBlock);
  }
}

// Calls visit(cluster, its visible size) for all slots of the worker's part of the clusters.
template <class Visit>
void for_each_cluster(const HeadTask& task, const ClusterHeadView& head, Visit&& visit) {
  for (int block = task.team.first(head.num_blocks()); block < task.team.last(head.num_blocks()); ++block) {
    const float* size = visible_sizes(task, head, block);
    for (int lane = 0; lane < kClusterBlock; ++lane) visit(block * kClusterBlock + lane, size[lane]);
  }
}

// The worker's list of clusters outside the candidates that enter the output, own().num_outside of them.
inline int32_t* own_outside(const HeadTask& task, const ClusterHeadView& head) {
  return task.shared->size + task.team.first(head.num_blocks()) * kClusterBlock;
}

// Lists the clusters with a key of at least `threshold` as candidates, and for every worker its others down to outside_key. Two barriers.
// Post: shared.cluster and shared.first_block [candidates + 1], in the order of cluster ids; own_outside().
inline CandidateCounts list_candidates(const HeadTask& task, const ClusterHeadView& head, float threshold, float outside_key) {
  const HeadScratch& shared = *task.shared;
  int32_t* outside = own_outside(task, head);
  int num_outside = 0;
  int32_t* own = shared.bucket + task.team.first(head.num_blocks()) * kClusterBlock;
  CandidateCounts counts, before, total;
  for (int block = task.team.first(head.num_blocks()); block < task.team.last(head.num_blocks()); ++block) {
    const float *size = visible_sizes(task, head, block), *stored = block_sizes(head, block), *keys = shared.share + block * kClusterBlock;
    const uint32_t chosen = simd::lanes_at_least(keys, threshold), others = simd::lanes_at_least(keys, outside_key) & ~chosen;
    for (uint32_t lanes = chosen; lanes != 0; lanes &= lanes - 1) {
      const int lane = std::countr_zero(lanes);
      counts.tokens += int(size[lane]);
      counts.blocks += num_code_blocks(int(stored[lane]));
    }
    counts.clusters += simd::list_lanes(chosen, block * kClusterBlock, own + counts.clusters);
    num_outside += simd::list_lanes(others, block * kClusterBlock, outside + num_outside);
  }
  task.own().num_outside = num_outside;
  task.own().candidates = counts;
  task.team.sync();
  for (int w = 0; w < task.team.num_workers; ++w) {
    if (w == task.team.worker) before = total;
    total.clusters += task.workers[w].candidates.clusters;
    total.tokens += task.workers[w].candidates.tokens;
    total.blocks += task.workers[w].candidates.blocks;
  }
  for (int i = 0; i < counts.clusters; ++i) {
    shared.cluster[before.clusters + i] = own[i];
    shared.first_block[before.clusters + i] = before.blocks;
    before.blocks += num_code_blocks(cluster_at(head, own[i]).size());
  }
  if (task.team.leads()) shared.first_block[total.clusters] = total.blocks;
  task.team.sync();
  return total;
}

}  // namespace quorum::cpu
