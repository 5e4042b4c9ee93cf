// First stage as a whole: queries into the index's coordinates, scores, and what clusters and always-read tokens weigh together.
#pragma once

#include "quorum/cpu/read_keys.hpp"
#include "quorum/cpu/score_clusters.hpp"

namespace quorum::cpu {

// What the estimates came to.
struct ClusterWeights {
  IndexQueries queries;
  float half_variance[kMaxGroupSize];  // of a cluster of spread 1
  float log_total[kMaxGroupSize];      // log of the weight that is expected in all
};

// Scores all clusters and the always-read tokens, and weighs them. Returns false if a query, key or estimate is not finite.
inline bool weigh_clusters(const HeadTask& task, const ClusterIndexView& index, const ClusterHeadView& head, VarianceModel model,
                           bool by_tokens, ReadState& state, ClusterWeights& weights) {
  const Team& team = task.team;
  StageClock& clock = task.own().clock;
  clock.start();
  load_queries(task);
  const int output_blocks = padded_dim(task.head_dim()) / 16;
  transform_blocks(task, head.metric, team.first(output_blocks), team.last(output_blocks));
  team.sync();
  const IndexQueries& queries = weights.queries = prepare_queries(task, head.metric);
  const int first = team.first(head.num_blocks()), last = team.last(head.num_blocks());
  if (task.filters_clusters) count_visible(task, head, first, last);
  score_blocks(task, head, model, queries, first, last, by_tokens);
  score_always_tokens(task, index, state);
  team.sync();
  clock.end(&StageTimes::score);
  for (int g = 0; g < task.num_heads; ++g) {
    state.reference[g] = -kInfinity;
    for (int w = 0; w < team.num_workers; ++w) state.reference[g] = std::max(state.reference[g], task.workers[w].max_score[g]);
    if (!std::isfinite(state.reference[g])) state.reference[g] = 0.0f;  // ends as a sum that is not finite
  }
  weigh_blocks(task, head, state.reference, first, last);
  weigh_always_tokens(task, state);
  team.sync();
  bool finite = true;
  for (int g = 0; g < task.num_heads; ++g) {
    state.read[g] = state.rest[g] = 0.0;
    state.rest_factor[g] = 1.0;
    for (int w = 0; w < team.num_workers; ++w) {
      state.read[g] += task.workers[w].always[g];
      state.rest[g] += task.workers[w].estimate[g];
    }
    const double total = state.read[g] + state.rest[g];
    finite = finite && std::isfinite(total) && std::isfinite(queries.step[g]) && total > 0.0;
    weights.half_variance[g] = model == VarianceModel::shared ? queries.half_variance[g] : 0.0f;
    weights.log_total[g] = state.reference[g] + float(std::log(total));
  }
  return finite;
}

}  // namespace quorum::cpu
