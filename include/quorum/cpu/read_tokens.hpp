// Fourth stage where the index has residual codes: the tokens of largest coded weight are chosen and their keys read (algorithm.md eq. 15).
#pragma once

#include <numeric>

#include "quorum/core/decode_plan.hpp"
#include "quorum/cpu/read_keys.hpp"
#include "quorum/cpu/scan_codes.hpp"

namespace quorum::cpu {

// How far reading by codes has come. As ReadState, the same for every worker of a team.
struct CodedState {
  CandidateCounts candidates;
  float candidate_key = 0.0f;  // clusters with at least this key are candidates
  float outside_key = 0.0f;    // of the others, those with at least this key enter the output
  int num_outside = 0;         // so many
  int indexed_tokens = 0;      // tokens of all clusters
  Threshold listed;            // tokens up to it have been listed and read; what the histogram counted of them

  double total[kMaxGroupSize];           // weight that was expected in all before the codes were scanned: what shares are of
  double coded[kMaxGroupSize];           // coded weight of the candidates' unread tokens
  double expected[kMaxGroupSize];        // expected weight of all the candidates' tokens
  double outside[kMaxGroupSize];         // expected weight of the other clusters
  double used_outside[kMaxGroupSize];    // of those that enter the output, before the factor
  double outside_factor[kMaxGroupSize];  // of the clusters' estimates, by what the codes made of the candidates'
  double surprise[kMaxGroupSize];        // code_surprise() of the tokens read last

  int pending = 0;                            // tokens at the end of the list whose keys have not been read
  double pending_weight[kMaxGroupSize] = {};  // what they weigh by code

  // With a target error: whether the coded rest has been attended before anything was read, what the error is made of, and the squared
  // coded weights of all candidates.
  bool attended = false;
  ErrorModel error_model[kMaxGroupSize];
  double squares[kMaxGroupSize];
  double outside_squares[kMaxGroupSize];
  double error(int head) const {
    return error_model[head].error(std::max(0.0, squares[head] - listed.chosen.weight[head]), outside_squares[head]);
  }

  // Weight of what has not been read, as far as codes, clusters and the tokens read so far tell.
  double rest(int head) const { return surprise[head] * (std::max(0.0, expected[head] - listed.chosen.weight[head]) + outside[head]); }
};

inline bool is_candidate(const HeadTask& task, const CodedState& coded, int cluster) {
  return task.shared->share[cluster] >= coded.candidate_key;
}

// Expected weight that must be listed so that a head meets its target, if unread tokens weigh what is believed of them.
inline double expected_need(const DecodeOptions& options, const CodedState& coded, const ReadState& state, int g) {
  return coded.listed.chosen.weight[g] +
         coded_need(double(options.target_ratio), state.read[g], state.rest[g], state.rest_factor[g], coded.surprise[g]);
}

// The threshold at which to go on: the highest at which all heads have what they need, within the bounds on the number of tokens.
inline Threshold next_token_threshold(const HeadTask& task, const DecodeOptions& options, const CodedState& coded, const ReadState& state) {
  double need[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g)
    need[g] = options.target_error > 0.0f
                  ? coded.error_model[g].squares_to_list(coded.squares[g], coded.outside_squares[g], options.target_error)
                  : expected_need(options, coded, state, g);
  const auto enough = [&](const Chosen& chosen) {
    if (options.fixed_budget > 0) return chosen.count >= options.fixed_budget;
    if (chosen.count < options.min_tokens) return false;
    for (int g = 0; g < task.num_heads; ++g)
      if (!(chosen.weight[g] >= need[g])) return false;
    return true;
  };
  return next_threshold(task, &WorkerScratch::token_keys, coded.listed, options.max_tokens, enough);
}

// Sums of coded shares by head, spread over the lanes of vectors.
struct ShareSums {
  simd::Vector heads[kMaxGroupSize];

