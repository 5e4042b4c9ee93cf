// Last stage: values of the chosen tokens by their exact weights, the rest through the value means of its clusters, and the division.
#pragma once

#include <bit>
#include <type_traits>

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

// Lists the worker's clusters that the tail uses, by position; the sums of their expected weights and the count are published. One barrier
// inside. Returns the number of clusters of the whole team; used[g]: their weight; positions [num_own]: the worker's part of the list.
inline int list_used_clusters(const HeadTask& task, const ClusterHeadView& head, const ReadState& state, int cut, double* used,
                              int32_t* positions, int& num_own) {
  const int count = state.num_clusters - state.stop;
  const int first = state.stop + task.team.first(count), last = state.stop + task.team.last(count);
  int clusters = 0;
  for (int position = first; position < last; ++position) {  // without a branch, which would be a coin toss
    positions[clusters] = position;
    clusters += share_bucket(task.shared->share[position]) <= cut;
  }
  num_own = clusters;
  for (int i = 0; i < clusters; ++i) {
    const ClusterRef cluster = cluster_at(head, task.shared->cluster[positions[i]]);
    if (cluster.segment->value_mean_scale != nullptr) simd::prefetch(cluster.segment->value_mean_scale + cluster.local);
  }
  for (int g = 0; g < task.num_heads; ++g) {
    const float* ordered = task.shared->ordered.row(g);
    double sum = 0.0;
    for (int i = 0; i < clusters; ++i) sum += double(ordered[positions[i]]);
    task.own().estimate[g] = sum;
  }
  task.own().size_sum = clusters;
  task.team.sync();
  std::fill_n(used, task.num_heads, 0.0);
  clusters = 0;
  for (int w = 0; w < task.team.num_workers; ++w) {
    for (int g = 0; g < task.num_heads; ++g) used[g] += task.workers[w].estimate[g];
    clusters += int(task.workers[w].size_sum);
  }
  return clusters;
}

// Value means of `count` clusters into the worker's accumulators, a tile at a time; the rows of the next tile are asked for meanwhile.
// cluster_of(i): the cluster; weight_of(i, g): its weight for a head.
template <class Element, class ClusterOf, class WeightOf>
inline void accumulate_value_mean_rows(const HeadTask& task, int count, ClusterOf&& cluster_of, WeightOf&& weight_of) {
  constexpr bool kInt8 = std::is_same_v<Element, int8_t>;
  const HeadRows weights = task.own().tile, out = task.own().accumulated;
  const int d = task.head_dim();
  const auto row_of = [&](int i) {
    const ClusterRef cluster = cluster_of(i);
    const int64_t at = int64_t(cluster.local) * d;
    if constexpr (kInt8)
      return reinterpret_cast<const std::byte*>(cluster.segment->value_means + at);
    else
      return reinterpret_cast<const std::byte*>(cluster.segment->value_means_f32 + at);
  };
  for_each_tile(0, count, kTileRows, d * int(sizeof(Element)), row_of, [&](int begin, const RowPointers& tile, const RowPointers& next) {
    for (int i = 0; i < tile.count; ++i) {
      const ClusterRef cluster = cluster_of(begin + i);
      const float factor = kInt8 ? cluster.segment->value_mean_scale[cluster.local] : 1.0f;
      for (int g = 0; g < task.num_heads; ++g) weights.row(g)[i] = weight_of(begin + i, g) * factor;
    }
    RowTile rows{tile.rows, next.rows, tile.count, next.count, d};
    simd::for_head_blocks(task.num_heads, [&](auto heads, int first) {
      simd::accumulate_tile<Element, heads()>(rows, weights.row(first), weights.stride, out.row(first), out.stride);
      rows.num_prefetch = 0;
    });
  });
}
template <class ClusterOf, class WeightOf>
inline void accumulate_value_means(const HeadTask& task, const ClusterHeadView& head, int count, ClusterOf&& cluster_of,
                                   WeightOf&& weight_of) {
  if (head.segments[0].value_means != nullptr)
    accumulate_value_mean_rows<int8_t>(task, count, cluster_of, weight_of);
  else
    accumulate_value_mean_rows<float>(task, count, cluster_of, weight_of);
}

