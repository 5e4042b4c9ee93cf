// Fourth stage: a stratified sample of the unread rest measures its weight and the error of that (algorithm.md eq. 8-10).
#pragma once

#include "quorum/core/certificate.hpp"
#include "quorum/core/random.hpp"
#include "quorum/cpu/read_keys.hpp"

namespace quorum::cpu {

// Share of the rest of every unread cluster, largest over the heads, for the worker's part of the positions; sums are published.
// Post: after a barrier, every worker's share_sum, size_sum and shared.share are there.
inline void share_rest(const HeadTask& task, const ReadState& state) {
  const int count = state.num_clusters - state.stop;
  const int first = state.stop + task.team.first(count), last = state.stop + task.team.last(count);
  float inverse_rest[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) inverse_rest[g] = state.rest[g] > 0.0 ? float(1.0 / state.rest[g]) : 0.0f;
  double share_sum = 0.0, size_sum = 0.0;
  for (int position = first; position < last; ++position) {
    float share = 0.0f;
    for (int g = 0; g < task.num_heads; ++g)
      share = std::max(share, task.shared->ordered[int64_t(position) * task.num_heads + g] * inverse_rest[g]);
    task.shared->share[position] = share;
    share_sum += double(share);
    size_sum += double(task.shared->size[position]);
  }
  task.own().share_sum = share_sum;
  task.own().size_sum = size_sum;
  task.team.sync();
}

// One drawn token and its importance weight.
struct Draw {
  int32_t token;
  float scale;  // number of tokens it stands for
};

// The draws that fall into the worker's part of the positions: stratum s of n takes one point of [s, s + 1) / n of the cumulative
// distribution. Returns the first stratum and fills draws for it and the following ones.
inline int draw_tokens(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, const ReadState& state, Draw* draws,
                       int& num_draws) {
  const int num_samples = options.num_samples, count = state.num_clusters - state.stop;
  double share_sum = 0.0, size_sum = 0.0, before = 0.0, total = 0.0;
  for (int w = 0; w < task.team.num_workers; ++w) {
    share_sum += task.workers[w].share_sum;
    size_sum += task.workers[w].size_sum;
  }
  const auto part_of = [&](double shares, double sizes) {
    return double(draw_weight(float(shares), float(share_sum), float(sizes), float(size_sum)));
  };
  for (int w = 0; w < task.team.num_workers; ++w) {
    if (w == task.team.worker) before = total;
    total += part_of(task.workers[w].share_sum, task.workers[w].size_sum);
  }
  const double after = before + part_of(task.own().share_sum, task.own().size_sum);
  const uint64_t stream =
      mix_bits(options.seed ^ (uint64_t(task.sequence) << 48) ^ (uint64_t(task.first_qo_head) << 32) ^ uint64_t(task.kv.num_tokens)) +
      uint64_t(state.num_sampled);
  const auto point = [&](int stratum) {
    return (double(stratum) + double(uniform_unit(stream, uint64_t(2 * stratum)))) / double(num_samples) * total;
  };
  int stratum = 0;
  while (stratum < num_samples && point(stratum) < before) ++stratum;
  const int first_stratum = stratum;
  const bool is_last = task.team.worker == task.team.num_workers - 1;
  const int last = state.stop + task.team.last(count);
  double cumulative = before;
  num_draws = 0;
  for (int position = state.stop + task.team.first(count); position < last && stratum < num_samples; ++position) {
    const double weight = part_of(double(task.shared->share[position]), double(task.shared->size[position]));
    cumulative += weight;
    // The last position of a worker takes what rounding of the cumulative sum would leave over.
    const double limit = position + 1 < last ? cumulative : is_last ? 2.0 * total + 1.0 : after;
    for (; stratum < num_samples && point(stratum) < limit; ++stratum) {
      const ClusterRef cluster = cluster_at(head, task.shared->cluster[position]);
      const int size = cluster.num_tokens();
      const int pick = std::min(size - 1, int(uniform_unit(stream, uint64_t(2 * stratum + 1)) * float(size)));
      draws[num_draws++] = {cluster.tokens()[pick], float(double(size) * total / (weight * double(num_samples)))};
    }
  }
  return first_stratum;
}

// Samples the rest once. Post: `rest[g]` holds the sampled weight of what is unread, in the units of the state.
// Cost: num_samples keys for the group, and one pass over the unread clusters' estimates. Every worker gets the same result.
inline void sample_rest(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, ReadState& state,
                        SampledRest* rest) {
  constexpr int kMaxSamples = 256;
  Draw draws[kMaxSamples];
  int num_draws = 0;
  const int first = draw_tokens(task, head, options, state, draws, num_draws);
  for (int begin = 0; begin < num_draws; begin += kTileRows) {
    RowPointers keys;
    keys.count = std::min(kTileRows, num_draws - begin);
    for (int i = 0; i < keys.count; ++i) keys.rows[i] = task.kv.key_row(draws[begin + i].token, task.kv_head);
    task.kernels.score({keys.rows, nullptr, keys.count, 0, task.head_dim()}, task.own().queries, task.own().tile);
    for (int g = 0; g < task.num_heads; ++g) {
      weigh_scores(task.own().tile.row(g), keys.count, state.reference[g]);
      for (int i = 0; i < keys.count; ++i)
        task.shared->contributions.row(g)[first + begin + i] = task.own().tile.row(g)[i] * draws[begin + i].scale;
    }
  }
  task.team.sync();
  for (int g = 0; g < task.num_heads; ++g) {
    StratifiedSum sum;
    for (int i = 0; i < options.num_samples; ++i) sum.add(task.shared->contributions.row(g)[i]);
    rest[g] = sum.result();
  }
  state.num_sampled += options.num_samples;
}

}  // namespace quorum::cpu
