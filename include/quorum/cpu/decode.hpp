// The whole step: plan once, then decode token by token without allocating, throwing or printing.
#pragma once

#include <span>

#include "quorum/core/step_bytes.hpp"
#include "quorum/cpu/attend_coded_rest.hpp"
#include "quorum/cpu/dense_attention.hpp"
#include "quorum/cpu/select_tokens.hpp"

namespace quorum {

// Sparse decode attention with a target ratio, for a fixed shape and fixed options.
//
// Memory: scratch only, the caller's if given. Caller: one decode or select at a time per decoder; indexes and caches must not change
// meanwhile. Determinism: same inputs, seed and number of workers, same result.
//
// Example: examples/quickstart.cpp.
class Decoder {
 public:
  // Validates everything and lays out the scratch memory.
  //
  // workspace: at least workspace_bytes(...) bytes aligned to 64, kept by the caller; empty: the decoder allocates its own.
  // Errors: Error(invalid_argument) naming argument, rule and value.
  Decoder(const AttentionShape& shape, const DecodeOptions& options, const DecodeLimits& limits, std::span<std::byte> workspace = {})
      : shape_(shape), options_(options), limits_(limits) {
    const int64_t bytes = workspace_bytes(shape, options, limits);
    z_ = normal_quantile(options.certificate.confidence);
    workers_.resize(size_t(limits.num_workers));
    heads_.resize(size_t(limits.num_workers));
    spans_.reserve(size_t(limits.max_sequences) * size_t(limits.max_rows));
    if (workspace.empty()) {
      own_workspace_.resize(size_t(bytes < int64_t(kHugePage) / 4 ? bytes : round_up(bytes, int64_t(kHugePage))));
      workspace = own_workspace_;
    }
    require(int64_t(workspace.size()) >= bytes, "Decoder", "workspace.size()", "at least workspace_bytes()", workspace.size());
    require(reinterpret_cast<uintptr_t>(workspace.data()) % 64 == 0, "Decoder", "workspace.data()", "aligned to 64 bytes",
            static_cast<const void*>(workspace.data()));
    lay_out_all(workspace.data(), scratch_limits(), workers_, heads_);
  }

  // Scratch memory that a decoder needs, in bytes. Grows with limits.num_workers * limits.max_tokens * group_size * 4.
  static int64_t workspace_bytes(const AttentionShape& shape, const DecodeOptions& options, const DecodeLimits& limits) {
    validate(shape, "Decoder");
    validate(options, "Decoder");
    validate(limits, "Decoder");
    std::vector<cpu::WorkerScratch> workers(static_cast<size_t>(limits.num_workers));
    std::vector<cpu::HeadScratch> heads(static_cast<size_t>(limits.num_workers));
    return lay_out_all(nullptr, scratch_limits(shape, options, limits), workers, heads);
  }

  // Attention of every query row over as many tokens as the target ratio needs.
  //
  // Method: algorithm.md, sections 3 to 6 and 8. Shapes: queries [num_rows], the rows of the sequences one after the other: one each, or
  // SequenceView::num_rows; sequences [num_sequences]; out as AttentionOutput; reports [num_rows][num_qo_heads], or empty. Units: the
  // target is a share of the softmax weight of what a row sees. Errors: returns a status, writes nothing unless it is ok. Edges: a row that
  // sees nothing gives output 0 and lse -inf; NaN or Inf in a query, key or value that is seen poisons its own heads only, as dense
  // attention would (DecodePath::dense_by_numerics), of all rows that share a set. lse covers the read tokens and, unless Tail::drop, the
  // estimated rest. Cost: scores every centroid, reads the chosen rows; never allocates, throws, prints or waits for anything but its own
  // workers.
  DecodeStatus decode(const QueryView& queries, std::span<const SequenceView> sequences, const AttentionOutput& out,
                      std::span<HeadReport> reports, Executor& executor) noexcept {
    const DecodeStatus status = check(queries, sequences, reports, executor);
    if (status != DecodeStatus::ok) return status;
    run_tasks(queries, sequences, executor, [&](const cpu::HeadTask& task, const SequenceView& sequence) {
      cpu::Choice choice = choose(task, sequence);
      int clusters_used = 0;
      if (!is_dense(choice.path)) clusters_used = attend(task, *sequence.index, choice, out);
      if (is_dense(choice.path)) cpu::attend_densely(task, out);
      report(task, sequence, choice, clusters_used, reports);
    });
    return DecodeStatus::ok;
  }

