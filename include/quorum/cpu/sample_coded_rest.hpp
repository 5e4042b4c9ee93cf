// The sample of what reading by codes has left: tokens of candidates by their coded weights, tokens of other clusters by estimate
// (algorithm.md eq. 8, 9 and 16).
#pragma once

#include "quorum/cpu/read_tokens.hpp"
#include "quorum/cpu/sample_rest.hpp"

namespace quorum::cpu {

// Unread tokens of one scan block, and their shares by the lower ends of their buckets.
struct UnreadLanes {
  float share = 0.0f;
  uint32_t lanes = 0;
};
inline UnreadLanes unread_lanes(const HeadTask& task, const CodedState& coded, int block, int num_tokens) {
  const uint16_t* buckets = task.shared->token_bucket + int64_t(block) * kCodeBlock;
  UnreadLanes unread{0.0f, ((1u << num_tokens) - 1) & ~simd::lanes_up_to(buckets, coded.listed.bucket)};
  if (task.filters_clusters) unread.lanes &= simd::lanes_up_to(buckets, kHiddenBucket - 1);
  for (int lane = 0; lane < kCodeBlock; ++lane) unread.share += (unread.lanes >> lane & 1) != 0 ? bucket_key(buckets[lane]) : 0.0f;
  return unread;
}

// Calls visit(candidate, scan block, its number of tokens) for the worker's part of the candidates.
template <class Visit>
void for_each_scan_block(const HeadTask& task, const ClusterHeadView& head, const CodedState& coded, Visit&& visit) {
  const CandidateRange own = candidate_range(task, coded.candidates);
  for (int candidate = own.first; candidate < own.last; ++candidate) {
    int left = cluster_at(head, task.shared->cluster[candidate]).size();
    for (int block = task.shared->first_block[candidate]; block < task.shared->first_block[candidate + 1]; ++block, left -= kCodeBlock)
      visit(candidate, block, std::min(left, kCodeBlock));
  }
}

// Publishes the sums of shares and tokens of the worker's scan blocks and of its clusters that are no candidates. One barrier at the end.
inline void share_coded_rest(const HeadTask& task, const ClusterHeadView& head, const CodedState& coded) {
  WorkerScratch& own = task.own();
  own.share_sum = own.size_sum = own.outside_share_sum = own.outside_size_sum = 0.0;
  for_each_scan_block(task, head, coded, [&](int, int block, int num_tokens) {
    const UnreadLanes unread = unread_lanes(task, coded, block, num_tokens);
    own.share_sum += double(unread.share);
    own.size_sum += std::popcount(unread.lanes);
  });
  for_each_cluster(task, head, [&](int cluster, float size) {
    if (is_candidate(task, coded, cluster)) return;
    own.outside_share_sum += double(task.shared->share[cluster] * size);
    own.outside_size_sum += double(size);
  });
  task.team.sync();
}

// The draws that fall into the worker's parts: scan blocks of all workers come first, then the other clusters.
inline int draw_coded_tokens(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, const CodedState& coded,
                             const ReadState& state, Draw* draws) {
  ClusterRef drawn[kMaxSamples];
  double share_sum = 0.0, size_sum = 0.0;
  for (int w = 0; w < task.team.num_workers; ++w) {
    share_sum += task.workers[w].share_sum + task.workers[w].outside_share_sum;
    size_sum += task.workers[w].size_sum + task.workers[w].outside_size_sum;
  }
  const DrawRule rule = draw_rule(share_sum, size_sum);
  const auto probability = [&](const WorkerScratch& w, bool outside) {
    return outside ? rule.probability(w.outside_share_sum, w.outside_size_sum) : rule.probability(w.share_sum, w.size_sum);
  };
  double before[2] = {};
  for (int w = 0; w < task.team.num_workers; ++w) {
    if (w < task.team.worker) before[0] += probability(task.workers[w], false);
    before[1] += probability(task.workers[w], false);
  }
  for (int w = 0; w < task.team.worker; ++w) before[1] += probability(task.workers[w], true);
  const SamplePoints points = sample_points(task, options, state);
  int num_draws = 0;
  const auto take = [&](ClusterRef cluster, int place, double scale, int stratum) {
    drawn[num_draws] = cluster;
    draws[num_draws++] = {place, float(scale / points.num_samples), stratum};
  };
  {
    StratumCursor cursor(points, before[0]);
    double cumulative = before[0];
    const double after = before[0] + probability(task.own(), false);
    for_each_scan_block(task, head, coded, [&](int candidate, int block, int num_tokens) {
      if (cursor.done()) return;
      UnreadLanes unread = unread_lanes(task, coded, block, num_tokens);
      const double of_block = rule.probability(double(unread.share), std::popcount(unread.lanes));
      if (cursor.next() >= std::min(cumulative + of_block, after)) {
        cumulative += of_block;
        return;
      }
      const int first_place = (block - task.shared->first_block[candidate]) * kCodeBlock;
      for (; unread.lanes != 0; unread.lanes &= unread.lanes - 1) {
        const int lane = std::countr_zero(unread.lanes);
        const double own = rule.probability(double(bucket_key(task.shared->token_bucket[int64_t(block) * kCodeBlock + lane])), 1.0);
        cumulative += own;
        cursor.advance(std::min(cumulative, after), [&](int stratum) {
          take(cluster_at(head, task.shared->cluster[candidate]), first_place + lane, 1.0 / own, stratum);
        });
      }
    });
  }
  {
    StratumCursor cursor(points, before[1]);
    double cumulative = before[1];
    const double after = before[1] + probability(task.own(), true);
    for_each_cluster(task, head, [&](int cluster, float size) {
      if (cursor.done() || size <= 0.0f || is_candidate(task, coded, cluster)) return;
      const double own = rule.probability(double(task.shared->share[cluster] * size), double(size));
      cumulative += own;
      cursor.advance(std::min(cumulative, after), [&](int stratum) {
        const ClusterRef ref = cluster_at(head, cluster);
        take(ref, place_of_visible(task, ref, points.token_of(stratum, int(size))), double(size) / own, stratum);
      });
    });
  }
  resolve_draws(task, drawn, draws, num_draws);
  return num_draws;
}

// Samples the rest once. Post: `rest[g]` holds the sampled weight of what is unread, in the units of the state.
// Cost: num_samples keys for the group, and two passes over the candidates' keys. Every worker gets the same result.
inline void sample_coded_rest(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, const CodedState& coded,
                              ReadState& state, SampledRest* rest) {
  Draw draws[kMaxSamples];
  if (task.team.leads())  // rounding of the cumulative sums may leave a stratum out, once in a very long while
    for (int g = 0; g < task.num_heads; ++g) std::fill_n(task.shared->contributions.row(g), samples_per_round(options), 0.0f);
  share_coded_rest(task, head, coded);
  const int num_draws = draw_coded_tokens(task, head, options, coded, state, draws);
  weigh_draws(task, options, draws, num_draws, state, rest);
}

}  // namespace quorum::cpu
