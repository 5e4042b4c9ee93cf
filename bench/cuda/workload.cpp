#include "bench/cuda/workload.hpp"

#include <thread>

#include "bench/support/workload.hpp"

namespace quorum::bench {

struct HostWorkload::Content {
  Workload workload;
  std::unique_ptr<ClusterIndex> index;
};

HostWorkload::HostWorkload(int num_tokens, int num_kv_heads, int group_size, int head_dim, int cluster_size)
    : content_(std::make_unique<Content>()) {
  ClusteredOptions options;
  options.num_tokens = num_tokens;
  options.num_kv_heads = num_kv_heads;
  options.group_size = group_size;
  options.head_dim = head_dim;
  content_->workload = clustered_workload("clustered", options);
  IndexOptions index;
  index.cluster_size = cluster_size;
  content_->index = std::make_unique<ClusterIndex>(content_->workload.shape, index);
  ThreadExecutor executor(int(std::thread::hardware_concurrency()));
  content_->index->build(content_->workload.kv.first(content_->workload.indexed_tokens), executor);
}
HostWorkload::~HostWorkload() = default;

const AttentionShape& HostWorkload::shape() const { return content_->workload.shape; }
const KvCacheView& HostWorkload::kv() const { return content_->workload.kv; }
QueryView HostWorkload::queries() const { return content_->workload.queries; }
const ClusterIndexView& HostWorkload::index() const { return content_->index->view(); }
int HostWorkload::num_cluster_slots() const { return content_->index->num_cluster_slots(); }

}  // namespace quorum::bench