  // The choice alone: which tokens of each KV head reach the target, for kernels of the caller's own.
  //
  // Shapes: out rows [num_sequences][num_kv_heads], ascending tokens, padded with -1; one query row a sequence. Post: on
  // selection_too_small counts say what each row needs and rows that fit are complete. Otherwise as decode(); on the dense path a row lists
  // every visible token.
  DecodeStatus select(const QueryView& queries, std::span<const SequenceView> sequences, const SelectionOutput& out,
                      std::span<HeadReport> reports, Executor& executor) noexcept {
    if (options_.scope != SelectionScope::group) return DecodeStatus::scope_mismatch;
    for (const SequenceView& sequence : sequences)
      if (sequence.num_rows != 1) return DecodeStatus::rows_mismatch;
    const DecodeStatus status = check(queries, sequences, reports, executor);
    if (status != DecodeStatus::ok) return status;
    std::atomic<bool> fits{true};
    run_tasks(queries, sequences, executor, [&](const cpu::HeadTask& task, const SequenceView& sequence) {
      const cpu::Choice choice = choose(task, sequence);
      task.team.sync();
      if (!task.team.leads()) return;
      if (!write_row(task, choice, out)) fits.store(false, std::memory_order_relaxed);
      report(task, sequence, choice, 0, reports);
    });
    return fits.load() ? DecodeStatus::ok : DecodeStatus::selection_too_small;
  }

  // Starts or stops counting the time of each stage, from zero. Cost while on: a reading of the clock per stage and worker.
  void record_stage_times(bool on) noexcept {
    for (auto& worker : workers_) worker.clock.enable(on);
  }
  // Of all sparse steps since recording started; divided by workers and steps, the time of a step. Not while a call runs.
  StageTimes stage_times() const noexcept {
    StageTimes sum;
    for (const auto& worker : workers_)
      for (const auto stage :
           {&StageTimes::score, &StageTimes::select, &StageTimes::scan, &StageTimes::attend, &StageTimes::sample, &StageTimes::tail})
        sum.*stage += worker.clock.times().*stage;
    return sum;
  }

  const AttentionShape& shape() const noexcept { return shape_; }
  const DecodeOptions& options() const noexcept { return options_; }
  const DecodeLimits& limits() const noexcept { return limits_; }

 private:
  static cpu::ScratchLimits scratch_limits(const AttentionShape& shape, const DecodeOptions& options, const DecodeLimits& limits) {
    const int slots = limits.max_clusters > 0 ? limits.max_clusters : limits.max_tokens / 4 + kClusterBlock;
    const int heads = heads_per_row(shape, options);
    return {heads * max_shared_rows(options.rows, heads, limits.max_rows),
            shape.head_dim,
            limits.max_tokens,
            int(round_up(slots, kClusterBlock)),
            samples_per_round(options),
            options.unit != ReadUnit::clusters};
  }
  static int heads_per_row(const AttentionShape& shape, const DecodeOptions& options) {
    return options.scope == SelectionScope::group ? shape.group_size() : 1;
  }
  cpu::ScratchLimits scratch_limits() const { return scratch_limits(shape_, options_, limits_); }

  static int64_t lay_out_all(std::byte* block, const cpu::ScratchLimits& limits, std::vector<cpu::WorkerScratch>& workers,
                             std::vector<cpu::HeadScratch>& heads) {
    cpu::Arena arena(block);
    for (auto& worker : workers) cpu::lay_out(arena, limits, worker);
    for (auto& head : heads) cpu::lay_out(arena, limits, head);
    return arena.used();
  }

