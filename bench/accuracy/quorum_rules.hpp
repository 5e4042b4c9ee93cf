// quorum's own rules, through the library's index and decoder, measured by the same truth and accounting as the baselines.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "bench/accuracy/record.hpp"
#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"

namespace accuracy {

// What of a KV head's truth the decoder's results are held against.
struct HeadReference {
  Matrix dense;  // [rows][head_dim]
  Vector lse;    // [rows], natural log of the sum of exp(score)

  explicit HeadReference(const HeadTruth& head) : dense(head.dense), lse(head.top.array() + head.total.array().log()) {}
};

// One rule at one target, before its tail is known.
struct QuorumRule {
  std::string name;
  quorum::DecodeOptions options;
};

// Decodes every query of a trace with the library.
class QuorumStudy {
 public:
  // references: [num_kv_heads]; with_codes: the index has residual codes and larger clusters, else a diagonal variance.
  QuorumStudy(const quorum::io::Trace& trace, const std::vector<HeadReference>& references, bool with_codes, int seed,
              quorum::Executor& executor, std::vector<Record>& records)
      : trace_(trace),
        references_(references),
        seed_(seed),
        executor_(executor),
        records_(records),
        shape_{trace.num_qo_heads, trace.num_kv_heads, trace.head_dim, trace.sm_scale},
        index_(shape_, index_options(with_codes, seed)) {
    const quorum::QueryView prompt = trace.prompt_query_view();
    index_.build(trace.kv_cache().first(num_built()), trace.num_prompt_queries > 0 ? &prompt : nullptr, executor);
    for (const int position : trace.query_positions) sequences_.push_back({trace.kv_cache().first(position + 1), &index_.view()});
  }

  // One set per group: the rest dropped, estimated and calibrated from the same sets.
  void run_group(const std::vector<double>& targets) {
    for (const double p : targets) {
      const quorum::DecodeOptions options = base_options(p, quorum::SelectionScope::group, quorum::VarianceModel::shared);
      const Decoded dropped = decode(options, quorum::Tail::drop);
      add("quorum_drop", options, dropped, dropped);
      add("quorum_estimated", options, decode(options, quorum::Tail::estimated), dropped);
      add("quorum_calibrated", options, decode(options, quorum::Tail::calibrated), dropped);
    }
  }

  // One set per group, clusters with a diagonal variance instead of the shared one, calibrated tail.
  void run_diagonal(const std::vector<double>& targets) {
    for (const double p : targets) {
      const auto options = base_options(p, quorum::SelectionScope::group, quorum::VarianceModel::diagonal);
      add("quorum_diagonal", options, decode(options, quorum::Tail::calibrated), decode(options, quorum::Tail::drop));
    }
  }

  // One set per group, calibrated tail, read on until the certified bound meets the target.
  void run_certified(const std::vector<double>& targets) {
    for (const double p : targets) {
      auto options = base_options(p, quorum::SelectionScope::group, quorum::VarianceModel::shared);
      options.certificate.enabled = true;
      add("quorum_certified", options, decode(options, quorum::Tail::calibrated), decode(options, quorum::Tail::drop));
    }
  }

