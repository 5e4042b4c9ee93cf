// From a query to the tokens it needs: score, order, read, sample, and widen until every head of the group is content.
#pragma once

#include <vector>

#include "quorum/core/decode_plan.hpp"
#include "quorum/core/selection_view.hpp"
#include "quorum/cpu/model_error.hpp"
#include "quorum/cpu/sample_coded_rest.hpp"
#include "quorum/cpu/weigh_candidates.hpp"

namespace quorum {

namespace cpu {

// What choosing came to. Every worker of the team has the same.
struct Choice {
  DecodePath path = DecodePath::sparse;
  ReadState state;
  CodedState coded;  // DecodePath::sparse_tokens
  SampledRest sampled_rest[kMaxGroupSize];
  bool sampled = false;
  int rounds = 0;

  // Weight of the unread rest of one head, as far as it is known: from sample and estimate, or from the estimate alone.
  double believed_rest(int head, VarianceModel model) const {
    const float estimated = float(state.rest[head]);
    return double(sampled ? quorum::believed_rest(sampled_rest[head], estimated, sample_trust(model)) : estimated);
  }
  // Whether the listed tokens' coded weight can be taken out of what has been attended: it must not be so much more than everything else
  // that rounding is all that would be left.
  bool correctable(int num_heads) const {
    constexpr double kMost = 1e3;
    for (int g = 0; g < num_heads; ++g)
      if (!(coded.pending_weight[g] <= kMost * (state.read[g] + coded.coded[g] + coded.outside[g]))) return false;
    return true;
  }
  double rest_bound(int head, float z) const { return double(rest_upper_bound(sampled_rest[head], float(state.rest[head]), z)); }
};

// Beyond these the exact weights have left the range in which the estimates' reference is a good one.
inline constexpr double kMinReadWeight = 1e-25, kMaxReadWeight = 1e25;
inline bool in_range(const HeadTask& task, const double* read) {
  for (int g = 0; g < task.num_heads; ++g)
    if (!(read[g] > kMinReadWeight && read[g] < kMaxReadWeight)) return false;
  return true;
}

// Fills the reading order of whole clusters.
inline void order_clusters(const HeadTask& task, const ClusterHeadView& head, const ClusterWeights& weights, ReadState& state) {
  const Team& team = task.team;
  const int first = team.first(head.num_blocks()), last = team.last(head.num_blocks());
  fill_buckets(task, head, weights.log_total, first, last);
  team.sync();
  int32_t place[kNumOrderBuckets];
  state.num_clusters = place_buckets(task, place);
  scatter_clusters(task, head, place, first, last);
  if (team.leads()) task.shared->first_token[0] = state.num_always;
  team.sync();
  gather_estimates(task, team.first(state.num_clusters), team.last(state.num_clusters));
  team.sync();
  task.own().clock.end(&StageTimes::select);
}

// True if the certified bound of every head meets the target.
inline bool bound_holds(const HeadTask& task, const DecodeOptions& options, float z, const Choice& choice) {
  for (int g = 0; g < task.num_heads; ++g)
    if (!meets_target(choice.state.read[g], choice.rest_bound(g, z), double(options.target_ratio))) return false;
  return true;
}

// Reading by whole clusters.
struct ClusterReader {
  const HeadTask& task;
  const ClusterHeadView& head;
  const DecodeOptions& options;
  Choice& choice;

  void read() const { read_keys(task, head, options, choice.state); }
  bool complete() const { return choice.state.stop == choice.state.num_clusters; }
  bool wants_sample() const { return options.certificate.enabled || options.tail == Tail::calibrated; }
  void sample(bool keys_too) const {
    share_rest(task, choice.state);
    if (keys_too) sample_rest(task, head, options, choice.state, choice.sampled_rest);
  }
};

// Reading by single tokens.
struct TokenReader {
  const HeadTask& task;
  const ClusterHeadView& head;
  const DecodeOptions& options;
  Choice& choice;

