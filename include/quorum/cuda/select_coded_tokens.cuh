// Second stage for rows whose index has codes: single tokens by their residual codes (algorithm.md section 7).
#pragma once

#include "quorum/cuda/dispatch/shape.cuh"
#include "quorum/cuda/kernel/choose_candidates_kernel.cuh"
#include "quorum/cuda/kernel/choose_tokens_kernel.cuh"
#include "quorum/cuda/kernel/draw_tokens_kernel.cuh"
#include "quorum/cuda/kernel/list_tokens_kernel.cuh"
#include "quorum/cuda/kernel/scan_codes_kernel.cuh"
#include "quorum/cuda/support/launch.cuh"

namespace quorum::cuda {

// Calls run(kernel, shared bytes) with the kernel for a number of columns.
template <class Run>
cudaError_t dispatch_candidates(int group, int max_slots, int blocks, Run&& run) {
  const int64_t shared = RowCandidates<16>::shared_bytes(group, max_slots, blocks);
  return group <= 4   ? run(choose_candidates_kernel<4>, shared)
         : group <= 8 ? run(choose_candidates_kernel<8>, shared)
                      : run(choose_candidates_kernel<16>, shared);
}

// What tokens weigh, before the first round. Post: everything that choosing needs, of rows that choose by code; the others are as they
// were. Stream: enqueues two kernels, waits for nothing. Cost: reads the weights of scoring, code_bytes_per_token() for a candidate's
// token.
inline cudaError_t scan_candidates(const StepParams& p, cudaStream_t stream) {
  const dim3 rows(unsigned(p.shape.num_kv_heads), unsigned(p.sets()));
  const cudaError_t status = dispatch_candidates(p.group, p.max_slots, p.select_blocks, [&](auto kernel, int64_t shared) {
    return launch({dim3(unsigned(p.select_blocks), rows.x, rows.y), kSelectThreads, shared, stream, true, p.select_blocks}, kernel, p);
  });
  if (status != cudaSuccess) return status;
  return dispatch_shape(p.shape.head_dim, p.group, [&](auto head_dim, auto head_tiles) {
    const LaunchConfig scan{dim3(unsigned(p.scan_tiles), rows.x, rows.y), kScanThreads, scan_shared_bytes(p.group), stream, true};
    return launch(scan, scan_codes_kernel<head_dim(), head_tiles()>, p);
  });
}

// Post: workspace.plan, tokens, tail_weight and draws of rows that choose by code. Determinism: the same for the same weights.
// Stream: enqueues two kernels, three with a certificate; waits for nothing. Cost: codes of the clusters of which a token is chosen, once
// more.
inline cudaError_t select_coded_tokens(const StepParams& p, cudaStream_t stream) {
  const dim3 rows(unsigned(p.shape.num_kv_heads), unsigned(p.sets()));
  cudaError_t status = launch({rows, kChoiceThreads, 0, stream, true}, choose_tokens_kernel<kChoiceThreads>, p);
  if (status != cudaSuccess) return status;
  status = dispatch_shape(p.shape.head_dim, p.group, [&](auto head_dim, auto head_tiles) {
    const LaunchConfig list{dim3(unsigned(p.scan_tiles), rows.x, rows.y), kScanThreads, 0, stream, true};
    return launch(list, list_tokens_kernel<head_dim(), head_tiles()>, p);
  });
  if (status != cudaSuccess || !p.samples_coded()) return status;
  return launch({rows, kDrawThreads, 0, stream, true}, draw_tokens_kernel<kDrawThreads>, p);
}

// Once per number of columns, when planning: lets the kernels have their shared memory. least_blocks: fewest a row.
inline cudaError_t prepare_select_coded_tokens(int group, int max_slots, int least_blocks) {
  return dispatch_candidates(group, max_slots, least_blocks,
                             [](auto kernel, int64_t shared) { return allow_dynamic_shared(kernel, shared); });
}

}  // namespace quorum::cuda
