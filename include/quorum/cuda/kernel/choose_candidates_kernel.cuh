// Second stage where tokens are chosen by code: the clusters whose codes are scanned, and those that enter the output as a whole. One block
// a row.
#pragma once

#include "quorum/cuda/block/row_candidates.cuh"
#include "quorum/cuda/kernel/select_tokens_kernel.cuh"

namespace quorum::cuda {

// Grid: (num_kv_heads, sets). Shared: RowCandidates::shared_bytes(). kHeads: columns rounded up to 4, 8 or 16.
// Leaves: the row's plan, as far as estimates go; cluster_key, tail_clusters; token_histogram empty. Rows that go another way are passed
// over.
template <int kHeads>
__global__ void __launch_bounds__(kSelectThreads, 1) choose_candidates_kernel(const __grid_constant__ StepParams p) {
  const int group = p.group, row = int(blockIdx.y) * p.shape.num_kv_heads + int(blockIdx.x);
  auto* memory = dynamic_shared<unsigned char>();
  auto& s = *reinterpret_cast<SelectShared*>(memory);
  auto* sums = reinterpret_cast<uint32_t*>(memory + round_up(int64_t(sizeof(SelectShared)), 16));
  auto* bucket = reinterpret_cast<uint16_t*>(sums + (group + 2) * kNumKeyBuckets);
  RowPlan& plan = p.workspace.plan[row];
  let_next_kernel_start();
  wait_for_previous_kernel();
  if (p.first_path(row) != DecodePath::sparse_tokens) return;
  if (threadIdx.x == 0) start_plan(p, row, DecodePath::sparse_tokens, plan);
  unsigned long long* histogram = p.workspace.token_histogram + int64_t(row) * (group + 1) * kNumKeyBuckets;
  for (int i = int(threadIdx.x); i < (group + 1) * kNumKeyBuckets; i += kSelectThreads) histogram[i] = 0;
  const FlatHeadView& head = p.head(row);
  const int slots = head.clusters.num_clusters, run = (slots + kSelectThreads - 1) / kSelectThreads;
  const int first = min(slots, int(threadIdx.x) * run), last = min(slots, first + run);
  const RowCandidates<kHeads> clusters{{p, s, {}, bucket, bucket + p.max_slots, nullptr, head, plan, row, group, first, last}, {sums}};
  if (!clusters.sum_weights() || head.clusters.code_indptr[slots] > p.max_code_blocks()) {
    if (threadIdx.x == 0) {
      start_plan(p, row, s.finite != 0 ? DecodePath::dense_by_capacity : DecodePath::dense_by_numerics, plan);
      write_counts(p, row, plan.num_listed, 0, 0);
    }
    return;
  }
  for (int i = int(threadIdx.x); i < plan.num_always; i += kSelectThreads)
    p.workspace.tokens[int64_t(row) * p.max_tokens + i] = head.always_token(i);
  clusters.fill_keys();
  const CandidateCut cut = clusters.choose();
  clusters.describe(cut);
  if (p.options.target_error > 0.0f) clusters.square_outside(cut);
  clusters.list(cut);
}

}  // namespace quorum::cuda
