#include "tests/cuda/support/build_case.cuh"

#include "quorum/cuda/build_index.cuh"

namespace quorum::test {

cuda::ClusterIndex build_on_device(const AttentionShape& shape, const IndexOptions& options, const KvCacheView& kv,
                                   const MetricFactorView& metric) {
  return cuda::build_index(shape, options, kv, metric);
}
const FlatHeadView* build_on_device(const AttentionShape& shape, const IndexOptions& options, const KvCacheView& kv,
                                    const MetricFactorView& metric, const cuda::BuildMemory& memory, cudaStream_t stream) {
  return cuda::build_index(shape, options, kv, metric, memory, stream);
}

}  // namespace quorum::test