  // Tokens by residual code, one set per group: by target error, by budget and by target ratio, with and without certificate.
  void run_codes() {
    using quorum::SelectionScope, quorum::VarianceModel;
    for (const double error : {0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.25}) {
      auto options = base_options(1.0, SelectionScope::group, VarianceModel::shared);
      options.target_error = float(error);
      add("quorum_codes", options, decode(options, quorum::Tail::estimated), decode(options, quorum::Tail::drop));
    }
    for (const int tokens : {16, 32, 64, 128, 256, 512, 1024, 2048}) {
      auto options = base_options(1.0, SelectionScope::group, VarianceModel::shared);
      options.fixed_budget = tokens;
      add("quorum_codes_fixed", options, decode(options, quorum::Tail::estimated), decode(options, quorum::Tail::drop));
    }
    for (const double p : {0.3, 0.5, 0.7, 0.8, 0.9, 0.95}) {
      auto options = base_options(p, SelectionScope::group, VarianceModel::shared);
      add("quorum_codes_ratio", options, decode(options, quorum::Tail::estimated), decode(options, quorum::Tail::drop));
      options.certificate.enabled = true;
      add("quorum_codes_certified", options, decode(options, quorum::Tail::estimated), decode(options, quorum::Tail::drop));
    }
    for (const double p : {0.5, 0.8, 0.9, 0.95}) {
      auto options = base_options(p, SelectionScope::head, VarianceModel::shared);
      add("quorum_codes_own", options, decode(options, quorum::Tail::estimated), decode(options, quorum::Tail::drop));
      options.certificate.enabled = true;
      add("quorum_codes_own_certified", options, decode(options, quorum::Tail::estimated), decode(options, quorum::Tail::drop));
    }
  }

  // Each query head its own set, with and without certificate, for both variance models and, without certificate, every tail.
  void run_own(const std::vector<double>& targets) {
    for (const double p : targets) {
      for (const auto variance : {quorum::VarianceModel::shared, quorum::VarianceModel::diagonal}) {
        auto options = base_options(p, quorum::SelectionScope::head, variance);
        const std::string ending = variance == quorum::VarianceModel::shared ? "" : "_diagonal";
        const Decoded dropped = decode(options, quorum::Tail::drop);
        add("quorum_own" + ending, options, dropped, dropped);
        add("quorum_own" + ending + "_estimated", options, decode(options, quorum::Tail::estimated), dropped);
        add("quorum_own" + ending + "_calibrated", options, decode(options, quorum::Tail::calibrated), dropped);
        options.certificate.enabled = true;
        for (const float confidence : {0.95f, 0.5001f}) {  // z = 1.645 and, as confidence must exceed 0.5, z = 0.00025
          options.certificate.confidence = confidence;
          const Decoded certified = decode(options, quorum::Tail::drop);
          add("quorum_own_certified" + ending + (confidence > 0.9f ? "" : "_z0"), options, certified, certified);
        }
      }
    }
  }

 private:
  // Results of all queries, [num_queries][num_qo_heads].
  struct Decoded {
    Matrix output;
    std::vector<float> lse;
    std::vector<quorum::HeadReport> reports;
    bool certified = false;
  };

  static quorum::IndexOptions index_options(bool with_codes, int seed) {
    quorum::IndexOptions options;
    options.residual_codes = with_codes;
    if (!with_codes) {
      options.cluster_size = kClusterSize;
      options.variance = quorum::VarianceModel::diagonal;  // serves `shared` too; bytes are counted here, for the model in use
    }
    options.segment_tokens = kSegmentTokens;
    options.iterations = kKmeansIterations;
    options.num_sink_tokens = kNumSinkTokens;
    options.seed = uint64_t(seed) + 1;
    return options;
  }
  quorum::DecodeOptions base_options(double target_ratio, quorum::SelectionScope scope, quorum::VarianceModel variance) const {
    quorum::DecodeOptions options;
    options.target_ratio = float(target_ratio);
    options.scope = scope;
    options.variance = variance;
    options.dense_below = 0;
    options.seed = uint64_t(seed_) + 1;
    return options;
  }
  int num_built() const { return trace_.num_tokens - trace_.num_queries; }

  Decoded decode(quorum::DecodeOptions options, quorum::Tail tail) {
    options.tail = tail;
    const quorum::DecodeLimits limits{trace_.num_queries, trace_.num_tokens, index_.num_cluster_slots(), executor_.num_workers()};
    quorum::Decoder decoder(shape_, options, limits);
    const size_t rows = size_t(trace_.num_queries) * size_t(trace_.num_qo_heads);
    Decoded result{Matrix(Eigen::Index(rows), trace_.head_dim), std::vector<float>(rows), std::vector<quorum::HeadReport>(rows),
                   options.certificate.enabled};
    const auto status =
        decoder.decode(trace_.query_view(), sequences_, {result.output.data(), result.lse.data()}, result.reports, executor_);
    if (status != quorum::DecodeStatus::ok) throw quorum::Error(quorum::ErrorCode::invalid_argument, quorum::status_message(status));
    return result;
  }

