// Whole steps on recorded layers of real models against attention in f64: dense, certified, and with a target error.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"
#include "quorum/io/trace.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/recorded_traces.hpp"

namespace quorum::test {
namespace {

constexpr int kNumQueries = 3;  // the last recorded ones

reference::Matrix rows_of(const io::TraceRows& rows, int head) {
  reference::Matrix out(rows.num_rows, rows.head_dim);
  for (int i = 0; i < rows.num_rows; ++i)
    for (int c = 0; c < rows.head_dim; ++c)
      out.row(i)[c] = reference::element(rows.data, reference_format(rows.type), (int64_t(i) * rows.num_heads + head) * rows.head_dim + c);
  return out;
}

// A layer with an index over all that its last queries see, and what attention in f64 makes of them.
class RecordedLayer {
 public:
  explicit RecordedLayer(const std::string& path)
      : trace_(io::Trace::open(path)),
        shape_{trace_.num_qo_heads, trace_.num_kv_heads, trace_.head_dim, trace_.sm_scale},
        index_(shape_, {}) {
    const QueryView prompt = trace_.prompt_query_view();
    index_.build(trace_.kv_cache().first(trace_.query_positions[size_t(first_query())] - 32), prompt.num_rows > 0 ? &prompt : nullptr,
                 executor_);
    for (int h = 0; h < trace_.num_kv_heads; ++h) {
      const reference::Matrix keys = rows_of(trace_.keys, h), values = rows_of(trace_.values, h);
      for (int q = 0; q < kNumQueries; ++q) {
        const std::vector<int> seen = reference::all_tokens(trace_.query_positions[size_t(first_query() + q)] + 1);
        for (int g = 0; g < shape_.group_size(); ++g) {
          const int head = h * shape_.group_size() + g;
          const reference::Matrix query = rows_of(trace_.queries, head);
          want_.push_back(reference::attention(query.row(first_query() + q), keys, values, double(trace_.sm_scale), seen));
        }
      }
    }
  }

  const AttentionShape& shape() const { return shape_; }
  const reference::Attention& want(int query, int head) const {
    const int group = shape_.group_size();
    return want_[size_t((head / group * kNumQueries + query) * group + head % group)];
  }

  // One step of one of the queries.
  struct Result {
    std::vector<float> output, lse;
    std::vector<HeadReport> reports;
  };
  Result decode(int query, const DecodeOptions& options) {
    Result result = empty();
    const KvCacheView kv = cache(query);
    Decoder decoder(shape_, options, {1, trace_.num_tokens, index_.num_cluster_slots(), executor_.num_workers()});
    const SequenceView sequence{kv, &index_.view()};
    REQUIRE(decoder.decode(row(query), {&sequence, 1}, {result.output.data(), result.lse.data()}, result.reports, executor_) ==
            DecodeStatus::ok);
    return result;
  }
  Result dense(int query) {
    Result result = empty();
    const KvCacheView kv = cache(query);
    dense_attention(shape_, row(query), {&kv, 1}, {result.output.data(), result.lse.data()}, executor_);
    return result;
  }

  // |output - f64| / |f64| of one head.
  double error(int query, int head, const Result& result) const {
    const std::vector<double>& expected = want(query, head).output;
    return relative_error(&result.output[size_t(head) * expected.size()], expected.data(), int64_t(expected.size()));
  }

 private:
  int first_query() const { return trace_.num_queries - kNumQueries; }
  KvCacheView cache(int query) const { return trace_.kv_cache().first(trace_.query_positions[size_t(first_query() + query)] + 1); }
  QueryView row(int query) const {
    QueryView view = trace_.query_view();
    view.data += (first_query() + query) * view.row_stride;
    view.num_rows = 1;
    return view;
  }
  Result empty() const {
    const auto heads = size_t(shape_.num_qo_heads);
    return {std::vector<float>(heads * size_t(shape_.head_dim)), std::vector<float>(heads), std::vector<HeadReport>(heads)};
  }

  io::Trace trace_;
  AttentionShape shape_;
  ThreadExecutor executor_{2};
  ClusterIndex index_;
  std::vector<reference::Attention> want_;  // [num_kv_heads][kNumQueries][group]
};

void check_layer(const std::string& path) {
  CAPTURE(path);
  RecordedLayer layer(path);
  DecodeOptions certified;  // without the rest, lse is the weight that was read
  certified.target_ratio = 0.9f;
  certified.certificate.enabled = true;
  certified.tail = Tail::drop;
  DecodeOptions by_error;
  by_error.target_error = 0.05f;
  double sum_of_errors = 0.0, bytes = 0.0, bytes_dense = 0.0;
  const int heads = layer.shape().num_qo_heads;
  for (int query = 0; query < kNumQueries; ++query) {
    const auto dense = layer.dense(query), read = layer.decode(query, certified), sparse = layer.decode(query, by_error);
    for (int head = 0; head < heads; ++head) {
      CAPTURE(query);
      CAPTURE(head);
      CHECK(layer.error(query, head, dense) <= 1e-3);
      CHECK(std::fabs(double(dense.lse[size_t(head)]) - layer.want(query, head).lse) <= 1e-3);
      const HeadReport& report = read.reports[size_t(head)];
      const double attained = std::exp(double(read.lse[size_t(head)]) - layer.want(query, head).lse);
      CHECK(attained >= 0.9);
      CHECK(double(report.attained_ratio_lower_bound) <= attained + 0.01);
      CHECK(std::fabs(double(report.attained_ratio_estimate) - attained) <= 0.05);
      const HeadReport& own = sparse.reports[size_t(head)];
      CHECK(own.error_estimate <= 0.05f);
      CHECK(layer.error(query, head, sparse) <= 0.3);  // one head of one step; the mean is what the target is about
      sum_of_errors += layer.error(query, head, sparse);
      bytes += double(own.bytes_read);
      bytes_dense += double(own.bytes_dense);
    }
  }
  CHECK(sum_of_errors / (kNumQueries * heads) <= 0.08);
  CHECK(bytes <= 0.15 * bytes_dense);
}

TEST_CASE("a recorded layer: the one of the repository") { check_layer(kExampleTrace); }

TEST_CASE("a recorded layer: SmolLM2 at 8192 and Gemma at 32768 tokens, where they are") {
  for (const std::string& path : shared_traces()) check_layer(path);
}

}  // namespace
}  // namespace quorum::test
