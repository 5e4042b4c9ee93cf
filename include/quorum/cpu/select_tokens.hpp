// From a query to the tokens it needs: score, order, read, sample, and widen until every head of the group is content.
#pragma once

#include <vector>

#include "quorum/core/selection_view.hpp"
#include "quorum/cpu/sample_rest.hpp"

namespace quorum {

namespace cpu {

// What choosing came to. Every worker of the team has the same.
struct Choice {
  DecodePath path = DecodePath::sparse;
  ReadState state;
  SampledRest sampled_rest[kMaxGroupSize];
  bool sampled = false;
  int rounds = 0;

  // Weight of the unread rest of one head, as far as it is known: from sample and estimate, or from the estimate alone.
  double believed_rest(int head, VarianceModel model) const {
    const float estimated = float(state.rest[head]);
    return double(sampled ? quorum::believed_rest(sampled_rest[head], estimated, sample_trust(model)) : estimated);
  }
  double rest_bound(int head, float z) const { return double(rest_upper_bound(sampled_rest[head], float(state.rest[head]), z)); }
};

// Beyond these the exact weights have left the range in which the estimates' reference is a good one.
inline constexpr double kMinReadWeight = 1e-25, kMaxReadWeight = 1e25;

// Scores all clusters and fills totals and the reading order. Returns false if a query, key or estimate is not finite.
inline bool order_clusters(const HeadTask& task, const ClusterIndexView& index, const ClusterHeadView& head, VarianceModel model,
                           ReadState& state) {
  const Team& team = task.team;
  StageClock& clock = task.own().clock;
  clock.start();
  load_queries(task);
  const int output_blocks = padded_dim(task.head_dim()) / 16;
  transform_blocks(task, head.metric, team.first(output_blocks), team.last(output_blocks));
  team.sync();
  const IndexQueries queries = prepare_queries(task, head.metric);
  const int first = team.first(head.num_blocks()), last = team.last(head.num_blocks());
  score_blocks(task, head, model, queries, first, last);
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
  float log_total[kMaxGroupSize];
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
    log_total[g] = state.reference[g] + float(std::log(total));
  }
  if (!finite) return false;
  fill_buckets(task, head, log_total, first, last);
  team.sync();
  int32_t place[kNumOrderBuckets];
  state.num_clusters = place_buckets(task, place);
  scatter_clusters(task, head, place, first, last);
  if (team.leads()) task.shared->first_token[0] = state.num_always;
  team.sync();
  gather_estimates(task, team.first(state.num_clusters), team.last(state.num_clusters));
  team.sync();
  clock.end(&StageTimes::select);
  return true;
}

// True if the certified bound of every head meets the target.
inline bool bound_holds(const HeadTask& task, const DecodeOptions& options, float z, const Choice& choice) {
  for (int g = 0; g < task.num_heads; ++g)
    if (!meets_target(choice.state.read[g], choice.rest_bound(g, z), double(options.target_ratio))) return false;
  return true;
}

// Reads on until estimates, sample and policy agree that it is enough (algorithm.md section 5).
inline void read_and_certify(const HeadTask& task, const ClusterHeadView& head, const DecodeOptions& options, float z, Choice& choice) {
  ReadState& state = choice.state;
  const bool wants_sample = options.certificate.enabled || options.tail == Tail::calibrated;
  StageClock& clock = task.own().clock;
  while (true) {
    read_keys(task, head, options, state);
    clock.end(&StageTimes::attend);
    std::fill_n(choice.sampled_rest, task.num_heads, SampledRest{});
    choice.sampled = wants_sample;
    if (state.stop == state.num_clusters) return;
    if (wants_sample || options.tail != Tail::drop) share_rest(task, state);
    if (!wants_sample) return;
    sample_rest(task, head, options, state, choice.sampled_rest);
    clock.end(&StageTimes::sample);
    if (!options.certificate.enabled || bound_holds(task, options, z, choice)) return;
    const bool may_widen = options.certificate.policy != MissPolicy::accept && options.fixed_budget == 0;
    const int stop_before = state.stop;
    if (may_widen && choice.rounds < options.certificate.max_rounds) {
      for (int g = 0; g < task.num_heads; ++g)
        if (state.rest[g] > 0.0) state.rest_factor[g] = choice.rest_bound(g, z) / state.rest[g];
      read_keys(task, head, options, state);
      if (state.stop > stop_before) {
        ++choice.rounds;
        continue;
      }
    }
    if (options.certificate.policy == MissPolicy::dense) choice.path = DecodePath::dense_by_policy;
    return;
  }
}

// Which way a task goes before anything is computed.
inline DecodePath first_path(const HeadTask& task, const ClusterIndexView* index, const DecodeOptions& options, int max_cluster_slots) {
  if (index == nullptr || index->empty() || task.kv.num_tokens <= options.dense_below) return DecodePath::dense_by_length;
  if (options.target_ratio >= 1.0f && options.fixed_budget == 0) return DecodePath::dense_by_target;
  if (index->heads[task.kv_head].non_finite) return DecodePath::dense_by_numerics;
  if (index->heads[task.kv_head].num_cluster_slots() > max_cluster_slots) return DecodePath::dense_by_capacity;
  return DecodePath::sparse;
}

// Chooses the tokens of one task: the first state.num_always + state.num_tokens entries of shared.tokens, with their weights.
inline Choice choose_tokens(const HeadTask& task, const ClusterIndexView& index, const DecodeOptions& options, float z) {
  const ClusterHeadView& head = index.heads[task.kv_head];
  Choice choice;
  if (!order_clusters(task, index, head, options.variance, choice.state)) {
    choice.path = DecodePath::dense_by_numerics;
    return choice;
  }
  read_and_certify(task, head, options, z, choice);
  for (int g = 0; g < task.num_heads; ++g)
    if (!(choice.state.read[g] > kMinReadWeight && choice.state.read[g] < kMaxReadWeight)) choice.path = DecodePath::dense_by_numerics;
  return choice;
}

}  // namespace cpu

