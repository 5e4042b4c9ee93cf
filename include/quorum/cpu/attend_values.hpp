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

// Expected weights of the worker's clusters that the tail uses; the sums and the count are published. One barrier inside.
// Returns the number of clusters of the whole team; used[g]: their weight.
inline int sum_used_clusters(const HeadTask& task, const ClusterHeadView& head, const ReadState& state, int cut, double* used) {
  const int count = state.num_clusters - state.stop;
  const int first = state.stop + task.team.first(count), last = state.stop + task.team.last(count);
  std::fill_n(task.own().estimate, task.num_heads, 0.0);
  int clusters = 0;
  for (int position = first; position < last; ++position) {
    if (share_bucket(task.shared->share[position]) > cut) continue;
    for (int g = 0; g < task.num_heads; ++g) task.own().estimate[g] += double(task.shared->ordered.row(g)[position]);
    const ClusterRef cluster = cluster_at(head, task.shared->cluster[position]);
    simd::prefetch(cluster.segment->value_mean_scale + cluster.local);
    ++clusters;
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

// Value means on their way into the worker's accumulators: filled cluster by cluster, added a tile at a time.
template <class Element>
class ValueMeanTile {
 public:
  explicit ValueMeanTile(const HeadTask& task) : task_(task) {}
  ~ValueMeanTile() { add(); }
  ValueMeanTile(const ValueMeanTile&) = delete;
  ValueMeanTile& operator=(const ValueMeanTile&) = delete;

  // weight_of(g): weight of the row for head g.
  template <class WeightOf>
  void push(const Element* row, WeightOf&& weight_of) {
    rows_.rows[rows_.count] = reinterpret_cast<const std::byte*>(row);
    for (int c = 0; c < task_.head_dim(); c += 64 / int(sizeof(Element))) simd::prefetch(row + c);
    for (int g = 0; g < task_.num_heads; ++g) task_.own().tile.row(g)[rows_.count] = weight_of(g);
    if (++rows_.count == kTileRows) add();
  }

 private:
  void add() {
    const HeadRows weights = task_.own().tile, out = task_.own().accumulated;
    const RowTile tile{rows_.rows, nullptr, rows_.count, 0, task_.head_dim()};
    if (rows_.count > 0)
      simd::for_head_blocks(task_.num_heads, [&](auto heads, int head) {
        simd::accumulate_tile<Element, heads()>(tile, weights.row(head), weights.stride, out.row(head), out.stride);
      });
    rows_.count = 0;
  }

  const HeadTask& task_;
  RowPointers rows_;
};

// The unread rest by value means (algorithm.md eq. 12). amount[g]: weight it stands for. Post: amount_used[g] is what really entered.
// Returns the number of value means read by the whole team.
inline int attend_tail(const HeadTask& task, const ClusterHeadView& head, const ReadState& state, const double* amount,
                       double* amount_used) {
  const int count = state.num_clusters - state.stop, cut = cover_tail(task, state), d = task.head_dim();
  double used[kMaxGroupSize];
  const int clusters = sum_used_clusters(task, head, state, cut, used);
  float scale[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) {
    scale[g] = float(tail_scale(amount[g], used[g]));
    amount_used[g] = used[g] > 0.0 ? amount[g] : 0.0;
  }
  ValueMeanTile<int8_t> int8_tile(task);
  ValueMeanTile<float> f32_tile(task);
  for (int position = state.stop + task.team.first(count); position < state.stop + task.team.last(count); ++position) {
    if (share_bucket(task.shared->share[position]) > cut) continue;
    const ClusterRef cluster = cluster_at(head, task.shared->cluster[position]);
    const SegmentView& segment = *cluster.segment;
    const int64_t row = int64_t(cluster.local) * d;
    const auto weight = [&](int g) { return task.shared->ordered.row(g)[position] * scale[g]; };
    if (segment.value_means != nullptr)
      int8_tile.push(segment.value_means + row, [&](int g) { return weight(g) * segment.value_mean_scale[cluster.local]; });
    else
      f32_tile.push(segment.value_means_f32 + row, weight);
  }
  return clusters;
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
