// The rest that reading by codes has left: candidates by the coded weights of their unread tokens, other clusters by estimate, all through
// value means (algorithm.md eq. 17).
#pragma once

#include "quorum/cpu/attend_values.hpp"
#include "quorum/cpu/sample_coded_rest.hpp"

namespace quorum::cpu {

// Coded weight of a candidate's unread tokens.
inline float unread_mass(const HeadTask& task, int candidate, int head) {
  return task.shared->coded_mass[int64_t(candidate) * task.num_heads + head];
}

// The unread rest into own().accumulated, `scale[g]` times. Post: shared.ordered holds what entered of every candidate, before the scale.
inline void attend_coded_rest(const HeadTask& task, const ClusterHeadView& head, const CodedState& coded, const float* scale) {
  const HeadScratch& shared = *task.shared;
  float outside[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) outside[g] = scale[g] * tail_scale(float(coded.outside[g]), float(coded.used_outside[g]));
  const int first = task.team.first(coded.candidates.clusters), last = task.team.last(coded.candidates.clusters);
  accumulate_value_means(
      task, head, last - first, [&](int i) { return cluster_at(head, shared.cluster[first + i]); },
      [&](int i, int g) {
        const float mass = unread_mass(task, first + i, g);
        shared.ordered.row(g)[first + i] = mass;
        return mass * scale[g];
      });
  const int32_t* clusters = own_outside(task, head);
  accumulate_value_means(
      task, head, task.own().num_outside, [&](int i) { return cluster_at(head, clusters[i]); },
      [&](int i, int g) { return cluster_estimate(task, clusters[i], g) * outside[g]; });
}

// Takes the coded weight of tokens that have been listed since out of own().accumulated again. Most candidates have none.
inline void correct_coded_rest(const HeadTask& task, const ClusterHeadView& head, const CodedState& coded) {
  const HeadScratch& shared = *task.shared;
  const CandidateRange own = candidate_range(task, coded.candidates);
  int32_t* changed = shared.bucket + own.first;  // of the clusters' lists, which have done their work
  int num_changed = 0;
  for (int candidate = own.first; candidate < own.last; ++candidate) {
    bool same = true;
    for (int g = 0; g < task.num_heads; ++g) same = same && unread_mass(task, candidate, g) == shared.ordered.row(g)[candidate];
    changed[num_changed] = candidate;
    num_changed += same ? 0 : 1;
  }
  accumulate_value_means(
      task, head, num_changed, [&](int i) { return cluster_at(head, shared.cluster[changed[i]]); },
      [&](int i, int g) { return unread_mass(task, changed[i], g) - shared.ordered.row(g)[changed[i]]; });
}

}  // namespace quorum::cpu
