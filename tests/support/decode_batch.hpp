// A batch of sequences with caches, indexes and queries, and the calls and references that tests of decoding make of it.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

namespace quorum::test {

// An index without residual codes: whole clusters are read.
inline IndexOptions cluster_index_options() {
  IndexOptions options;
  options.cluster_size = 16;
  options.residual_codes = false;
  return options;
}

struct BatchSpec {
  AttentionShape shape{4, 2, 64, 0.0f};
  std::vector<int> lengths{1500};
  ElementType type = ElementType::f16;
  ElementType query_type = ElementType::f32;
  Layout layout = Layout::nhd;
  IndexOptions index = cluster_index_options();  // assign {} for the defaults, with residual codes
  bool build_indexes = true;
  int num_prompt_queries = 0;  // 0: the index is built without queries
  uint64_t seed = 1;
  float sharpness = 3.0f;
  float key_noise = 0.3f;
};

// Sequences whose indexes have the defaults, with residual codes.
inline BatchSpec coded_batch(std::vector<int> lengths) {
  BatchSpec spec;
  spec.lengths = std::move(lengths);
  spec.index = {};
  return spec;
}

// Sequences whose keys and values are of a type, with or without residual codes.
inline BatchSpec batch_of_type(ElementType type, const AttentionShape& shape, std::vector<int> lengths, bool codes) {
  BatchSpec spec;
  if (codes) spec.index = {};
  spec.shape = shape;
  spec.lengths = std::move(lengths);
  spec.type = type;
  return spec;
}
// Single tokens or whole clusters, however short a sequence is.
inline DecodeOptions unit_options(bool codes, float target) {
  DecodeOptions options;
  options.unit = codes ? ReadUnit::tokens : ReadUnit::clusters;
  options.dense_below = 0;
  options.target_ratio = target;
  return options;
}

// Output and lse lie between sentinels, so that a write outside of them, or none at all, shows.
struct DecodeResult {
  static constexpr float kSentinel = -12345.0f;
  DecodeStatus status = DecodeStatus::ok;
  std::vector<float> output, lse;
  std::vector<HeadReport> reports;

  DecodeResult(const AttentionShape& shape, int num_sequences)
      : output(size_t(num_sequences * shape.num_qo_heads * shape.head_dim), kSentinel),
        lse(size_t(num_sequences * shape.num_qo_heads), kSentinel),
        reports(size_t(num_sequences * shape.num_qo_heads), untouched_report()) {}
  static HeadReport untouched_report() {
    HeadReport report;
    report.tokens_read = report.rounds = -77;
    return report;
  }
  AttentionOutput out() { return {output.data(), lse.data()}; }
  bool untouched() const {
    const auto is_sentinel = [](float x) { return x == kSentinel; };
    return std::all_of(output.begin(), output.end(), is_sentinel) && std::all_of(lse.begin(), lse.end(), is_sentinel) &&
           std::all_of(reports.begin(), reports.end(), [](const HeadReport& r) { return r.tokens_read == -77 && r.rounds == -77; });
  }
  // NaN equals NaN here: results are compared byte by byte.
  bool same_bits(const DecodeResult& other) const {
    return output.size() == other.output.size() && std::memcmp(output.data(), other.output.data(), output.size() * 4) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * 4) == 0;
  }
};

struct SelectResult {
  DecodeStatus status = DecodeStatus::ok;
  std::vector<std::vector<int>> rows;  // [num_sequences * num_kv_heads]
  std::vector<HeadReport> reports;
};

// ClusterIndex::build and append. They and the members of Batch without a body here are compiled once, in
// tests/cpu/decode_batch_test.cpp: what they instantiate of Eigen takes a compiler longer than a whole test file.
void build_index(ClusterIndex& index, const KvCacheView& kv, const QueryView* prompt_queries = nullptr);
void append_index(ClusterIndex& index, const KvCacheView& kv);

class Batch {
 public:
  explicit Batch(const BatchSpec& spec);

  // Builds every index anew, after a change of the caches.
  void build_indexes();

  const BatchSpec& spec() const { return spec_; }
  const AttentionShape& shape() const { return spec_.shape; }
  int num_sequences() const { return int(caches_.size()); }
  TestCache& cache(int sequence) { return *caches_[size_t(sequence)]; }
  TestQueries& queries() { return *queries_; }
  QueryView query_view() const { return queries_->view(); }
  ClusterIndex& index(int sequence) { return *indexes_[size_t(sequence)]; }

