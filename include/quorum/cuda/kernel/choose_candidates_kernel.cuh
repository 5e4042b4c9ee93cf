// Second stage where tokens are chosen by code: the clusters whose codes are scanned, and those that enter the output as a whole. A team of
// blocks a row.
#pragma once

#include "quorum/cuda/block/row_candidates.cuh"
#include "quorum/cuda/kernel/select_tokens_kernel.cuh"

namespace quorum::cuda {

// Grid: (select_blocks, num_kv_heads, sets), teams of select_blocks. Shared: RowCandidates::shared_bytes(). kHeads: columns rounded up to
// 4, 8 or 16. Leaves: the row's plan, as far as estimates go; cluster_key, tail_clusters; token_histogram empty. Rows that go another way
// are passed over.
template <int kHeads>
__global__ void __launch_bounds__(kSelectThreads, 1) choose_candidates_kernel(const __grid_constant__ StepParams p) {
  const int group = p.group, row = int(blockIdx.z) * p.shape.num_kv_heads + int(blockIdx.y);
  auto* memory = dynamic_shared<unsigned char>();
  auto& s = *reinterpret_cast<SelectShared*>(memory);
  auto* sums = reinterpret_cast<uint32_t*>(memory + round_up(int64_t(sizeof(SelectShared)), 16));
  auto* bucket = reinterpret_cast<uint16_t*>(sums + (group + 2) * kNumKeyBuckets);
  RowPlan& plan = p.workspace.plan[row];
  const BlockTeam team = BlockTeam::of_launch();
  let_next_kernel_start();
  wait_for_previous_kernel();
  if (p.first_path(row) != DecodePath::sparse_tokens) return;
  if (team.leads()) start_plan(p, row, DecodePath::sparse_tokens, plan);
  team.barrier();
  unsigned long long* histogram = p.workspace.token_histogram + int64_t(row) * (group + 1) * kNumKeyBuckets;
  for (int i = team.rank * kSelectThreads + int(threadIdx.x); i < (group + 1) * kNumKeyBuckets; i += team.size * kSelectThreads)
    histogram[i] = 0;
  const FlatHeadView& head = p.head(row);
  const ClusterRuns runs = ClusterRuns::of<kSelectThreads>(team, head.clusters.num_clusters);
  const int slots = select_slots(p.max_slots, team.size), begin = runs.block_begin;
  const RowCandidates<kHeads> clusters{{runs, p, s, {}, {bucket, begin}, {bucket + slots, begin}, {}, head, plan, row, group}, {sums}};
  if (!clusters.sum_weights() || head.clusters.code_indptr[head.clusters.num_clusters] > p.max_code_blocks()) {
    if (team.leads()) {
      start_plan(p, row, s.finite != 0 ? DecodePath::dense_by_capacity : DecodePath::dense_by_numerics, plan);
      write_counts(p, row, plan.num_listed, 0, 0);
    }
    return;
  }
  clusters.list_always();
  clusters.fill_keys();
  const CandidateCut cut = clusters.choose();
  clusters.describe(cut);
  if (p.options.target_error > 0.0f) clusters.square_outside(cut);
  clusters.list(cut);
}

}  // namespace quorum::cuda