  DecodeStatus check(const QueryView& queries, std::span<const SequenceView> sequences, std::span<HeadReport> reports,
                     const Executor& executor) const noexcept {
    int64_t num_rows = 0;
    for (const SequenceView& sequence : sequences) num_rows += sequence.num_rows;
    if (queries.num_rows != num_rows) return DecodeStatus::batch_mismatch;
    if (int(sequences.size()) > limits_.max_sequences) return DecodeStatus::too_many_sequences;
    if (executor.num_workers() > limits_.num_workers) return DecodeStatus::too_many_workers;
    if (!reports.empty() && reports.size() < size_t(num_rows) * size_t(shape_.num_qo_heads)) return DecodeStatus::report_too_small;
    if (shape_.head_dim % block_elements(queries.type) != 0) return DecodeStatus::head_dim_mismatch;
    for (const SequenceView& sequence : sequences) {
      if (sequence.num_rows < 1 || sequence.num_rows > limits_.max_rows) return DecodeStatus::too_many_rows;
      if (sequence.kv.num_tokens > limits_.max_tokens) return DecodeStatus::too_many_tokens;
      if (sequence.kv.pages != nullptr && sequence.kv.page_size < 1) return DecodeStatus::page_size_mismatch;
      if (!scales_fit(sequence.kv)) return DecodeStatus::scales_mismatch;
      if (shape_.head_dim % block_elements(sequence.kv.type) != 0) return DecodeStatus::head_dim_mismatch;
      if (sequence.index == nullptr) continue;
      const ClusterIndexView& index = *sequence.index;
      if (index.num_kv_heads != shape_.num_kv_heads || index.head_dim != shape_.head_dim || index.always.num_known > sequence.kv.num_tokens)
        return DecodeStatus::index_mismatch;
      const bool needs_codes = options_.unit == ReadUnit::tokens || options_.target_error > 0.0f;
      if (needs_codes && !index.empty() && !index.residual_codes) return DecodeStatus::codes_missing;
      if (options_.variance == VarianceModel::diagonal && !index.empty() && index.variance != VarianceModel::diagonal)
        return DecodeStatus::variance_mismatch;
    }
    return DecodeStatus::ok;
  }

  // Runs work(task, sequence) for every set of query heads that shares a selection.
  template <class Work>
  void run_tasks(const QueryView& queries, std::span<const SequenceView> sequences, Executor& executor, Work&& work) noexcept {
    const int heads = heads_per_row(shape_, options_), sets = shape_.num_qo_heads / heads;
    const int most_rows = max_shared_rows(options_.rows, heads, limits_.max_rows);
    spans_.clear();  // has room for a span a row
    int query_row = 0;
    int64_t bytes = 0;
    for (const SequenceView& sequence : sequences) {
      constexpr int kOneIn = 16;  // of a cache's bytes a sparse step reads, about
      const bool dense = sequence.index == nullptr || sequence.kv.num_tokens <= options_.dense_below;
      bytes += cpu::cache_bytes(shape_, sequence.kv) / (dense ? 1 : kOneIn);
      cpu::append_spans(sequence, int(&sequence - sequences.data()), query_row, most_rows, shape_.sliding_window, false, spans_);
      query_row += sequence.num_rows;
    }
    cpu::run_items(executor, int(spans_.size()) * sets, bytes, [&](int item, int worker, cpu::Team team) {
      const RowSpan& rows = spans_[size_t(item / sets)];
      const SequenceView& sequence = sequences[size_t(rows.sequence)];
      const int leader = worker - team.worker;
      cpu::HeadTask task = cpu::row_task(shape_, queries, sequence, rows, item % sets * heads, heads, team, workers_.data() + leader);
      task.shared = heads_.data() + leader;
      work(task, sequence);
    });
  }

  cpu::Choice choose(const cpu::HeadTask& task, const SequenceView& sequence) const noexcept {
    cpu::Choice choice;
    choice.path = cpu::first_path(task, sequence.index, options_, scratch_limits().max_cluster_slots);
    if (!is_dense(choice.path)) choice = cpu::choose_tokens(task, *sequence.index, options_, z_);
    return choice;
  }

