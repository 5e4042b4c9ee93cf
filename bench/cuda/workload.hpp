// The workloads of the CPU benchmarks for programs that nvcc compiles, with an index built on the host.
#pragma once

#include <memory>

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/shape.hpp"

namespace quorum::bench {

// One layer of one sequence, keys and values in f16, and its index.
class HostWorkload {
 public:
  // Keys of the clustered generator (bench/support/workload.hpp): num_kv_heads x group_size query heads.
  HostWorkload(int num_tokens, int num_kv_heads, int group_size, int head_dim, int cluster_size);
  ~HostWorkload();

  const AttentionShape& shape() const;
  const KvCacheView& kv() const;  // [num_kv_heads][num_tokens][head_dim]
  QueryView queries() const;      // several rows, f32
  const ClusterIndexView& index() const;
  int num_cluster_slots() const;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

}  // namespace quorum::bench
