// What a decode call tells about itself, per query row and query head.
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// Which way the output was computed.
enum class DecodePath : uint8_t {
  sparse,             // whole clusters
  sparse_tokens,      // single tokens by their residual codes
  dense_by_length,    // at most dense_below tokens, or nothing indexed
  dense_by_target,    // target_ratio is 1; GPU: a target error is wanted of an index without residual codes
  dense_by_policy,    // the certificate missed and the policy says dense
  dense_by_numerics,  // NaN, Inf or scores too far apart for the estimate: the output is what dense attention gives
  dense_by_cost,      // so many single tokens were needed that reading everything is cheaper
  dense_by_capacity,  // more clusters than the plan was sized for
  dense_by_view,      // GPU: a sliding window cuts, or a query row does not see all that is indexed
};

constexpr bool is_dense(DecodePath path) { return path != DecodePath::sparse && path != DecodePath::sparse_tokens; }

// Units: tokens and bytes are of the KV head and shared by its query heads (SelectionScope::group) and by shared_rows query rows. Tokens
// that are masked, erased or outside of the window count nowhere.
struct HeadReport {
  int32_t tokens_read = 0;                  // keys and values attended: sinks, window and chosen clusters
  int32_t tokens_scored = 0;                // keys read, whether or not their cluster was kept; samples not counted
  int32_t tokens_sampled = 0;               // keys drawn from the unread rest, all rounds
  int32_t tokens_coded = 0;                 // tokens whose residual codes were scanned
  int32_t clusters_used = 0;                // value means read for the tail
  int64_t bytes_read = 0;                   // keys, values, samples, index and query metric
  int64_t bytes_dense = 0;                  // what dense attention reads
  float attained_ratio_estimate = 1.0f;     // share of the weight that was read
  float attained_ratio_lower_bound = 1.0f;  // of the same, at `confidence`; 0 if nothing was sampled
  float confidence = 1.0f;                  // one-sided; 0 if nothing was sampled, 1 for dense
  float error_estimate = 0.0f;              // of the output, relative; with DecodeOptions::target_error only
  int32_t rounds = 0;                       // widenings
  DecodePath path = DecodePath::sparse;
  int32_t shared_rows = 1;  // query rows of the sequence that attend to these tokens together
};

// Seconds that workers spent in the stages of sparse steps, summed over workers, waiting for one another included.
struct StageTimes {
  double score = 0.0;   // the query's transform, centroids, always-read keys
  double select = 0.0;  // estimates and the order of clusters
  double scan = 0.0;    // residual codes of the candidates
  double attend = 0.0;  // keys read in order, values, output
  double sample = 0.0;  // the sample of the rest
  double tail = 0.0;    // value means

  double total() const { return score + select + scan + attend + sample + tail; }
};

// Status of a whole call. Unless it is ok nothing was written. Every other fault is a path in the report.
enum class DecodeStatus : uint8_t {
  ok,
  batch_mismatch,       // queries.num_rows is not the number of the sequences' rows
  too_many_sequences,   // more than the plan was sized for
  too_many_tokens,      // a sequence is longer than the plan was sized for
  too_many_workers,     // the executor runs more workers than the plan was sized for
  page_size_mismatch,   // a cache has pages but no page size
  scales_mismatch,      // a cache has scales, but keys and values are not fp8_e4m3
  head_dim_mismatch,    // keys, values or queries are q8_0, but head_dim is not a multiple of 32
  index_mismatch,       // an index has other heads or another head_dim, or covers more tokens than the cache
  codes_missing,        // ReadUnit::tokens or a target error was planned, but an index was built without residual codes
  variance_mismatch,    // VarianceModel::diagonal was planned, but an index was built without it
  report_too_small,     // reports are wanted, but there is no room for num_rows * num_qo_heads
  selection_too_small,  // select: a row needs more than `capacity` tokens; its count says how many
  scope_mismatch,       // select: needs SelectionScope::group
  type_mismatch,        // GPU: keys and values are not of the type that was planned for, or queries are q8_0 or fp8_e4m3
  launch_failed,        // the GPU's runtime refused a kernel; it says why
  too_many_rows,        // a sequence has more query rows than the plan was sized for, or none
  rows_mismatch,        // select: a sequence has more than one query row
};

constexpr const char* status_message(DecodeStatus status) {
  switch (status) {
    case DecodeStatus::ok:
      return "ok";
    case DecodeStatus::batch_mismatch:
      return "decode: queries.num_rows must be the number of the sequences' rows";
    case DecodeStatus::too_many_sequences:
      return "decode: sequences must be at most limits.max_sequences";
    case DecodeStatus::too_many_tokens:
      return "decode: kv.num_tokens must be at most limits.max_tokens";
    case DecodeStatus::too_many_workers:
      return "decode: executor.num_workers() must be at most limits.num_workers";
    case DecodeStatus::page_size_mismatch:
      return "decode: kv.page_size must be at least 1 with pages";
    case DecodeStatus::scales_mismatch:
      return "decode: kv.key_scales and kv.value_scales must be null unless keys and values are fp8_e4m3";
    case DecodeStatus::head_dim_mismatch:
      return "decode: head_dim must be a multiple of 32 with keys, values or queries in q8_0";
    case DecodeStatus::index_mismatch:
      return "decode: index must have the plan's heads and head_dim and cover no more tokens than the cache";
    case DecodeStatus::codes_missing:
      return "decode: index must be built with residual_codes to read tokens";
    case DecodeStatus::variance_mismatch:
      return "decode: index must be built with VarianceModel::diagonal to decode with it";
    case DecodeStatus::report_too_small:
      return "decode: reports must have num_rows * num_qo_heads entries or none";
    case DecodeStatus::selection_too_small:
      return "select: out.capacity must be at least the tokens chosen for every KV head";
    case DecodeStatus::scope_mismatch:
      return "select: options.scope must be group";
    case DecodeStatus::type_mismatch:
      return "decode: kv.type must be the plan's, and queries.type f32, f16 or bf16";
    case DecodeStatus::launch_failed:
      return "decode: every kernel must launch, cudaGetLastError() says why one did not";
    case DecodeStatus::too_many_rows:
      return "decode: a sequence's num_rows must be 1 to limits.max_rows";
    case DecodeStatus::rows_mismatch:
      return "select: a sequence's num_rows must be 1";
  }
  return "decode: unknown status";
}

}  // namespace quorum
