// What an unread token adds to the error of the output: needs the output, which is first computed with nothing read (algorithm.md eq. 18).
#pragma once

#include "quorum/cpu/attend_coded_rest.hpp"

namespace quorum::cpu {

// Sum of squared cluster weights over sizes of the worker's clusters that are no candidates, by head, to own().always: what lay there has
// been read by all workers for long, while others may still be at the sums that scanning has published.
inline void square_outside(const HeadTask& task, const ClusterHeadView& head, const CodedState& coded) {
  using namespace simd;
  const Vector candidate_key(coded.candidate_key);
  double sums[kMaxGroupSize] = {};
  for (int block = task.team.first(head.num_blocks()); block < task.team.last(head.num_blocks()); ++block) {
    const float *size = visible_sizes(task, head, block), *keys = task.shared->share + block * kClusterBlock;
    for (int g = 0; g < task.num_heads; ++g) {
      const float* estimate = task.shared->estimate + (int64_t(block) * task.num_heads + g) * kClusterBlock;
      Vector sum(0.0f);
      for (int lane = 0; lane < kClusterBlock; lane += kVectorSize) {
        const Vector weight = where_at_least(load(keys + lane), candidate_key, Vector(0.0f), load(estimate + lane));
        sum = sum + weight * weight / maximum(load(size + lane), Vector(1.0f));  // an empty cluster weighs nothing
      }
      sums[g] += double(reduce_add(sum));
    }
  }
  std::copy_n(sums, task.num_heads, task.own().always);
}

// Squared length of the sum of all workers' accumulators over total[g], by head. Two barriers.
inline void accumulated_squares(const HeadTask& task, const double* total, double* squares) {
  using namespace simd;
  task.team.sync();
  const int vectors = padded_dim(task.head_dim()) / kVectorSize;
  for (int g = 0; g < task.num_heads; ++g) {
    const Vector factor(float(1.0 / total[g]));
    Vector sum(0.0f);
    for (int c = task.team.first(vectors) * kVectorSize; c < task.team.last(vectors) * kVectorSize; c += kVectorSize) {
      Vector x(0.0f);
      for (int w = 0; w < task.team.num_workers; ++w) x = x + load(task.workers[w].accumulated.row(g) + c);
      x = x * factor;
      sum = multiply_add(x, x, sum);
    }
    task.own().estimate[g] = double(reduce_add(sum));
  }
  task.team.sync();
  std::fill_n(squares, task.num_heads, 0.0);
  for (int w = 0; w < task.team.num_workers; ++w)
    for (int g = 0; g < task.num_heads; ++g) squares[g] += task.workers[w].estimate[g];
}

// Attends to sinks and window, and to everything else by code and estimate; the output's length gives the error model of every head.
// Returns false if the length is not finite: a value that is always read is NaN or Inf.
// Post: own().accumulated holds the worker's part of that output, shared.ordered what it holds of every candidate.
inline bool model_error(const HeadTask& task, const ClusterHeadView& head, const IndexQueries& queries, const ReadState& state,
                        CodedState& coded) {
  double total[kMaxGroupSize], squares[kMaxGroupSize];
  clear_accumulated(task);
  attend_listed_values(task, task.team.first(state.num_always), task.team.last(state.num_always));
  float unscaled[kMaxGroupSize];
  std::fill_n(unscaled, task.num_heads, 1.0f);
  attend_coded_rest(task, head, coded, unscaled);
  square_outside(task, head, coded);
  for (int g = 0; g < task.num_heads; ++g) total[g] = state.read[g] + coded.coded[g] + coded.outside[g];
  accumulated_squares(task, total, squares);
  add_up(task, &WorkerScratch::token_keys, coded.squares);
  bool finite = true;
  for (int g = 0; g < task.num_heads; ++g) {
    finite = finite && std::isfinite(squares[g]);
    coded.outside_squares[g] = 0.0;
    for (int w = 0; w < task.team.num_workers; ++w) coded.outside_squares[g] += task.workers[w].always[g];
    coded.outside_squares[g] *= coded.outside_factor[g] * coded.outside_factor[g];
    coded.error_model[g] = ErrorModel::of(head.moments, double(queries.square[g]), squares[g], total[g]);
  }
  coded.attended = true;
  return finite;
}

}  // namespace quorum::cpu
