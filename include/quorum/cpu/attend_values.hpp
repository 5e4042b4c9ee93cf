// Last stage: values of the chosen tokens by their exact weights, the rest through the value means of its clusters, and the division.
#pragma once

#include <bit>

#include "quorum/cpu/sample_rest.hpp"

namespace quorum::cpu {

// Bucket of a cluster's share of the rest in (0, 1]: 16 an octave; 0 holds the largest.
inline int share_bucket(float share) {
  constexpr uint32_t kOne = 0x3f800000u;
  const uint32_t bits = std::bit_cast<uint32_t>(std::min(share, 1.0f));
  return std::min(int((kOne - bits) >> 19), kNumShareBuckets - 1);
}

// The largest bucket that must be used so that clusters of buckets [0, cut] hold kTailCoverage of the shares. One barrier inside.
inline int cover_tail(const HeadTask& task, const ReadState& state) {
  const int count = state.num_clusters - state.stop;
  float* histogram = task.own().share_histogram;
  std::fill_n(histogram, kNumShareBuckets, 0.0f);
  for (int i = task.team.first(count); i < task.team.last(count); ++i) {
    const float share = task.shared->share[state.stop + i];
    histogram[share_bucket(share)] += share;
  }
  task.team.sync();
  double total = 0.0;
  for (int w = 0; w < task.team.num_workers; ++w) total += task.workers[w].share_sum;
  double covered = 0.0;
  for (int bucket = 0; bucket < kNumShareBuckets; ++bucket) {
    for (int w = 0; w < task.team.num_workers; ++w) covered += double(task.workers[w].share_histogram[bucket]);
    if (covered >= double(kTailCoverage) * total) return bucket;
  }
  return kNumShareBuckets - 1;
}

// Adds a tile of value means, int8 or f32, by the weights in own().tile.
inline void accumulate_value_means(const HeadTask& task, const RowPointers& rows, bool int8) {
  const RowTile tile{rows.rows, nullptr, rows.count, 0, task.head_dim()};
  const HeadRows weights = task.own().tile, out = task.own().accumulated;
  for (int g = 0; g < task.num_heads; ++g) {
    if (int8)
      simd::accumulate_tile<int8_t, 1>(tile, weights.row(g), weights.stride, out.row(g), out.stride);
    else
      simd::accumulate_tile<float, 1>(tile, weights.row(g), weights.stride, out.row(g), out.stride);
  }
}

// The unread rest by value means (algorithm.md eq. 11). amount[g]: weight it stands for. Post: amount_used[g] is what really entered.
// Returns the number of value means read by the whole team.
inline int attend_tail(const HeadTask& task, const ClusterHeadView& head, const ReadState& state, const double* amount,
                       double* amount_used) {
  const int count = state.num_clusters - state.stop, cut = cover_tail(task, state), d = task.head_dim();
  const int first = state.stop + task.team.first(count), last = state.stop + task.team.last(count);
  double used[kMaxGroupSize] = {};
  int clusters = 0;
  for (int position = first; position < last; ++position) {
    if (share_bucket(task.shared->share[position]) > cut) continue;
    for (int g = 0; g < task.num_heads; ++g) used[g] += double(task.shared->ordered[int64_t(position) * task.num_heads + g]);
    ++clusters;
  }
  std::copy_n(used, task.num_heads, task.own().estimate);
  task.own().size_sum = clusters;
  task.team.sync();
  int total_clusters = 0;
  std::fill_n(used, task.num_heads, 0.0);
  for (int w = 0; w < task.team.num_workers; ++w) {
    for (int g = 0; g < task.num_heads; ++g) used[g] += task.workers[w].estimate[g];
    total_clusters += int(task.workers[w].size_sum);
  }
  float scale[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) {
    scale[g] = float(tail_scale(amount[g], used[g]));
    amount_used[g] = used[g] > 0.0 ? amount[g] : 0.0;
  }
  const bool int8 = head.segments[0].value_means != nullptr;
  RowPointers rows;
  for (int position = first; position < last; ++position) {
    if (share_bucket(task.shared->share[position]) > cut) continue;
    const ClusterRef cluster = cluster_at(head, task.shared->cluster[position]);
    const SegmentView& segment = *cluster.segment;
    const float value_scale = int8 ? segment.value_mean_scale[cluster.local] : 1.0f;
    rows.rows[rows.count] = int8 ? reinterpret_cast<const std::byte*>(segment.value_means + int64_t(cluster.local) * d)
                                 : reinterpret_cast<const std::byte*>(segment.value_means_f32 + int64_t(cluster.local) * d);
    for (int byte = 0; byte < (int8 ? d : 4 * d); byte += 64) simd::prefetch(rows.rows[rows.count] + byte);
    for (int g = 0; g < task.num_heads; ++g)
      task.own().tile.row(g)[rows.count] = task.shared->ordered[int64_t(position) * task.num_heads + g] * scale[g] * value_scale;
    if (++rows.count == kTileRows) {
      accumulate_value_means(task, rows, int8);
      rows.count = 0;
    }
  }
  if (rows.count > 0) accumulate_value_means(task, rows, int8);
  return total_clusters;
}

// Values of list entries [first, last) by shared.weights into own().accumulated.
inline void attend_listed_values(const HeadTask& task, int first, int last) {
  const int rows = tile_rows(task.head_dim(), task.kv.type);
  RowPointers tiles[2];
  const auto point = [&](RowPointers& tile, int begin) {
    tile.count = std::clamp(last - begin, 0, rows);
    for (int i = 0; i < tile.count; ++i) tile.rows[i] = task.kv.value_row(task.shared->tokens[begin + i], task.kv_head);
  };
  point(tiles[0], first);
  for (int begin = first, current = 0; begin < last; begin += rows, current ^= 1) {
    point(tiles[current ^ 1], begin + rows);
    const HeadRows weights{task.shared->weights.data + begin, task.shared->weights.stride};
    task.kernels.accumulate({tiles[current].rows, tiles[current ^ 1].rows, tiles[current].count, tiles[current ^ 1].count, task.head_dim()},
                            weights, task.own().accumulated);
  }
}

// Output and lse of every head from the team's accumulators. total[g]: weight of everything that entered, in units of exp(reference).
inline void finish_output(const HeadTask& task, const ReadState& state, const double* total, const AttentionOutput& out) {
  task.team.sync();
  const int first = task.team.first(task.head_dim()), last = task.team.last(task.head_dim());
  for (int g = 0; g < task.num_heads; ++g) {
    float* output = out.row(*task.shape, task.sequence, task.first_qo_head + g);
    const float factor = float(1.0 / total[g]);
    for (int c = first; c < last; ++c) {
      float sum = 0.0f;
      for (int w = 0; w < task.team.num_workers; ++w) sum += task.workers[w].accumulated.row(g)[c];
      output[c] = sum * factor;
    }
    if (task.team.leads()) out.set_lse(*task.shape, task.sequence, task.first_qo_head + g, state.reference[g] + float(std::log(total[g])));
  }
}

}  // namespace quorum::cpu
