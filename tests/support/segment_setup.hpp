// Keys to cluster, and a metric that leaves them as they are.
#pragma once

#include "quorum/cpu/encode_segment.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/random.hpp"

namespace quorum::test {

// Clustered keys and values of one sequence of two KV heads of kDim dimensions, four query heads.
struct SegmentSetup {
  static constexpr int kDim = 24;

  AttentionShape shape{4, 2, kDim, 0.0f};
  IndexOptions options;
  ClusteredData data;
  TestCache cache;
  KvCacheView kv;
  cpu::QueryMetric metric;

  SegmentSetup(int num_tokens, ElementType type, Layout layout, float mean_key)
      : data(clustered_data({num_tokens, 2, 4, kDim, 40, 101})),
        cache({num_tokens, 2, kDim, type, layout}, data.keys, data.values),
        kv(cache.view()) {
    metric.forward = cpu::RowMatrix::Identity(kDim, kDim);
    metric.signs = cpu::random_signs(kDim, 1, 0);
    metric.mean_key.assign(32, mean_key);
  }
  cpu::BuildInput input() const { return {&kv, &shape, &options}; }
};

}  // namespace quorum::test
