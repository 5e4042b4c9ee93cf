// A batch that both backends decode: caches, queries and indexes on the host, the CPU's results, and the reference's. The CPU backend is
// behind this header, because its own do not go through nvcc.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/core/decode_report.hpp"
#include "quorum/core/options.hpp"
#include "quorum/core/paged_kv_view.hpp"
#include "quorum/core/shape.hpp"

namespace quorum::test {

enum class CacheLayout { hnd, nhd, paged_table, paged_indptr };

struct CaseOptions {
  AttentionShape shape{8, 2, 64, 0.0f};
  ElementType type = ElementType::bf16;
  ElementType query_type = ElementType::f32;
  std::vector<int> num_tokens{700};  // one sequence each
  CacheLayout layout = CacheLayout::hnd;
  int page_size = 16;
  IndexOptions index;
  int num_rows = 1;  // query rows of every sequence
  bool causal = true;
  std::vector<float> sink_logits;    // [num_qo_heads] or none; shape.sink_logits is set from it
  std::pair<int, int> erased{0, 0};  // tokens of every sequence, erased from its index
  float spread = 1.0f;               // of the keys: how far apart scores lie
  uint64_t seed = 1;
  // A recorded trace instead of random keys and values: its first tokens, and its last query for every sequence. Sets shape and types,
  // except that keys and values of fp8_e4m3 are made from its.
  std::string trace;
};

// What came of a batch.
struct CaseResult {
  std::vector<float> output;        // [num_sequences][num_rows][num_qo_heads][head_dim]
  std::vector<float> lse;           // [num_sequences][num_rows][num_qo_heads]
  std::vector<HeadReport> reports;  // [num_sequences][num_rows][num_qo_heads]
};

class HostCase {
 public:
  explicit HostCase(const CaseOptions& options);
  ~HostCase();

  const CaseOptions& options() const;
  int num_sequences() const;
  // The memory behind the view of the whole batch, which names host memory.
  const PagedKvView& kv() const;
  const std::vector<std::byte>& keys() const;
  const std::vector<std::byte>& values() const;
  const std::vector<int32_t>& page_indices() const;
  const std::vector<int32_t>& page_indptr() const;
  const std::vector<int32_t>& num_tokens() const;
  const std::vector<std::byte>& query_bytes() const;
  const std::vector<float>& key_scales() const;  // [num_kv_heads] with fp8_e4m3, or empty
  const std::vector<float>& value_scales() const;
  QueryView queries() const;
  const ClusterIndexView& index(int sequence) const;
  int max_cluster_slots() const;

  // Overwrites one element of a key (or value) row in the cache; the index is not told.
  void poison(bool value, int sequence, int token, int kv_head, int coordinate, float with);

  CaseResult cpu_decode(const DecodeOptions& options) const;
  // The same with another index of the one sequence.
  CaseResult cpu_decode(const DecodeOptions& options, const ClusterIndexView& index) const;
  // Ascending tokens of [sequence][kv_head].
  std::vector<std::vector<int32_t>> cpu_select(const DecodeOptions& options) const;
  // By the naive double-precision reference, over the given tokens of every KV head, or all of them: those that a row sees.
  CaseResult reference(const std::vector<std::vector<int32_t>>& tokens = {}) const;
  // Share of the weight of the given tokens, [sequence][qo_head].
  std::vector<double> attained(const std::vector<std::vector<int32_t>>& tokens) const;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

}  // namespace quorum::test
