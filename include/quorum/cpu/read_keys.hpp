// Third stage: keys are read in order and their exact weights replace the estimates, until every head has met its target.
#pragma once

#include <numeric>

#include "quorum/core/stopping_rule.hpp"
#include "quorum/cpu/attend_rows.hpp"
#include "quorum/cpu/order_clusters.hpp"

namespace quorum::cpu {

// How far reading has come. Every worker of a team keeps its own copy and computes the same values from what the team shares.
// Weights are in units of exp(reference).
struct ReadState {
  int num_always = 0;                 // sinks and window, at the front of the token list
  int num_clusters = 0;               // positions in the reading order
  int stop = 0;                       // clusters [0, stop) are chosen
  int scored = 0;                     // clusters [0, scored) have exact weights; scored >= stop
  int num_tokens = 0;                 // tokens of the chosen clusters
  int scored_tokens = 0;              // tokens of the scored clusters
  float reference[kMaxGroupSize];     // scores are taken relative to this
  double read[kMaxGroupSize];         // exact weight of always-read tokens and chosen clusters
  double rest[kMaxGroupSize];         // estimated weight of the other clusters
  double rest_factor[kMaxGroupSize];  // correction of `rest` by the last sample
  int num_sampled = 0;                // keys drawn so far
};

// Replaces scores by weights exp(score - reference); returns their sum.
inline float weigh_scores(float* scores, int count, float reference) {
  using namespace simd;
  Vector sum(0.0f);
  int i = 0;
  for (; i + kVectorSize <= count; i += kVectorSize) {
    const Vector weight = exponential(load(scores + i) - Vector(reference));
    store(scores + i, weight);
    sum = sum + weight;
  }
  float total = reduce_add(sum);
  if (i < count) {
    float lanes[kVectorSize];
    store(lanes, exponential(load_partial(scores + i, count - i) - Vector(reference)));
    for (int lane = 0; i < count; ++i, ++lane) total += scores[i] = lanes[lane];
  }
  return total;
}

// Scores of list entries [first, last) into shared.weights. Keys of the next tile are asked for while this one is computed.
inline void score_listed_tokens(const HeadTask& task, int first, int last) {
  const int bytes = task.row_bytes();
  for_each_tile(
      first, last, tile_rows(bytes), bytes, [&](int i) { return task.kv.key_row(task.shared->tokens[i], task.kv_head); },
      [&](int begin, RowPointers& tile, const RowPointers& next) {
        if (bytes <= kMaxGatheredBytes) gather_rows(tile, bytes, task.own().gathered);
        const HeadRows out{task.shared->weights.data + begin, task.shared->weights.stride};
        task.kernels.score({tile.rows, next.rows, tile.count, next.count, task.head_dim(), task.key_scale()}, task.own().queries, out);
        adjust_scores(task, out, tile.count, [&](int i) { return task.shared->tokens[begin + i]; });
      });
}

// Lists the worker's part of what is always read, as far as the task sees it. Returns the number of all of it.
inline int list_always_tokens(const HeadTask& task, const AlwaysRead& always) {
  if (!task.filters_always) {
    const int count = always.count(task.filter.end);
    for (int i = task.team.first(count); i < task.team.last(count); ++i) task.shared->tokens[i] = always.token(i);
    return count;
  }
  const int stored = always.count(std::max(task.filter.end, always.num_known));
  int count = 0, at = 0;
  for (int i = 0; i < stored; ++i) count += task.filter.passes(always.token(i));
  for (int i = 0; i < stored; ++i) {
    if (!task.filter.passes(always.token(i))) continue;
    if (at >= task.team.first(count) && at < task.team.last(count)) task.shared->tokens[at] = always.token(i);
    ++at;
  }
  return count;
}

// Lists what is always read and scores the worker's part of it. Post: own().max_score covers that part.
inline void score_always_tokens(const HeadTask& task, const ClusterIndexView& index, ReadState& state) {
  state.num_always = list_always_tokens(task, index.always);
  const int first = task.team.first(state.num_always), last = task.team.last(state.num_always);
  score_listed_tokens(task, first, last);
  for (int g = 0; g < task.num_heads; ++g) {
    const float* scores = task.shared->weights.row(g);
    float& max = task.own().max_score[g];  // of the clusters so far
    for (int i = first; i < last; ++i) max = scores[i] > max ? scores[i] : max;
  }
}

// Turns the worker's part of the always-read scores into weights; their sums go to own().always.
inline void weigh_always_tokens(const HeadTask& task, const ReadState& state) {
  const int first = task.team.first(state.num_always), last = task.team.last(state.num_always);
  for (int g = 0; g < task.num_heads; ++g)
    task.own().always[g] = double(weigh_scores(task.shared->weights.row(g) + first, last - first, state.reference[g]));
}

// True if the rule asks for no further cluster.
inline bool read_enough(const HeadTask& task, const DecodeOptions& options, const ReadState& state) {
  if (options.fixed_budget > 0) return state.num_tokens >= options.fixed_budget;
  if (state.num_tokens < options.min_tokens) return false;
  for (int g = 0; g < task.num_heads; ++g)
    if (!meets_target(state.read[g], state.rest[g] * state.rest_factor[g], double(options.target_ratio))) return false;
  return true;
}

// Number of clusters from state.scored on to score next: about three quarters of what the estimates say is needed, so that little is
// read in vain when they say too much; all of it once that is little.
inline int plan_chunk(const HeadTask& task, const DecodeOptions& options, const ReadState& state) {
  constexpr int kFewTokens = 96;
  double need[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) {
    const double total = state.read[g] + state.rest[g] * state.rest_factor[g];
    need[g] = (double(options.target_ratio) * total - state.read[g]) / std::max(state.rest_factor[g], 1e-30);
  }
  const int min_tokens = options.fixed_budget > 0 ? options.fixed_budget : options.min_tokens;
  const auto satisfied = [&](int tokens) {
    if (state.num_tokens + tokens < min_tokens) return false;
    if (options.fixed_budget > 0) return true;
    for (int g = 0; g < task.num_heads; ++g)
      if (need[g] > 0.0) return false;
    return true;
  };
  int tokens = 0, end = state.scored;
  while (end < state.num_clusters && (tokens == 0 || !satisfied(tokens))) {
    for (int g = 0; g < task.num_heads; ++g) need[g] -= double(task.shared->ordered.row(g)[end]);
    tokens += task.shared->size[end++];
  }
  if (tokens <= kFewTokens || options.fixed_budget > 0) return end - state.scored;
  const int limit = tokens - tokens / 4;
  while (tokens > limit) tokens -= task.shared->size[--end];
  return std::max(1, end - state.scored);
}

// Asks for the token lists of clusters at positions [first, last): where they begin, then what is there.
inline void prefetch_token_lists(const HeadTask& task, const ClusterHeadView& head, int first, int last) {
  const int32_t* cluster = task.shared->cluster;
  for (int position = first; position < last; ++position) {
    const ClusterRef ref = cluster_at(head, cluster[position]);
    simd::prefetch(ref.segment->cluster_indptr + ref.local);
  }
  for (int position = first; position < last; ++position) {
    const ClusterRef ref = cluster_at(head, cluster[position]);
    const int32_t* tokens = ref.tokens();
    simd::prefetch(tokens);
    simd::prefetch(tokens + ref.num_tokens() - 1);  // a list of 16 mostly lies across two lines
  }
}

// Lists a cluster's tokens that the task sees.
inline void list_visible(const HeadTask& task, ClusterRef cluster, int32_t* out) {
  const int32_t *tokens = cluster.tokens(), *end = tokens + cluster.num_tokens();
  if (task.filters_clusters)
    std::copy_if(tokens, end, out, [&](int token) { return task.filter.passes(token); });
  else
    std::copy(tokens, end, out);
}

// Reads the keys of clusters [state.scored, state.scored + count), split over the team by tokens.
inline void score_clusters_exactly(const HeadTask& task, const ClusterHeadView& head, ReadState& state, int count) {
  HeadScratch& shared = *task.shared;
  int total = 0;
  for (int i = 0; i < count; ++i) total += shared.size[state.scored + i];
  prefetch_token_lists(task, head, state.scored, state.scored + count);
  const int begin = task.team.first(total), end = task.team.last(total), base = state.num_always + state.scored_tokens;
  int first_position = -1, last_position = -1, running = 0;
  for (int position = state.scored; position < state.scored + count; ++position) {
    if (task.team.leads()) shared.first_token[position] = base + running;
    if (running >= begin && running < end) {
      if (first_position < 0) first_position = position;
      last_position = position;
      const ClusterRef cluster = cluster_at(head, shared.cluster[position]);
      list_visible(task, cluster, shared.tokens + base + running);
    }
    running += shared.size[position];
  }
  if (task.team.leads()) shared.first_token[state.scored + count] = base + total;
  if (first_position >= 0) {
    int offset = base;
    for (int position = state.scored; position < first_position; ++position) offset += shared.size[position];
    int tokens = 0;
    for (int position = first_position; position <= last_position; ++position) tokens += shared.size[position];
    score_listed_tokens(task, offset, offset + tokens);
    for (int g = 0; g < task.num_heads; ++g) weigh_scores(shared.weights.row(g) + offset, tokens, state.reference[g]);
    for (int position = first_position, at = offset; position <= last_position; ++position) {
      float sums[kMaxGroupSize] = {};  // heads side by side: one chain of additions each
      for (const int last = at + shared.size[position]; at < last; ++at)
        for (int g = 0; g < task.num_heads; ++g) sums[g] += shared.weights.row(g)[at];
      for (int g = 0; g < task.num_heads; ++g) shared.read_weight.row(g)[position] = sums[g];
    }
  }
  state.scored += count;
  state.scored_tokens += total;
  task.team.sync();
}

// Takes clusters in order until the rule is satisfied, or returns false: max_tokens would be exceeded.
inline bool take_clusters(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, ReadState& state) {
  while (!read_enough(task, options, state) && state.stop < state.num_clusters) {
    if (state.stop == state.scored) score_clusters_exactly(task, head, state, plan_chunk(task, options, state));
    const int size = task.shared->size[state.stop];
    if (state.num_tokens + size > options.max_tokens) return false;
    for (int g = 0; g < task.num_heads; ++g) {
      state.read[g] += double(task.shared->read_weight.row(g)[state.stop]);
      state.rest[g] = std::max(0.0, state.rest[g] - double(task.shared->ordered.row(g)[state.stop]));
    }
    state.num_tokens += size;
    ++state.stop;
  }
  return true;
}

// Sums the estimates of unread clusters anew where subtracting those read has left little but rounding: they may still be much next to what
// was read, if that turned out far lighter than estimated. Returns whether it did.
inline bool restore_rest(const HeadTask& task, const double* rest_before, ReadState& state) {
  constexpr double kLostInRounding = 1e-10;
  bool restored = false;
  for (int g = 0; g < task.num_heads; ++g) {
    if (!(state.rest[g] < kLostInRounding * rest_before[g])) continue;
    const float* ordered = task.shared->ordered.row(g);
    state.rest[g] = std::accumulate(ordered + state.stop, ordered + state.num_clusters, 0.0);
    restored = true;
  }
  return restored;
}

// Reads clusters in order until the rule is satisfied, max_tokens would be exceeded, or everything is read (algorithm.md eq. 7).
inline void read_keys(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, ReadState& state) {
  double rest_before[kMaxGroupSize];
  do {
    std::copy_n(state.rest, task.num_heads, rest_before);
    if (!take_clusters(task, head, options, state)) break;
  } while (restore_rest(task, rest_before, state) && state.stop < state.num_clusters);
  if (state.stop == state.num_clusters) std::fill_n(state.rest, task.num_heads, 0.0);
}

}  // namespace quorum::cpu