  void read() const { read_tokens(task, head, options, choice.coded, choice.state); }
  bool complete() const { return choice.state.num_tokens == choice.coded.indexed_tokens; }
  // Codes know the amount of the rest better than a sample that is worth its keys (docs/algorithm.md section 7).
  bool wants_sample() const { return options.certificate.enabled; }
  void sample(bool keys_too) const {
    if (keys_too) sample_coded_rest(task, head, options, choice.coded, choice.state, choice.sampled_rest);
  }
};

// Reads on until estimates, sample and policy agree that it is enough (algorithm.md section 5).
template <class Reader>
void read_and_certify(const Reader& reader, float z) {
  const HeadTask& task = reader.task;
  const DecodeOptions& options = reader.options;
  Choice& choice = reader.choice;
  ReadState& state = choice.state;
  const bool wants_sample = reader.wants_sample();
  StageClock& clock = task.own().clock;
  while (true) {
    reader.read();
    clock.end(&StageTimes::attend);
    std::fill_n(choice.sampled_rest, task.num_heads, SampledRest{});
    choice.sampled = wants_sample;
    if (reader.complete()) return;
    if (wants_sample || options.tail != Tail::drop) reader.sample(wants_sample);
    if (!wants_sample) return;
    clock.end(&StageTimes::sample);
    if (!options.certificate.enabled || bound_holds(task, options, z, choice)) return;
    const bool may_widen = options.certificate.policy != MissPolicy::accept && options.fixed_budget == 0;
    const int tokens_before = state.num_tokens;
    if (may_widen && choice.rounds < options.certificate.max_rounds) {
      for (int g = 0; g < task.num_heads; ++g)
        if (state.rest[g] > 0.0) state.rest_factor[g] = choice.rest_bound(g, z) / state.rest[g];
      reader.read();
      if (state.num_tokens > tokens_before) {
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
  IndexedHead head;
  if (index != nullptr && !index->empty())
    head = {true, index->heads[task.kv_head].non_finite, index->heads[task.kv_head].num_cluster_slots()};
  return quorum::first_path(head, task.num_visible, options, max_cluster_slots);
}

// Whether estimates and codes have led astray: what they held worth reading has been read, and by their own account some head has not
// attained half of its target. Happens where a head's scores lie tens apart.
inline bool estimates_failed(const HeadTask& task, const DecodeOptions& options, const Choice& choice) {
  if (options.fixed_budget > 0 || options.target_error > 0.0f || options.max_tokens < choice.coded.candidates.tokens) return false;
  for (int g = 0; g < task.num_heads; ++g)
    if (!meets_target(choice.state.read[g], choice.state.rest[g], 0.5 * double(options.target_ratio))) return true;
  return false;
}

// Chooses the tokens of one task: the first state.num_always + state.num_tokens entries of shared.tokens, with their weights.
inline Choice choose_tokens(const HeadTask& task, const ClusterIndexView& index, const DecodeOptions& options, float z) {
  const ClusterHeadView& head = index.heads[task.kv_head];
  Choice choice;
  const bool by_tokens = reads_tokens(options, index.residual_codes);
  // Codes take the second-order term's place, and only the shared one can be taken out again.
  const VarianceModel model = by_tokens && options.variance == VarianceModel::diagonal ? VarianceModel::shared : options.variance;
  ClusterWeights weights;
  bool finite = weigh_clusters(task, index, head, model, by_tokens, choice.state, weights);
  if (finite && by_tokens) {
    choice.path = DecodePath::sparse_tokens;
    finite = weigh_candidates(task, head, options, weights, choice.state, choice.coded);
  }
  if (!finite) {
    choice.path = DecodePath::dense_by_numerics;
    return choice;
  }
  if (by_tokens) {
    choice.coded.indexed_tokens = task.num_visible - choice.state.num_always;
    if (options.target_error > 0.0f && !model_error(task, head, weights.queries, choice.state, choice.coded)) {
      choice.path = DecodePath::dense_by_numerics;
      return choice;
    }
    const TokenReader reader{task, head, options, choice};
    read_and_certify(reader, z);
    if (!is_dense(choice.path) && !reader.complete() && estimates_failed(task, options, choice))
      choice.path = DecodePath::dense_by_numerics;
    if (!is_dense(choice.path) && dense_is_cheaper(options, choice.state.num_always + choice.state.num_tokens, task.num_visible))
      choice.path = DecodePath::dense_by_cost;
  } else {
    order_clusters(task, head, weights, choice.state);
    read_and_certify(ClusterReader{task, head, options, choice}, z);
  }
  double read[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) read[g] = choice.state.read[g] + choice.coded.pending_weight[g];
  if (!in_range(task, read)) choice.path = DecodePath::dense_by_numerics;
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