  ShareSums() { std::fill_n(heads, kMaxGroupSize, simd::Vector(0.0f)); }
};

// Adds up the coded weights of a candidate's tokens beyond `bucket` anew: taking the listed ones away from the sum would leave its
// rounding, which is more than the rest where a code flatters its token by orders of magnitude. Those that are being listed are added to
// `listed`.
inline void sum_unread(const HeadTask& task, const CodedState& coded, int candidate, int bucket, ShareSums& listed) {
  const HeadScratch& shared = *task.shared;
  const int heads = task.num_heads, first = shared.first_block[candidate], last = shared.first_block[candidate + 1];
  float* mass = shared.coded_mass + int64_t(candidate) * heads;
  simd::for_head_blocks(heads, [&](auto count, int g) {
    constexpr int G = count();
    simd::Vector unread[G], chosen[G];
    std::fill_n(unread, G, simd::Vector(0.0f));
    std::copy_n(listed.heads + g, G, chosen);
    for (int block = first; block < last; ++block) {
      const uint16_t* buckets = shared.token_bucket + int64_t(block) * kCodeBlock;
      const f16* shares = shared.token_share + (int64_t(block) * heads + g) * kCodeBlock;
      const uint32_t up_to = simd::lanes_up_to(buckets, bucket);
      simd::add_lanes<G>(shares, ~up_to, unread);
      simd::add_lanes<G>(shares, up_to & ~simd::lanes_up_to(buckets, coded.listed.bucket), chosen);
    }
    std::copy_n(chosen, G, listed.heads + g);
    float sums[G * simd::kVectorSize];
    for (int i = 0; i < G; ++i) simd::store(sums + i * simd::kVectorSize, unread[i]);
    simd::reduce_rows<G>(sums, mass + g);
  });
  for (int g = 0; g < heads; ++g) mass[g] *= float(coded.total[g]);
}

// Appends the tokens up to `bucket` that are not listed yet, every worker those of its own candidates, and takes them out of the sums of
// their clusters. Post: own().estimate holds the coded weights of the worker's, own().expected those of its candidates' other tokens. Two
// barriers.
inline void list_tokens(const HeadTask& task, const ClusterHeadView& head, const CodedState& coded, int bucket, int at) {
  const HeadScratch& shared = *task.shared;
  const CandidateRange own = candidate_range(task, coded.candidates);
  const int heads = task.num_heads;
  for (int w = 0; w < task.team.worker; ++w) {  // the histograms know how many tokens the workers before list
    const int32_t* counts = task.workers[w].token_keys.counts;
    at = std::accumulate(counts + coded.listed.bucket + 1, counts + bucket + 1, at);
  }
  task.team.sync();  // others may still read what was published last
  ShareSums listed;
  double unread[kMaxGroupSize] = {};
  for (int candidate = own.first; candidate < own.last; ++candidate) {
    const int first = shared.first_block[candidate], before = at;
    for (int block = first; block < shared.first_block[candidate + 1]; ++block) {
      const uint16_t* buckets = shared.token_bucket + int64_t(block) * kCodeBlock;
      uint32_t lanes = simd::lanes_up_to(buckets, bucket) & ~simd::lanes_up_to(buckets, coded.listed.bucket);
      if (lanes == 0) continue;
      const int32_t* tokens = cluster_at(head, shared.cluster[candidate]).tokens() + (block - first) * kCodeBlock;
      for (; lanes != 0; lanes &= lanes - 1) shared.tokens[at++] = tokens[std::countr_zero(lanes)];
    }
    if (at > before) sum_unread(task, coded, candidate, bucket, listed);
    for (int g = 0; g < heads; ++g) unread[g] += double(shared.coded_mass[int64_t(candidate) * heads + g]);
  }
  for (int g = 0; g < heads; ++g) {
    task.own().estimate[g] = coded.total[g] * double(simd::reduce_add(listed.heads[g]));
    task.own().expected[g] = unread[g];
  }
  task.team.sync();
}

// Lists all tokens up to `next` and takes note of it. Returns their number.
inline int take_tokens(const HeadTask& task, const ClusterHeadView& head, const Threshold& next, CodedState& coded, ReadState& state) {
  const int count = int(next.chosen.count - coded.listed.chosen.count);
  list_tokens(task, head, coded, next.bucket, state.num_always + state.num_tokens);
  coded.listed = next;
  state.num_tokens += count;
  state.scored_tokens = state.num_tokens;
  coded.pending += count;
  std::fill_n(coded.coded, task.num_heads, 0.0);
  for (int w = 0; w < task.team.num_workers; ++w)
    for (int g = 0; g < task.num_heads; ++g) {
      coded.coded[g] += task.workers[w].expected[g];
      coded.pending_weight[g] += task.workers[w].estimate[g];
    }
  return count;
}

// Reads the keys of list entries [begin, begin + count); sum[g]: their exact weights, of the whole team. One barrier.
inline void read_listed(const HeadTask& task, const ReadState& state, int begin, int count, double* sum) {
  const int first = begin + task.team.first(count), last = begin + task.team.last(count);
  score_listed_tokens(task, first, last);
  for (int g = 0; g < task.num_heads; ++g)
    task.own().always[g] = double(weigh_scores(task.shared->weights.row(g) + first, last - first, state.reference[g]));
  task.team.sync();
  std::fill_n(sum, task.num_heads, 0.0);
  for (int w = 0; w < task.team.num_workers; ++w)
    for (int g = 0; g < task.num_heads; ++g) sum[g] += task.workers[w].always[g];
}

// Chooses tokens and reads their keys until the exact weights meet the target, a bound on tokens is reached or no candidate is left.
//
// The second half of a choice, in order of expectation, tells how well the codes judge the tokens that come next: if they turn out heavier
// than expected, so does the rest. A choice that falls short is followed by another one.
inline void read_tokens(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, CodedState& coded,
                        ReadState& state) {
  if (chooses_once(options)) {
    take_tokens(task, head, next_token_threshold(task, options, coded, state), coded, state);
    for (int g = 0; g < task.num_heads; ++g) state.rest[g] = coded.coded[g] + coded.outside[g];
    return;
  }
  const bool by_budget = options.fixed_budget > 0;
  while (by_budget ? state.num_tokens == 0 : !read_enough(task, options, state)) {
    const Threshold before = coded.listed, next = next_token_threshold(task, options, coded, state);
    const int64_t count = next.chosen.count - before.chosen.count;
    if (count <= 0) return;
    const int64_t half = before.chosen.count + std::max<int64_t>(0, std::min(count / 2, count - kFewestSurprised));
    const Threshold middle = next_threshold(task, &WorkerScratch::token_keys, before, next.chosen.count,
                                            [&](const Chosen& chosen) { return chosen.count >= half; });
    const int begin = state.num_always + state.num_tokens;
    const int in_front = take_tokens(task, head, middle, coded, state), behind = take_tokens(task, head, next, coded, state);
    double front[kMaxGroupSize], back[kMaxGroupSize];
    read_listed(task, state, begin, in_front, front);
    task.team.sync();
    read_listed(task, state, begin + in_front, behind, back);
    for (int g = 0; g < task.num_heads; ++g) {
      state.read[g] += front[g] + back[g];
      if (behind >= kFewestSurprised) coded.surprise[g] = code_surprise(back[g], next.chosen.weight[g] - middle.chosen.weight[g], behind);
      state.rest[g] = coded.rest(g);
      coded.pending_weight[g] = 0.0;
    }
    coded.pending = 0;
    task.team.sync();
  }
}

}  // namespace quorum::cpu