  // Values, tail and division. Returns the number of value means read. Post: nothing is written if keys that are read only here leave the
  // range of the estimates; the path says so.
  int attend(const cpu::HeadTask& task, const ClusterIndexView& index, cpu::Choice& choice, const AttentionOutput& out) const noexcept {
    cpu::ReadState& state = choice.state;
    const ClusterHeadView& head = index.heads[task.kv_head];
    int clusters_used = 0, first = 0;
    double total[kMaxGroupSize] = {};
    if (choice.path == DecodePath::sparse_tokens) {
      const bool corrects = options_.tail != Tail::drop && choice.coded.attended && choice.correctable(task.num_heads);
      clusters_used = attend_coded(task, head, choice, corrects, total);
      if (corrects) first = state.num_always;  // sinks and window entered with the rest
    } else {
      clusters_used = attend_clusters(task, head, choice, total);
    }
    task.own().clock.end(&StageTimes::tail);
    const int pending = choice.coded.pending, known = state.num_always + state.num_tokens - pending - first;
    cpu::attend_listed_values(task, first + task.team.first(known), first + task.team.last(known));
    if (pending > 0) attend_pending(task, choice);
    if (is_dense(choice.path)) return 0;
    for (int g = 0; g < task.num_heads; ++g) total[g] += state.read[g];
    cpu::finish_output(task, state, total, out);
    task.own().clock.end(&StageTimes::attend);
    return clusters_used;
  }

  // Tokens whose keys have not been read yet. Post: they count as read.
  void attend_pending(const cpu::HeadTask& task, cpu::Choice& choice) const noexcept {
    cpu::ReadState& state = choice.state;
    const int begin = state.num_always + state.num_tokens - choice.coded.pending;
    double* own = task.own().always;
    std::fill_n(own, task.num_heads, 0.0);
    cpu::attend_listed(task, state, begin + task.team.first(choice.coded.pending), begin + task.team.last(choice.coded.pending), own);
    task.team.sync();
    for (int w = 0; w < task.team.num_workers; ++w)
      for (int g = 0; g < task.num_heads; ++g) state.read[g] += task.workers[w].always[g];
    choice.coded.pending = 0;
    if (!cpu::in_range(task, state.read)) choice.path = DecodePath::dense_by_numerics;
  }

  // The rest that whole clusters left. total[g]: weight that entered.
  int attend_clusters(const cpu::HeadTask& task, const ClusterHeadView& head, const cpu::Choice& choice, double* total) const noexcept {
    cpu::clear_accumulated(task);
    if (options_.tail == Tail::drop || choice.state.stop == choice.state.num_clusters) return 0;
    double amount[kMaxGroupSize];
    for (int g = 0; g < task.num_heads; ++g)
      amount[g] = options_.tail == Tail::calibrated ? choice.believed_rest(g, options_.variance) : choice.state.rest[g];
    return cpu::attend_tail(task, head, choice.state, amount, total);
  }

  // The rest that reading by codes left, or with `corrects` what the error model attended, less what was listed since. total[g]: weight of
  // it that entered.
  int attend_coded(const cpu::HeadTask& task, const ClusterHeadView& head, const cpu::Choice& choice, bool corrects,
                   double* total) const noexcept {
    const cpu::CodedState& coded = choice.coded;
    if (options_.tail == Tail::drop) {
      cpu::clear_accumulated(task);
      return 0;
    }
    if (corrects) {
      cpu::correct_coded_rest(task, head, coded);
      for (int g = 0; g < task.num_heads; ++g) total[g] = coded.coded[g] + coded.outside[g];
    } else {
      cpu::clear_accumulated(task);
      float scale[kMaxGroupSize];
      for (int g = 0; g < task.num_heads; ++g) {
        const double rest = coded.coded[g] + (coded.used_outside[g] > 0.0 ? coded.outside[g] : 0.0);
        total[g] = rest > 0.0 ? coded_amount(choice, g) : 0.0;
        scale[g] = tail_scale(float(total[g]), float(rest));
      }
      cpu::attend_coded_rest(task, head, coded, scale);
    }
    return coded.candidates.clusters + coded.num_outside;
  }

  // Weight that the coded rest of a head stands for.
  double coded_amount(const cpu::Choice& choice, int head) const noexcept {
    const double by_code = choice.coded.coded[head] + choice.coded.outside[head];
    if (!choice.sampled) return by_code;
    return double(believed_rest(choice.sampled_rest[head], float(by_code), sample_trust(options_.variance)));
  }