// The unread rest by value means (algorithm.md eq. 12). amount[g]: weight it stands for. Post: amount_used[g] is what really entered.
// Returns the number of value means read by the whole team.
inline int attend_tail(const HeadTask& task, const ClusterHeadView& head, const ReadState& state, const double* amount,
                       double* amount_used) {
  const int cut = cover_tail(task, state);
  // The buckets of the reading order have done their work; their array takes the list.
  int32_t* positions = task.shared->bucket + task.team.first(state.num_clusters - state.stop);
  double used[kMaxGroupSize];
  int num_own = 0;
  const int clusters = list_used_clusters(task, head, state, cut, used, positions, num_own);
  float scale[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) {
    scale[g] = float(tail_scale(amount[g], used[g]));
    amount_used[g] = used[g] > 0.0 ? amount[g] : 0.0;
  }
  accumulate_value_means(
      task, head, num_own, [&](int i) { return cluster_at(head, task.shared->cluster[positions[i]]); },
      [&](int i, int g) { return task.shared->ordered.row(g)[positions[i]] * scale[g]; });
  return clusters;
}

inline void clear_accumulated(const HeadTask& task) {
  for (int g = 0; g < task.num_heads; ++g) std::fill_n(task.own().accumulated.row(g), padded_dim(task.head_dim()), 0.0f);
}

// Values of list entries [first, last) by shared.weights into own().accumulated.
inline void attend_listed_values(const HeadTask& task, int first, int last) {
  for_each_tile(
      first, last, tile_rows(task.row_bytes()), task.row_bytes(),
      [&](int i) { return task.kv.value_row(task.shared->tokens[i], task.kv_head); },
      [&](int begin, const RowPointers& tile, const RowPointers& next) {
        const HeadRows weights{task.shared->weights.data + begin, task.shared->weights.stride};
        task.kernels.accumulate({tile.rows, next.rows, tile.count, next.count, task.head_dim(), task.value_scale()}, weights,
                                task.own().accumulated);
      });
}

// Keys and values of list entries [first, last) at once: exact weights, whose sums are added to sum[g], into own().accumulated. Where keys
// need not be known before values are wanted, one pass keeps memory busier than two.
inline void attend_listed(const HeadTask& task, const ReadState& state, int first, int last, double* sum) {
  const HeadRows weights = task.own().tile;
  for_each_tile(
      first, last, tile_rows(task.row_bytes()), task.row_bytes(),
      [&](int i) { return task.kv.key_row(task.shared->tokens[i], task.kv_head); },
      [&](int begin, const RowPointers& keys, const RowPointers& next) {
        RowPointers values;
        values.count = keys.count;
        for (int i = 0; i < keys.count; ++i) values.rows[i] = task.kv.value_row(task.shared->tokens[begin + i], task.kv_head);
        task.kernels.score({keys.rows, values.rows, keys.count, values.count, task.head_dim(), task.key_scale()}, task.own().queries,
                           weights);
        adjust_scores(task, weights, keys.count, [&](int i) { return task.shared->tokens[begin + i]; });
        for (int g = 0; g < task.num_heads; ++g) sum[g] += double(weigh_scores(weights.row(g), keys.count, state.reference[g]));
        task.kernels.accumulate({values.rows, next.rows, values.count, next.count, task.head_dim(), task.value_scale()}, weights,
                                task.own().accumulated);
      });
}

// Output and lse of every head from the team's accumulators, the sinks included. total[g]: weight of everything that entered, in units of
// exp(reference).
inline void finish_output(const HeadTask& task, const ReadState& state, const double* total, const AttentionOutput& out) {
  task.team.sync();
  const int first = task.team.first(task.head_dim()), last = task.team.last(task.head_dim());
  const float* sinks = task.shape->sink_logits;
  for (int g = 0; g < task.num_heads; ++g) {
    float* output = out.row(*task.shape, task.query_row(g), task.qo_head(g));
    const double lse = double(state.reference[g]) + std::log(total[g]);
    const SinkShare share = sinks == nullptr ? SinkShare{1.0, lse} : add_sink(lse, double(sinks[task.qo_head(g)]));
    const float factor = float(share.factor / total[g]);
    for (int c = first; c < last; ++c) {
      float sum = 0.0f;
      for (int w = 0; w < task.team.num_workers; ++w) sum += task.workers[w].accumulated.row(g)[c];
      output[c] = sum * factor;
    }
    if (task.team.leads()) out.set_lse(*task.shape, task.query_row(g), task.qo_head(g), float(share.lse));
  }
}

}  // namespace quorum::cpu
