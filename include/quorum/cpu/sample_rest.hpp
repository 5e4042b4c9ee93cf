// Fourth stage: a stratified sample of the unread rest measures its weight and the error of that (algorithm.md eq. 8 and 9).
#pragma once

#include "quorum/core/certificate.hpp"
#include "quorum/core/sample_points.hpp"
#include "quorum/cpu/read_keys.hpp"

namespace quorum::cpu {

// Share of the rest of every unread cluster, largest over the heads, for the worker's part of the positions; sums are published.
// Post: after the barrier inside, every worker's share_sum and size_sum and shared.share are there.
inline void share_rest(const HeadTask& task, const ReadState& state) {
  using simd::Vector;
  const int count = state.num_clusters - state.stop;
  const int first = state.stop + task.team.first(count), last = state.stop + task.team.last(count);
  float* share = task.shared->share;
  for (int g = 0; g < task.num_heads; ++g) {
    const float inverse_rest = state.rest[g] > 0.0 ? float(1.0 / state.rest[g]) : 0.0f;
    const float* ordered = task.shared->ordered.row(g);
    int i = first;
    for (; i + simd::kVectorSize <= last; i += simd::kVectorSize) {
      const Vector own = simd::load(ordered + i) * Vector(inverse_rest);
      simd::store(share + i, g == 0 ? own : simd::maximum(own, simd::load(share + i)));
    }
    for (; i < last; ++i) share[i] = g == 0 ? ordered[i] * inverse_rest : std::max(share[i], ordered[i] * inverse_rest);
  }
  double share_sum = 0.0, size_sum = 0.0;
  for (int i = first; i < last; ++i) {
    share_sum += double(share[i]);
    size_sum += double(task.shared->size[i]);
  }
  task.own().share_sum = share_sum;
  task.own().size_sum = size_sum;
  task.team.sync();
}

// One drawn token, how many tokens it stands for, and of which stratum it is.
struct Draw {
  int32_t token;
  float scale;
  int stratum;
};

inline SamplePoints sample_points(const HeadTask& task, const DecodeOptions& options, const ReadState& state) {
  return SamplePoints::of(options.seed, task.first_qo_head, task.filter.end, state.num_sampled, samples_per_round(options));
}

inline constexpr int kMaxSamples = 256;

// The place among a cluster's tokens of the one that `rank` others that the task sees come before.
inline int place_of_visible(const HeadTask& task, ClusterRef cluster, int rank) {
  if (!task.filters_clusters) return rank;
  const int32_t* tokens = cluster.tokens();
  int place = 0;
  while (!task.filter.passes(tokens[place]) || rank-- > 0) ++place;
  return place;
}

// From places within clusters to tokens of the sequence. Each step asks for what the next one needs: where a cluster's tokens begin,
// which token is meant, its key. One after the other they would be three waits for memory a draw.
inline void resolve_draws(const HeadTask& task, const ClusterRef* drawn, Draw* draws, int num_draws) {
  const int bytes = task.row_bytes();
  for (int i = 0; i < num_draws; ++i) simd::prefetch(drawn[i].tokens() + draws[i].token);
  for (int i = 0; i < num_draws; ++i) {
    draws[i].token = drawn[i].tokens()[draws[i].token];
    prefetch_row(task.kv.key_row(draws[i].token, task.kv_head), bytes);
  }
}

// Goes through the strata of a sample as the cumulative distribution grows.
class StratumCursor {
 public:
  // Stands at the first stratum whose point is not below `before`.
  StratumCursor(const SamplePoints& points, double before) : points_(points) {
    do {
      next_ = stratum_ < points_.num_samples ? points_.point(stratum_) : kBeyondAll;
    } while (next_ < before && ++stratum_ <= points_.num_samples);
  }
  bool done() const { return stratum_ >= points_.num_samples; }
  double next() const { return next_; }
  // Calls draw(stratum) for all strata from here on whose points lie below `limit`.
  template <class Draw>
  void advance(double limit, Draw&& draw) {
    while (!done() && next_ < limit) {
      draw(stratum_);
      next_ = ++stratum_ < points_.num_samples ? points_.point(stratum_) : kBeyondAll;
    }
  }
  // Above every point: the last entry takes what rounding of the cumulative sum would leave over.
  static constexpr double kBeyondAll = 2.0;

