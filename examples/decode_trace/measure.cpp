#include "measure.hpp"

#include <cmath>

#include "bench/support/cold_caches.hpp"
#include "bench/support/huge_block.hpp"
#include "bench/support/measure.hpp"
#include "report_text.hpp"

namespace decode_trace {
namespace {

using quorum::KvCacheView;
using quorum::QueryView;

double milliseconds_of(auto&& work) { return 1e3 * quorum::bench::seconds_of(work); }

// Output and lse of one step.
struct StepResult {
  std::vector<float> output, lse;

  explicit StepResult(const quorum::AttentionShape& shape)
      : output(static_cast<size_t>(shape.num_qo_heads * shape.head_dim)), lse(static_cast<size_t>(shape.num_qo_heads)) {}
  quorum::AttentionOutput view() { return {output.data(), lse.data()}; }
};

// Everything a run over the recorded queries shares.
class Bench {
 public:
  Bench(const quorum::io::Trace& trace, const Options& options, quorum::Executor& executor)
      : trace_(trace),
        executor_(executor),
        shape_{trace.num_qo_heads, trace.num_kv_heads, trace.head_dim, trace.sm_scale},
        kv_(quorum::bench::copy_cache(trace.kv_cache(), shape_, memory_)),
        index_(shape_, index_options(options)),
        dense_(shape_),
        sparse_(shape_),
        chosen_(shape_),
        reports_(static_cast<size_t>(trace.num_qo_heads)),
        tokens_(static_cast<size_t>(trace.num_kv_heads) * static_cast<size_t>(trace.num_tokens)),
        counts_(static_cast<size_t>(trace.num_kv_heads)) {}

  double build() {
    const QueryView prompt_queries = trace_.prompt_query_view();
    return milliseconds_of([&] { index_.build(kv_.first(indexed_end()), &prompt_queries, executor_); });
  }
  int indexed_end() const { return std::max(0, trace_.num_tokens - trace_.num_queries); }
  const quorum::ClusterIndex& index() const { return index_; }

  TargetRun run(double target, const Options& options) {
    quorum::DecodeOptions decode_options;
    (options.by_error ? decode_options.target_error : decode_options.target_ratio) = static_cast<float>(target);
    decode_options.unit = options.unit;
    decode_options.tail = options.tail;
    decode_options.certificate.enabled = options.certify;
    decode_options.seed = options.seed;
    decode_options.dense_below = 0;  // the demo shows what sparse attention does, however short the trace
    const int clusters = std::max(1, index_.num_cluster_slots());
    quorum::Decoder decoder(shape_, decode_options, {1, trace_.num_tokens, clusters, executor_.num_workers()});
    TargetRun run;
    run.target = target;
    run.by_error = options.by_error;
    for (int query = 0; query < trace_.num_queries; ++query) decode_query(decoder, query, run);
    return run;
  }

 private:
  static quorum::IndexOptions index_options(const Options& options) {
    quorum::IndexOptions index_options;
    index_options.cluster_size = options.cluster_size;
    index_options.residual_codes = options.unit != quorum::ReadUnit::clusters;
    index_options.seed = options.seed;
    return index_options;
  }

  void decode_query(quorum::Decoder& decoder, int query, TargetRun& run) {
    const KvCacheView kv = kv_.first(trace_.query_positions[static_cast<size_t>(query)] + 1);
    QueryView row = trace_.query_view();
    row.data += query * row.row_stride;
    row.num_rows = 1;
    const quorum::SequenceView sequence{kv, &index_.view()};
    cold_caches_.clean(executor_);
    run.dense_ms.push_back(milliseconds_of([&] { quorum::dense_attention(shape_, row, {&kv, 1}, dense_.view(), executor_); }));
    cold_caches_.clean(executor_);
    quorum::DecodeStatus status = quorum::DecodeStatus::ok;
    run.sparse_ms.push_back(milliseconds_of([&] { status = decoder.decode(row, {&sequence, 1}, sparse_.view(), reports_, executor_); }));
    const quorum::SelectionOutput selection{tokens_.data(), counts_.data(), trace_.num_tokens};
    if (status == quorum::DecodeStatus::ok) status = decoder.select(row, {&sequence, 1}, selection, {}, executor_);
    if (status != quorum::DecodeStatus::ok) throw std::runtime_error(quorum::status_message(status));
    quorum::sparse_attention(shape_, row, {&kv, 1}, selection.view(1, shape_.num_kv_heads), chosen_.view(), executor_);
    for (int head = 0; head < shape_.num_qo_heads; ++head) run.cases.push_back(compare(query, head, run.by_error));
  }

  Case compare(int query, int head, bool by_error) const {
    const quorum::HeadReport& report = reports_[static_cast<size_t>(head)];
    Case result;
    result.query = query;
    result.kv_head = shape_.kv_head_of(head);
    result.qo_head = head;
    result.tokens = report.tokens_read;
    result.coded = report.tokens_coded;
    result.path = report.path;
    if (by_error) result.error_estimate = report.error_estimate;
    result.bytes_read = report.bytes_read;
    result.bytes_dense = report.bytes_dense;
    result.attained = std::exp(double(chosen_.lse[static_cast<size_t>(head)]) - double(dense_.lse[static_cast<size_t>(head)]));
    result.estimate = report.attained_ratio_estimate;
    if (report.confidence > 0.0f) result.bound = report.attained_ratio_lower_bound;
    const auto offset = static_cast<size_t>(head * shape_.head_dim);
    result.error = quorum::bench::mean_error(1, shape_.head_dim, sparse_.output.data() + offset, dense_.output.data() + offset);
    return result;
  }

  const quorum::io::Trace& trace_;
  quorum::Executor& executor_;
  quorum::AttentionShape shape_;
  std::vector<std::shared_ptr<void>> memory_;
  // Not in the mapped file, whose small pages would make dense attention several times slower than it is in an engine.
  KvCacheView kv_;
  quorum::ClusterIndex index_;
  StepResult dense_, sparse_, chosen_;
  std::vector<quorum::HeadReport> reports_;
  std::vector<int32_t> tokens_, counts_;
  quorum::bench::ColdCaches cold_caches_;
};

}  // namespace

TraceReport measure(const quorum::io::Trace& trace, const Options& options, quorum::Executor& executor,
                    void (*progress)(const std::string&)) {
  TraceReport report;
  report.trace = trace.name;
  report.model = trace.model;
  report.layer = trace.layer;
  report.num_tokens = trace.num_tokens;
  report.num_queries = trace.num_queries;
  report.num_qo_heads = trace.num_qo_heads;
  report.num_kv_heads = trace.num_kv_heads;
  report.head_dim = trace.head_dim;
  report.kv_bytes = int64_t(trace.num_tokens) * trace.num_kv_heads * trace.head_dim * 4;
  Bench bench(trace, options, executor);
  progress(trace.name + ": building the index over a context of " + std::to_string(bench.indexed_end()) + " tokens");
  report.build_ms = bench.build();
  report.index_bytes = bench.index().bytes();
  report.indexed_tokens = bench.index().view().num_indexed;
  for (const double target : options.targets) {
    progress(trace.name + ": decoding " + std::to_string(trace.num_queries) + " queries, dense and sparse, at " +
             (options.by_error ? "error " : "target ") + target_text(target, options.by_error));
    report.runs.push_back(bench.run(target, options));
  }
  summarize(report);
  return report;
}

}  // namespace decode_trace
