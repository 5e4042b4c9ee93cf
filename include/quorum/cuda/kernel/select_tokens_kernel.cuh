// Second stage: what of a row is read, what enters by value means, what is drawn. A team of blocks a row; its result is the row's plan.
// Rows that choose single tokens are left to the kernels that scan codes.
#pragma once

#include "quorum/cuda/block/ptx.cuh"
#include "quorum/cuda/block/row_lists.cuh"
#include "quorum/cuda/block/row_selector.cuh"
#include "quorum/cuda/support/shared_memory.cuh"

namespace quorum::cuda {

// Bytes of a block's shared memory.
inline int64_t select_shared_bytes(int group, int max_slots, int blocks) {
  return round_up(int64_t(sizeof(SelectShared)), 16) + ClusterHistogram::bytes(group) + int64_t(select_slots(max_slots, blocks)) * 6;
}

// The plan of a row before anything is known, or on a dense path; one thread.
__device__ __forceinline__ void start_plan(const StepParams& p, int row, DecodePath path, RowPlan& plan) {
  plan.path = path;
  plan.widens = p.round > 0;
  plan.complete = is_dense(path);
  const TokenFilter seen = p.seen_by_all(row);
  plan.num_tokens = seen.end;
  plan.first_token = seen.begin;
  plan.num_always = is_dense(path) ? seen.end - seen.begin : p.head(row).num_always(seen.end);
  plan.first_listed = 0;
  plan.num_listed = plan.num_always;
  plan.num_draws = plan.num_tail = plan.num_sampled = plan.num_rounds = 0;
  plan.first_round = p.round;
  plan.cut = {};
  plan.token_bucket = plan.bucket_before = -1;
  for (int g = 0; g < p.group; ++g) plan.misses[g] = false;
}

// Which way a row goes in this round; false: it is done. Ends with a barrier of the team.
__device__ __forceinline__ bool start_round(const StepParams& p, int row, const BlockTeam& team, RowPlan& plan) {
  DecodePath path = DecodePath::sparse;
  bool goes_on = true;
  if (p.round == 0) {
    path = p.first_path(row);
  } else {
    goes_on = false;
    if (!p.widens && p.round != p.dense_round) {  // a round for rows that choose single tokens; what misses waits for the next
      if (team.leads()) plan.widens = false;
      team.barrier();
      return false;
    }
    for (int g = 0; g < p.group; ++g) goes_on = goes_on || plan.misses[g];
    if (p.round == p.dense_round) path = DecodePath::dense_by_policy;
    team.barrier();  // all have read what the leader writes
  }
  if (team.leads()) {
    if (goes_on && (p.round == 0 || is_dense(path))) start_plan(p, row, path, plan);
    plan.widens = goes_on && p.round > 0;
    for (int g = 0; g < p.group; ++g) plan.misses[g] = false;
  }
  team.barrier();
  return goes_on && !is_dense(path);
}

// Tells the attention of this round what it is to do for a row.
__device__ __forceinline__ void write_counts(const StepParams& p, int row, int listed, int tail, int draws) {
  int32_t* counts = p.workspace.counts + kSegmentKinds * row;
  counts[0] = listed;
  counts[1] = tail;
  counts[2] = draws;
}

// Grid: (select_blocks, num_kv_heads, sets), teams of select_blocks. Shared: select_shared_bytes(). kHeads: columns rounded up to 4, 8
// or 16.
template <int kHeads>
__global__ void __launch_bounds__(kSelectThreads, 1) select_tokens_kernel(const __grid_constant__ StepParams p) {
  const int group = p.group, row = int(blockIdx.z) * p.shape.num_kv_heads + int(blockIdx.y);
  auto* memory = dynamic_shared<unsigned char>();
  auto& s = *reinterpret_cast<SelectShared*>(memory);
  auto* sums = reinterpret_cast<uint32_t*>(memory + round_up(int64_t(sizeof(SelectShared)), 16));
  auto* bucket = reinterpret_cast<uint16_t*>(sums + (group + 1) * kNumOrderBuckets);
  RowPlan& plan = p.workspace.plan[row];
  const BlockTeam team = BlockTeam::of_launch();
  let_next_kernel_start();
  wait_for_previous_kernel();
  if (p.by_tokens && p.first_path(row) == DecodePath::sparse_tokens) return;
  if (!start_round(p, row, team, plan)) {
    const bool attends = p.round == 0 || plan.widens;
    if (team.leads()) write_counts(p, row, attends ? plan.num_listed : 0, 0, 0);
    return;
  }
  const FlatHeadView& head = p.head(row);
  const ClusterRuns runs = ClusterRuns::of<kSelectThreads>(team, head.clusters.num_clusters);
  const int slots = select_slots(p.max_slots, team.size), begin = runs.block_begin;
  const RowClusters<kHeads> clusters{runs, p,    s,   {sums}, {bucket, begin}, {bucket + slots, begin}, {bucket + 2 * slots, begin},
                                     head, plan, row, group};
  if (!clusters.sum_weights()) {
    if (team.leads()) {
      start_plan(p, row, DecodePath::dense_by_numerics, plan);
      write_counts(p, row, plan.num_listed, 0, 0);
    }
    return;
  }
  if (p.round == 0) clusters.list_always();
  clusters.fill_histogram();
  const RowSelector<kHeads> select{clusters};
  select.set_wanted();
  OrderCut cut;
  select.choose(cut);
  const int tail_bucket = select.find_tail();
  const RowLists<kHeads> lists{clusters};
  lists.write_lists(tail_bucket);
  if (p.num_draws > 0) lists.draw_tokens();
  if (team.leads()) {
    plan.cut = cut;
    plan.complete = s.chosen[group] == uint32_t(head.num_indexed);
    if (p.round > 0) ++plan.num_rounds;
    write_counts(p, row, plan.num_listed - plan.first_listed, plan.num_tail, plan.num_draws);
  }
}

}  // namespace quorum::cuda