  void report(const cpu::HeadTask& task, const SequenceView& sequence, const cpu::Choice& choice, int clusters_used,
              std::span<HeadReport> reports) const noexcept {
    if (reports.empty() || !task.team.leads()) return;
    const StoredHead stored{shape_.head_dim, task.kv.type};
    for (int g = 0; g < task.num_heads; ++g) {
      HeadReport report;
      report.path = choice.path;
      report.shared_rows = task.num_rows();
      report.bytes_dense = stored.dense_bytes(task.num_visible);
      report.tokens_read = report.tokens_scored = task.num_visible;
      report.bytes_read = report.bytes_dense;
      if (!is_dense(choice.path)) describe(task, *sequence.index, choice, clusters_used, g, report);
      reports[size_t(task.query_row(g)) * size_t(shape_.num_qo_heads) + size_t(task.qo_head(g))] = report;
    }
  }

  void describe(const cpu::HeadTask& task, const ClusterIndexView& index, const cpu::Choice& choice, int clusters_used, int head,
                HeadReport& report) const noexcept {
    const cpu::ReadState& state = choice.state;
    report.tokens_read = state.num_always + state.num_tokens;
    report.tokens_scored = state.num_always + state.scored_tokens;
    report.tokens_sampled = state.num_sampled;
    report.clusters_used = clusters_used;
    const bool by_tokens = choice.path == DecodePath::sparse_tokens;
    if (by_tokens) report.tokens_coded = choice.coded.candidates.tokens;
    if (by_tokens && options_.target_error > 0.0f) report.error_estimate = float(choice.coded.error(head));
    const StoredHead stored{shape_.head_dim, task.kv.type, index.storage, options_.variance, index.heads[task.kv_head].num_cluster_slots()};
    report.bytes_read = stored.sparse_bytes(report, state.scored_tokens, by_tokens ? choice.coded.candidates.blocks * kCodeBlock : 0);
    report.rounds = choice.rounds;
    const bool complete = by_tokens ? state.num_tokens == choice.coded.indexed_tokens : state.stop == state.num_clusters;
    const float read = float(state.read[head] + (choice.coded.pending > 0 ? choice.coded.pending_weight[head] : 0.0));
    report.attained_ratio_estimate = attained_ratio(read, float(choice.believed_rest(head, options_.variance)));
    if (complete) {
      report.confidence = report.attained_ratio_lower_bound = 1.0f;
    } else {
      report.confidence = choice.sampled ? options_.certificate.confidence : 0.0f;
      report.attained_ratio_lower_bound = choice.sampled ? attained_ratio(read, float(choice.rest_bound(head, z_))) : 0.0f;
    }
  }

  // Writes one padded row, ascending. Returns false if it does not fit.
  bool write_row(const cpu::HeadTask& task, const cpu::Choice& choice, const SelectionOutput& out) const noexcept {
    const int64_t row = int64_t(task.sequence) * shape_.num_kv_heads + task.kv_head;
    const bool dense = is_dense(choice.path);
    const int count = dense ? task.num_visible : choice.state.num_always + choice.state.num_tokens;
    out.counts[row] = count;
    if (count > out.capacity) return false;
    int32_t* tokens = out.tokens + row * out.capacity;
    if (dense) {
      int first = task.filter.begin;
      task.filter.list(first, count, tokens);
    } else {
      std::copy_n(task.shared->tokens, count, tokens);
      std::sort(tokens, tokens + count);
    }
    std::fill(tokens + count, tokens + out.capacity, -1);
    return true;
  }

  AttentionShape shape_;
  DecodeOptions options_;
  DecodeLimits limits_;
  float z_ = 0.0f;
  cpu::AlignedVector<std::byte> own_workspace_;
  std::vector<cpu::WorkerScratch> workers_;  // [num_workers]
  std::vector<cpu::HeadScratch> heads_;      // [num_workers], a team uses its leader's
  std::vector<RowSpan> spans_;               // of the call
};

}  // namespace quorum