 private:
  SamplePoints points_;
  int stratum_ = 0;
  double next_ = 0.0;
};

// The draws that fall into the worker's part of the positions.
inline int draw_tokens(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, const ReadState& state,
                       Draw* draws) {
  const int count = state.num_clusters - state.stop;
  ClusterRef drawn[kMaxSamples];
  double share_sum = 0.0, size_sum = 0.0, before = 0.0;
  for (int w = 0; w < task.team.num_workers; ++w) {
    share_sum += task.workers[w].share_sum;
    size_sum += task.workers[w].size_sum;
  }
  const DrawRule rule = draw_rule(share_sum, size_sum);
  for (int w = 0; w < task.team.worker; ++w) before += rule.probability(task.workers[w].share_sum, task.workers[w].size_sum);
  const double after = before + rule.probability(task.own().share_sum, task.own().size_sum);
  const SamplePoints points = sample_points(task, options, state);
  StratumCursor cursor(points, before);
  const int last = state.stop + task.team.last(count);
  const bool takes_all = task.team.worker == task.team.num_workers - 1;
  double cumulative = before;
  int num_draws = 0;
  for (int position = state.stop + task.team.first(count); position < last && !cursor.done(); ++position) {
    const int size = task.shared->size[position];
    const double probability = rule.probability(double(task.shared->share[position]), double(size));
    cumulative += probability;
    cursor.advance(position + 1 < last ? cumulative
                   : takes_all         ? StratumCursor::kBeyondAll
                                       : after,
                   [&](int stratum) {
                     const ClusterRef cluster = cluster_at(head, task.shared->cluster[position]);
                     simd::prefetch(cluster.segment->cluster_indptr + cluster.local);
                     drawn[num_draws] = cluster;
                     const int place = place_of_visible(task, cluster, points.token_of(stratum, size));
                     draws[num_draws++] = {place, float(double(size) / (probability * points.num_samples)), stratum};
                   });
  }
  resolve_draws(task, drawn, draws, num_draws);
  return num_draws;
}

// Exact weights of the worker's draws, and the sampled sum of all workers' draws.
// Post: every worker has the same rest[g], in the units of the state; one barrier inside.
inline void weigh_draws(const HeadTask& task, const DecodeOptions& options, const Draw* draws, int num_draws, ReadState& state,
                        SampledRest* rest) {
  for (int begin = 0; begin < num_draws; begin += kTileRows) {
    RowPointers keys;
    keys.count = std::min(kTileRows, num_draws - begin);
    for (int i = 0; i < keys.count; ++i) keys.rows[i] = task.kv.key_row(draws[begin + i].token, task.kv_head);
    task.kernels.score({keys.rows, nullptr, keys.count, 0, task.head_dim(), task.key_scale()}, task.own().queries, task.own().tile);
    adjust_scores(task, task.own().tile, keys.count, [&](int i) { return draws[begin + i].token; });
    for (int g = 0; g < task.num_heads; ++g) {
      weigh_scores(task.own().tile.row(g), keys.count, state.reference[g]);
      for (int i = 0; i < keys.count; ++i)
        task.shared->contributions.row(g)[draws[begin + i].stratum] = task.own().tile.row(g)[i] * draws[begin + i].scale;
    }
  }
  task.team.sync();
  for (int g = 0; g < task.num_heads; ++g) {
    StratifiedSum sum;
    for (int i = 0; i < samples_per_round(options); ++i) sum.add(task.shared->contributions.row(g)[i]);
    rest[g] = sum.result();
  }
  state.num_sampled += samples_per_round(options);
}

// Samples the rest once. Post: `rest[g]` holds the sampled weight of what is unread, in the units of the state.
// Cost: num_samples keys for the group, and one pass over the unread clusters' estimates. Every worker gets the same result.
inline void sample_rest(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, ReadState& state,
                        SampledRest* rest) {
  Draw draws[kMaxSamples];
  weigh_draws(task, options, draws, draw_tokens(task, head, options, state, draws), state, rest);
}

}  // namespace quorum::cpu