  // Records errors of `result`; attained ratios come from `dropped`, the same sets with the rest dropped, where lse is of the read tokens.
  void add(const std::string& rule, const quorum::DecodeOptions& options, const Decoded& result, const Decoded& dropped) {
    const int group = shape_.group_size();
    for (int kv_head = 0; kv_head < trace_.num_kv_heads; ++kv_head) {
      Record record{trace_.name, rule, parameter_of(options), seed_, {}, {}, {}, {}};
      for (int g = 0; g < group; ++g) {
        for (int query = 0; query < trace_.num_queries; ++query) {
          const size_t at = size_t(query * trace_.num_qo_heads + kv_head * group + g);
          const int row = g * trace_.num_queries + query;
          const auto dense = references_[size_t(kv_head)].dense.row(row);
          record.quality.error.push_back(double((result.output.row(Eigen::Index(at)) - dense).norm() / dense.norm()));
          record.quality.attained.push_back(std::exp(double(dropped.lse[at]) - references_[size_t(kv_head)].lse[row]));
          if (g == 0 || options.scope == quorum::SelectionScope::head) count(kv_head, query, result.reports[at], options, record);
        }
      }
      records_.push_back(std::move(record));
    }
  }

  static Parameter parameter_of(const quorum::DecodeOptions& options) {
    const auto rounded = [](float value) { return std::round(double(value) * 1e6) / 1e6; };
    if (options.fixed_budget > 0) return budget(options.fixed_budget);
    return options.target_error > 0.0f ? target_error(rounded(options.target_error)) : target(rounded(options.target_ratio));
  }

  // Tokens and bytes by the accounting of the baselines: 4 d a token, d + 4 a cluster (a diagonal variance costs as much again), d / 8 + 2
  // a coded token, 2 d a sampled key, d a value mean. Own sets are for hit rates: there a sampled key counts as half a token.
  void count(int kv_head, int query, const quorum::HeadReport& report, const quorum::DecodeOptions& options, Record& record) const {
    const double d = trace_.head_dim, always = kNumSinkTokens + trace_.query_positions[size_t(query)] + 1 - num_built();
    const double indexed = report.tokens_read - always;
    const bool counts_sample = options.certificate.enabled && options.scope == quorum::SelectionScope::head;
    record.tokens.push_back(indexed + (counts_sample ? report.tokens_sampled / 2.0 : 0.0));
    const double per_cluster = options.variance == quorum::VarianceModel::diagonal ? 2 * (d + 4) : d + 4;
    const double bytes = (indexed + kNumSinkTokens + trace_.num_queries / 2.0) * 4 * d + num_clusters(kv_head) * per_cluster +
                         report.tokens_sampled * 2 * d + report.tokens_coded * (d / 8 + 2) + report.clusters_used * d;
    record.share.push_back(bytes / (trace_.num_tokens * 4 * d));
    record.reported_share.push_back(double(report.bytes_read) / double(report.bytes_dense));
  }

  // Clusters that hold tokens.
  int num_clusters(int kv_head) const {
    const quorum::ClusterHeadView& head = index_.view().heads[kv_head];
    int count = 0;
    for (int c = 0; c < head.num_cluster_slots(); ++c) {
      const quorum::ClusterRef cluster = quorum::cluster_at(head, c);
      count += cluster.segment->size[cluster.local] > 0.0f ? 1 : 0;
    }
    return count;
  }

  const quorum::io::Trace& trace_;
  const std::vector<HeadReference>& references_;
  int seed_;
  quorum::Executor& executor_;
  std::vector<Record>& records_;
  quorum::AttentionShape shape_;
  quorum::ClusterIndex index_;
  std::vector<quorum::SequenceView> sequences_;  // [num_queries]
};

}  // namespace accuracy