  std::vector<SequenceView> sequences() const {
    std::vector<SequenceView> out;
    for (size_t s = 0; s < caches_.size(); ++s) out.push_back({caches_[s]->view(), &indexes_[s]->view()});
    return out;
  }
  DecodeLimits limits(int num_workers = 1) const {
    return {num_sequences(), std::max(1, *std::max_element(spec_.lengths.begin(), spec_.lengths.end())), 0, num_workers};
  }

  // A decoder planned for this batch alone, and one call of it. Without an executor: serially.
  DecodeResult decode(const DecodeOptions& options, Executor& executor) const;
  DecodeResult decode(const DecodeOptions& options) const;
  SelectResult select(const DecodeOptions& options, Executor& executor) const;
  SelectResult select(const DecodeOptions& options) const;
  DecodeResult dense(Executor& executor) const;

  // What the reference says of one query head.
  reference::Attention attention(int sequence, int qo_head, const std::vector<int>& tokens) const {
    const TestCache& cache = *caches_[size_t(sequence)];
    const int kv_head = qo_head / (spec_.shape.num_qo_heads / spec_.shape.num_kv_heads);
    return reference::attention(queries_->get(sequence, qo_head).data(), cache.keys(kv_head), cache.values(kv_head), scale(), tokens);
  }
  reference::Attention attention(int sequence, int qo_head) const {
    return attention(sequence, qo_head, reference::all_tokens(caches_[size_t(sequence)]->shape().num_tokens));
  }
  std::vector<double> scores(int sequence, int qo_head) const {
    const int kv_head = qo_head / (spec_.shape.num_qo_heads / spec_.shape.num_kv_heads);
    return reference::scores(queries_->get(sequence, qo_head).data(), caches_[size_t(sequence)]->keys(kv_head), scale());
  }
  const reference::Matrix& values(int sequence, int kv_head) const { return caches_[size_t(sequence)]->values(kv_head); }
  double attained_ratio(int sequence, int qo_head, const std::vector<int>& tokens) const {
    const int kv_head = qo_head / (spec_.shape.num_qo_heads / spec_.shape.num_kv_heads);
    return reference::attained_ratio(queries_->get(sequence, qo_head).data(), caches_[size_t(sequence)]->keys(kv_head), scale(), tokens);
  }

 private:
  double scale() const {
    return spec_.shape.sm_scale != 0.0f ? double(spec_.shape.sm_scale) : 1.0 / std::sqrt(double(spec_.shape.head_dim));
  }

  BatchSpec spec_;
  std::vector<std::unique_ptr<TestCache>> caches_;
  std::vector<std::vector<float>> prompts_;
  std::unique_ptr<TestQueries> queries_;
  std::vector<std::unique_ptr<ClusterIndex>> indexes_;
};

// Largest error of outputs and lse against the reference, in units of the tolerance. rows: tokens of each sequence and KV head, null: all.
inline double reference_error(const Batch& batch, const DecodeResult& result, const std::vector<std::vector<int>>* rows = nullptr) {
  const AttentionShape& shape = batch.shape();
  double worst = 0.0;
  for (int s = 0; s < batch.num_sequences(); ++s)
    for (int h = 0; h < shape.num_qo_heads; ++h) {
      const auto row = size_t(s * shape.num_qo_heads + h);
      const auto want =
          rows == nullptr ? batch.attention(s, h) : batch.attention(s, h, (*rows)[size_t(s * shape.num_kv_heads + shape.kv_head_of(h))]);
      const double tolerance = attention_tolerance(shape.head_dim, batch.spec().lengths[size_t(s)], 40.0);
      const double output = largest_difference(result.output.data() + row * size_t(shape.head_dim), want.output.data(), shape.head_dim);
      const double lse = largest_difference(&result.lse[row], &want.lse, 1);
      worst = larger_error(worst, larger_error(output, lse) / tolerance);
    }
  return worst;
}

// Decodes with the rest dropped; reference_error() over what select chooses, infinite if report and selection disagree.
inline double error_over_selection(const Batch& batch, const DecodeOptions& wanted) {
  DecodeOptions options = wanted;
  options.tail = Tail::drop;
  const auto result = batch.decode(options);
  const auto selected = batch.select(options);
  if (result.status != DecodeStatus::ok || selected.status != DecodeStatus::ok) return double(kInfinity);
  const int heads = batch.shape().num_qo_heads;
  for (size_t i = 0; i < result.reports.size(); ++i) {
    const size_t row = i / size_t(heads) * size_t(batch.shape().num_kv_heads) + size_t(batch.shape().kv_head_of(int(i) % heads));
    if (result.reports[i].tokens_read != int(selected.rows[row].size())) return double(kInfinity);
  }
  return reference_error(batch, result, &selected.rows);
}

}  // namespace quorum::test