// A selection that owns its memory, in compressed rows.
class TokenSelection {
 public:
  // Copies any selection, padded or compressed.
  explicit TokenSelection(const SelectionView& from) : num_sequences_(from.num_sequences), num_kv_heads_(from.num_kv_heads) {
    indptr_.push_back(0);
    for (int s = 0; s < num_sequences_; ++s)
      for (int h = 0; h < num_kv_heads_; ++h) {
        tokens_.insert(tokens_.end(), from.row(s, h), from.row(s, h) + from.num_tokens(s, h));
        indptr_.push_back(int64_t(tokens_.size()));
      }
  }
  SelectionView view() const { return {tokens_.data(), indptr_.data(), nullptr, 0, num_sequences_, num_kv_heads_}; }

 private:
  int num_sequences_, num_kv_heads_;
  std::vector<int64_t> indptr_;
  std::vector<int32_t> tokens_;
};

// Tokens that any KV head of a sequence chose: one row a sequence, as engines want it that share a choice between heads.
inline TokenSelection union_over_heads(const SelectionView& selection) {
  std::vector<int64_t> indptr{0};
  std::vector<int32_t> tokens;
  for (int s = 0; s < selection.num_sequences; ++s) {
    const auto begin = std::ptrdiff_t(tokens.size());
    for (int h = 0; h < selection.num_kv_heads; ++h)
      tokens.insert(tokens.end(), selection.row(s, h), selection.row(s, h) + selection.num_tokens(s, h));
    std::sort(tokens.begin() + begin, tokens.end());
    tokens.erase(std::unique(tokens.begin() + begin, tokens.end()), tokens.end());
    indptr.push_back(int64_t(tokens.size()));
  }
  return TokenSelection(SelectionView{tokens.data(), indptr.data(), nullptr, 0, selection.num_sequences, 1});
}

}  // namespace quorum
