// The whole step on a GPU: plan once, then enqueue the same few kernels for every token.
#pragma once

#include "quorum/cuda/score_clusters.cuh"
#include "quorum/cuda/select_coded_tokens.cuh"
#include "quorum/cuda/select_tokens.cuh"
#include "quorum/cuda/workspace.cuh"

namespace quorum::cuda {

// One call's input; every pointer inside is to device memory.
struct DecodeBatch {
  QueryView queries;  // [num_sequences][num_rows] rows; f32, f16 or bf16, rounded to the type of the keys when they meet (fp8_e4m3: to f16)
  PagedKvView kv;
  const FlatHeadView* heads = nullptr;  // [num_sequences][num_kv_heads], see ClusterIndex::heads(); null: attend densely
  int num_sequences = 0;
  // Query rows of every sequence. Causal: they stand at its last num_rows tokens, as in SequenceView; otherwise all of them see everything.
  int num_rows = 1;
  bool causal = true;
};

// Sparse decode attention with a target ratio, for a fixed shape and fixed options.
//
// What is read is chosen by the clusters' estimates alone, or by the residual codes of single tokens where the index has them and
// options.unit allows it (algorithm.md section 8), attended, then judged: a missed target is widened once, by the certificate's sample or,
// by code, by what the tokens weighed; with MissPolicy::dense it is attended densely if it is still missed. Memory: workspace only, the
// caller's if given. Caller: one call at a time per decoder; indexes and caches must not change meanwhile. Determinism: same inputs, seed
// and device, same result.
class Decoder {
 public:
  // Validates, lays out the workspace, prepares the kernels for the current device.
  //
  // shape.sink_logits: in device memory. kv_type: f16 or bf16. workspace: at least workspace_bytes() of device memory aligned to 256, kept
  // by the caller; null: allocated. Errors: Error(invalid_argument) naming argument, rule and value; Error(cuda_failure).
  Decoder(const AttentionShape& shape, ElementType kv_type, const DecodeOptions& options, const DecodeLimits& limits,
          std::byte* workspace = nullptr)
      : device_(DeviceTuning::of_current()), plan_(plan(shape, kv_type, options, limits, device_)) {
    if (workspace == nullptr) {
      own_workspace_ = DeviceBuffer(lay_out(nullptr, device_, plan_));
      workspace = own_workspace_.as<>();
    }
    require(reinterpret_cast<uintptr_t>(workspace) % kDeviceAlignment == 0, "cuda::Decoder", "workspace", "aligned to 256 bytes",
            static_cast<const void*>(workspace));
    lay_out(workspace, device_, plan_);
    check(prepare_score_clusters(plan_.shape), "cuda::Decoder", "prepare_score_clusters");
    for (int rows = 1; rows <= plan_.rows_per_set; ++rows) {  // a call may have fewer than the plan
      const int group = rows * plan_.heads_per_row;
      check(prepare_select_tokens(group, plan_.max_slots, plan_.select_blocks), "cuda::Decoder", "prepare_select_tokens");
      if (plan_.by_tokens)
        check(prepare_select_coded_tokens(group, plan_.max_slots, plan_.select_blocks), "cuda::Decoder", "prepare_select_coded_tokens");
      check(prepare_sparse_attention(shape.head_dim, group, kv_type, device_, plan_.num_rows()), "cuda::Decoder",
            "prepare_sparse_attention");
    }
  }

  // Device memory that a decoder needs, in bytes. Errors: as the constructor.
  static int64_t workspace_bytes(const AttentionShape& shape, ElementType kv_type, const DecodeOptions& options,
                                 const DecodeLimits& limits) {
    const DeviceTuning device = DeviceTuning::of_current();
    StepParams p = plan(shape, kv_type, options, limits, device);
    return lay_out(nullptr, device, p);
  }

  // Attention of every query row over as many tokens as the target ratio needs.
  //
  // Shapes: out as AttentionOutput; reports [num_sequences][num_rows][num_qo_heads] in device memory, or null. Stream: enqueues 5 kernels,
  // or 8 with a certificate that widens, 11 with MissPolicy::dense; where tokens may be chosen 9 with a budget, 14 with a target, 16 with a
  // certificate, 22 with MissPolicy::dense; never waits, allocates or throws; may be captured in a graph and
  // replayed while lengths grow up to limits.max_tokens. Errors: returns a status; launch_failed leaves the cause to cudaGetLastError().
  // Caller: sequences are not longer than limits.max_tokens, and indexes cover no more tokens than there are: lengths are on the device.
  DecodeStatus decode(const DecodeBatch& batch, const AttentionOutput& out, HeadReport* reports, cudaStream_t stream) noexcept {
    if (batch.num_rows < 1 || batch.num_rows > plan_.num_query_rows) return DecodeStatus::too_many_rows;
    if (batch.queries.num_rows != batch.num_sequences * batch.num_rows) return DecodeStatus::batch_mismatch;
    if (batch.num_sequences > plan_.num_sequences) return DecodeStatus::too_many_sequences;
    if (batch.kv.type != plan_.kv.type || !takes_queries(batch.queries.type)) return DecodeStatus::type_mismatch;
    if (!scales_fit(batch.kv)) return DecodeStatus::scales_mismatch;
    if (batch.num_sequences == 0) return DecodeStatus::ok;
    StepParams p = params(batch, out, reports);
    return run(p, stream) == cudaSuccess ? DecodeStatus::ok : DecodeStatus::launch_failed;
  }

