// Second and third stage with residual codes as a whole: candidates, the others that enter the output, and what all of them weigh by code.
#pragma once

#include "quorum/cpu/read_tokens.hpp"
#include "quorum/cpu/weigh_clusters.hpp"

namespace quorum::cpu {

// Finds the candidates, and of the other clusters those that enter the output.
inline void choose_candidates(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, const ScanQueries& queries,
                              const ReadState& state, CodedState& coded) {
  const double coverage = double(candidate_coverage(options));
  fill_cluster_keys(task, head, queries.inverse_total, task.team.first(head.num_blocks()), task.team.last(head.num_blocks()));
  task.team.sync();
  const auto cover = [&](double share, const Threshold& from) {
    return next_threshold(task, &WorkerScratch::cluster_keys, from, kMaxCount, [&](const Chosen& chosen) {
      for (int g = 0; g < task.num_heads; ++g)
        if (!(state.read[g] + chosen.weight[g] >= share * coded.total[g])) return false;
      return true;
    });
  };
  const auto take = [&](const Threshold& candidates, double covered) {
    const Threshold outside = cover(coverage_with_outside(covered), candidates);
    coded.candidate_key = candidates.key;
    coded.outside_key = outside.key;
    coded.num_outside = int(outside.chosen.count - candidates.chosen.count);
    for (int g = 0; g < task.num_heads; ++g) {
      coded.outside[g] = std::max(0.0, state.rest[g] - candidates.chosen.weight[g]);
      coded.used_outside[g] = outside.chosen.weight[g] - candidates.chosen.weight[g];
    }
    coded.candidates = list_candidates(task, head, candidates.key, outside.key);
  };
  Threshold candidates = cover(coverage, {});
  take(candidates, coverage);
  // A budget wants tokens, whatever they weigh.
  while (coded.candidates.tokens < options.fixed_budget && candidates.bucket < kNumKeyBuckets - 2) {
    const int64_t twice = 2 * candidates.chosen.count + 1;
    candidates = next_threshold(task, &WorkerScratch::cluster_keys, candidates, kMaxCount,
                                [&](const Chosen& chosen) { return chosen.count >= twice; });
    double covered = 1.0;
    for (int g = 0; g < task.num_heads; ++g) covered = std::min(covered, (state.read[g] + candidates.chosen.weight[g]) / coded.total[g]);
    take(candidates, std::max(coverage, covered));
  }
}

// Finds the candidates and weighs their tokens by code. Returns false if a weight is not finite.
inline bool weigh_candidates(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, const ClusterWeights& weights,
                             ReadState& state, CodedState& coded) {
  ScanQueries queries;
  queries.softcap = task.shape->logit_softcap;
  for (int g = 0; g < task.num_heads; ++g) {
    coded.total[g] = state.read[g] + state.rest[g];
    queries.half_variance[g] = weights.half_variance[g];
    queries.half_lost_variance[g] = half_lost_variance(options.variance, weights.queries.square[g], task.head_dim());
    queries.log_total[g] = weights.log_total[g];
    queries.total[g] = float(coded.total[g]);
    (options.target_error > 0.0f ? queries.counted_square[g] : queries.counted_expected[g]) =
        options.target_error > 0.0f ? queries.total[g] * queries.total[g] : queries.total[g];
    queries.inverse_total[g] = float(1.0 / coded.total[g]);
  }
  choose_candidates(task, head, options, queries, state, coded);
  task.own().clock.end(&StageTimes::select);
  fill_code_tables(task, queries.step);
  scan_candidates(task, head, queries, candidate_range(task, coded.candidates));
  task.team.sync();
  bool finite = true;
  for (int g = 0; g < task.num_heads; ++g) {
    coded.coded[g] = coded.expected[g] = 0.0;
    for (int w = 0; w < task.team.num_workers; ++w) {
      coded.coded[g] += task.workers[w].estimate[g];
      coded.expected[g] += task.workers[w].expected[g];
    }
    coded.surprise[g] = 1.0;
    const double estimate = coded.total[g] - state.read[g] - coded.outside[g];
    const double found = coded.candidates.clusters > 0 ? outside_factor(coded.expected[g], estimate) : 1.0;
    coded.outside[g] *= found;
    coded.outside_factor[g] = found;
    state.rest[g] = coded.rest(g);
    state.rest_factor[g] = double(kCodedMargin);
    finite = finite && std::isfinite(coded.coded[g]) && std::isfinite(state.rest[g]);
  }
  task.own().clock.end(&StageTimes::scan);
  return finite;
}

}  // namespace quorum::cpu
