// Quorum's side of a comparison: dense and sparse steps on cold caches, and what they are compared by. Sparse means whole clusters of about
// 16 tokens, without residual codes: what the figures in docs/performance.md were measured with.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "bench/support/cold_caches.hpp"
#include "bench/support/measure.hpp"
#include "bench/support/workload.hpp"

namespace quorum::bench {

// Of the tokens: what the sparse steps read.
inline constexpr int kBudgetPercent = 5;

constexpr IndexOptions whole_clusters() {
  IndexOptions options;
  options.cluster_size = 16;
  options.residual_codes = false;
  return options;
}

// "8k", "32k", "128k": the cache of a layer like Llama 3 8B's. The content is the same for both layouts.
inline Workload llama8b_workload(const std::string& size, bool head_major) {
  int tokens = 0;
  for (const auto& [name, count] : {std::pair{"8k", 8192}, {"32k", 32768}, {"128k", 131072}})
    if (size == name) tokens = count;
  if (tokens == 0) throw std::runtime_error("a size must be 8k, 32k or 128k, got " + size);
  return clustered_workload("llama8b_" + size, {tokens, 8, 4, 128, head_major, 16, 1});
}

// An index on every token but the newest, as a caller would build it.
inline ClusterIndex build_index(const Workload& workload) {
  ThreadExecutor executor(int(std::max(1u, std::thread::hardware_concurrency())));
  ClusterIndex index(workload.shape, whole_clusters());
  index.build(workload.kv.first(workload.indexed_tokens), workload.prompt_queries ? &*workload.prompt_queries : nullptr, executor);
  return index;
}

// Steps of one workload with a number of threads. The workload and the index must outlive it.
class Ours {
 public:
  Ours(const Workload& workload, const ClusterIndex& index, int threads)
      : workload_(workload),
        index_(index),
        executor_(threads),
        decoder_(workload.shape, options(workload), {1, workload.kv.num_tokens, index.num_cluster_slots(), threads}),
        reports_(size_t(workload.shape.num_qo_heads)),
        dense_(size_t(workload.shape.num_qo_heads * workload.shape.head_dim)),
        sparse_(dense_.size()) {}

  int num_queries() const { return int(workload_.visible_tokens.size()); }
  // Errors against the last dense step: of an output, and of the last sparse step.
  double error_of(const float* output) const {
    return mean_error(workload_.shape.num_qo_heads, workload_.shape.head_dim, output, dense_.data());
  }
  double sparse_error() const { return error_of(sparse_.data()); }
  void clean_caches() { cold_.clean(executor_); }

  // Both in seconds; the output stays until the next such step.
  double dense_step(int query) {
    const KvCacheView kv = workload_.visible(query);
    clean_caches();
    return seconds_of([&] { dense_attention(workload_.shape, workload_.query(query), {&kv, 1}, {dense_.data(), nullptr}, executor_); });
  }
  double sparse_step(int query) {
    const SequenceView sequence{workload_.visible(query), &index_.view()};
    clean_caches();
    DecodeStatus status = DecodeStatus::ok;
    const double seconds = seconds_of([&] {
      status = decoder_.decode(workload_.query(query), {&sequence, 1}, {sparse_.data(), nullptr}, reports_, executor_);
    });
    if (status != DecodeStatus::ok) throw std::runtime_error(status_message(status));
    return seconds;
  }

 private:
  static DecodeOptions options(const Workload& workload) {
    DecodeOptions options;
    options.unit = ReadUnit::clusters;
    options.fixed_budget = int(int64_t(workload.kv.num_tokens) * kBudgetPercent / 100);
    return options;
  }

  const Workload& workload_;
  const ClusterIndex& index_;
  ThreadExecutor executor_;
  ColdCaches cold_;
  Decoder decoder_;
  std::vector<HeadReport> reports_;
  std::vector<float> dense_, sparse_;
};

}  // namespace quorum::bench