  // What the stages get, for callers that run or time them one by one: score_clusters(), select_tokens(), sparse_attention().
  StepParams params(const DecodeBatch& batch, const AttentionOutput& out, HeadReport* reports) const noexcept {
    StepParams p = plan_;
    p.queries = batch.queries;
    p.kv = batch.kv;
    p.heads = batch.heads;
    p.num_sequences = batch.num_sequences;
    p.deal_query_rows(batch.num_rows, batch.causal, p.options.rows);
    p.score_tiles = device_.score_tiles(p.num_rows(), p.max_slots);
    p.select_blocks = device_.select_blocks(p.num_rows(), p.max_slots, p.select_blocks);
    p.scan_tiles = device_.scan_tiles(p.num_rows(), p.max_slots);
    p.out = out;
    p.reports = reports;
    return p;
  }
  const DeviceTuning& device() const noexcept { return device_; }

  const AttentionShape& shape() const noexcept { return plan_.shape; }
  const DecodeOptions& options() const noexcept { return plan_.options; }

 private:
  // Parameters of every call; num_sequences is the most there can be.
  static StepParams plan(const AttentionShape& shape, ElementType kv_type, const DecodeOptions& options, const DecodeLimits& limits,
                         const DeviceTuning& device) {
    const char* function = "cuda::Decoder";
    validate(shape, function);
    validate(options, function);
    validate(limits, function);
    require(has_kernels(shape.head_dim), function, "shape.head_dim", "64, 96, 128 or 256", shape.head_dim);
    require(has_kernels(kv_type), function, "kv_type", kKvTypeRule, element_name(kv_type));
    require(options.variance != VarianceModel::diagonal, function, "options.variance", "none or shared on this device",
            int(options.variance));
    require(options.scope == SelectionScope::group, function, "options.scope", "group on this device", int(options.scope));
    StepParams p;
    p.shape = shape;
    p.shape.sm_scale = shape.softmax_scale();
    p.deal_query_rows(limits.max_rows, true, options.rows);
    p.options = options;
    p.by_tokens = reads_tokens(options, true);
    p.candidate_coverage = quorum::candidate_coverage(options);
    p.kv.type = kv_type;
    p.num_sequences = limits.max_sequences;
    p.max_tokens = limits.max_tokens;
    const int slots = limits.max_clusters > 0 ? limits.max_clusters : limits.max_tokens / 8 + kClusterBlock;
    p.max_slots = int(round_up(slots, kClusterBlock));
    p.select_blocks = device.least_select_blocks(p.group, p.max_slots, p.by_tokens);
    require(p.select_blocks > 0, function, "limits.max_clusters",
            "so many that six bytes each fit into the shared memory of the blocks of a row", p.max_slots);
    p.attend_blocks = device.attend_blocks(shape.head_dim);
    const bool samples = options.certificate.enabled || options.tail == Tail::calibrated;
    p.num_draws = samples ? samples_per_round(options) : 0;
    p.z = normal_quantile(options.certificate.confidence);
    const bool judges = options.certificate.enabled && options.fixed_budget == 0;
    p.widens = judges && options.certificate.policy != MissPolicy::accept && options.certificate.max_rounds > 0;
    p.num_rounds = p.widens || (p.by_tokens && (options.fixed_budget == 0 || options.target_error > 0.0f)) ? 2 : 1;
    if (judges && options.certificate.policy == MissPolicy::dense) p.dense_round = p.num_rounds++;
    return p;
  }

  cudaError_t run(StepParams& p, cudaStream_t stream) const noexcept {
    const bool by_tokens = p.by_tokens && p.heads != nullptr;
    cudaError_t status = cudaSuccess;
    if (p.heads != nullptr) status = score_clusters(p, stream);
    for (int round = 0; round < p.num_rounds && status == cudaSuccess; ++round) {
      p.round = round;
      status = select_tokens(p, stream);
      if (status == cudaSuccess && by_tokens && round == 0) status = scan_candidates(p, stream);
      if (status == cudaSuccess && by_tokens) status = select_coded_tokens(p, stream);
      if (status == cudaSuccess) status = sparse_attention(p, device_, stream);
    }
    return status;
  }

  DeviceTuning device_;
  StepParams plan_;
  DeviceBuffer own_workspace_;
};

}  // namespace quorum::cuda
