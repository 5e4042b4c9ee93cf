#include "recorded_layer.hpp"

#include <cmath>
#include <cstdio>

#include "quorum/io/trace.hpp"
#include "quorum/quorum.hpp"

struct RecordedLayer::Content {
  quorum::io::Trace trace;
  quorum::AttentionShape shape;
  quorum::ThreadExecutor executor{2};
  quorum::ClusterIndex index;

  explicit Content(const std::string& path)
      : trace(quorum::io::Trace::open(path)),
        shape{trace.num_qo_heads, trace.num_kv_heads, trace.head_dim, trace.sm_scale},
        index(shape, index_options()) {
    const quorum::QueryView prompt_queries = trace.prompt_query_view();
    index.build(trace.kv_cache(), &prompt_queries, executor);
  }
  // Whole clusters are read on a GPU: smaller ones, and no codes.
  static quorum::IndexOptions index_options() {
    quorum::IndexOptions options;
    options.cluster_size = 16;
    options.residual_codes = false;
    options.window_tokens = 64;
    return options;
  }
};

RecordedLayer::RecordedLayer(const std::string& path) : content_(std::make_unique<Content>(path)) {}
RecordedLayer::~RecordedLayer() = default;

quorum::AttentionShape RecordedLayer::shape() const { return content_->shape; }
int RecordedLayer::num_tokens() const { return content_->trace.num_tokens; }
const std::byte* RecordedLayer::keys() const { return content_->trace.keys.data; }
const std::byte* RecordedLayer::values() const { return content_->trace.values.data; }
const std::byte* RecordedLayer::query() const {
  const quorum::io::TraceRows& queries = content_->trace.queries;
  return queries.data + (queries.num_rows - 1) * queries.row_bytes();
}
quorum::QueryView RecordedLayer::prompt_queries() const { return content_->trace.prompt_query_view(); }
quorum::IndexOptions RecordedLayer::index_options() const { return content_->index.options(); }

quorum::DecodeOptions RecordedLayer::options() const {
  quorum::DecodeOptions options;
  options.target_ratio = 0.9f;
  options.certificate.enabled = true;
  return options;
}

namespace {

void print(const char* where, const std::vector<quorum::HeadReport>& reports, int group, int num_tokens) {
  for (size_t head = 0; head < reports.size(); head += size_t(group)) {
    const quorum::HeadReport& report = reports[head];
    std::printf("%s: %4d of %d tokens, %4.1f %% of the bytes; attained %.3f, at least %.3f\n", where, report.tokens_read, num_tokens,
                100.0 * double(report.bytes_read) / double(report.bytes_dense), double(report.attained_ratio_estimate),
                double(report.attained_ratio_lower_bound));
  }
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double(a[i] - b[i]), 2);
    norm += std::pow(double(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace

bool RecordedLayer::compare(const std::vector<float>& output, const std::vector<quorum::HeadReport>& reports) const {
  const quorum::AttentionShape& shape = content_->shape;
  const quorum::KvCacheView kv = content_->trace.kv_cache();
  quorum::QueryView query_view = content_->trace.query_view();
  query_view.data = query();
  query_view.num_rows = 1;
  const quorum::SequenceView sequence{kv, &content_->index.view()};
  quorum::Decoder decoder(shape, options(), {1, kv.num_tokens, content_->index.num_cluster_slots(), content_->executor.num_workers()});
  std::vector<float> cpu(output.size()), dense(output.size());
  std::vector<quorum::HeadReport> cpu_reports(reports.size());
  decoder.decode(query_view, {&sequence, 1}, {cpu.data(), nullptr}, cpu_reports, content_->executor);
  quorum::dense_attention(shape, query_view, {&kv, 1}, {dense.data(), nullptr}, content_->executor);
  print("GPU", reports, shape.group_size(), kv.num_tokens);
  print("CPU", cpu_reports, shape.group_size(), kv.num_tokens);
  const double on_gpu = relative_difference(output, dense), on_cpu = relative_difference(cpu, dense);
  std::printf("relative difference from dense attention: %.3f on the GPU, %.3f on the CPU\n", on_gpu, on_cpu);
  return on_gpu < 0.1 && on_cpu < 0.1;
}
