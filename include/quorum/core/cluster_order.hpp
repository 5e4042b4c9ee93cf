// The order in which clusters are read: by estimated share of the total weight per token read (algorithm.md eq. 6).
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// Order keys are log shares per token, cut into buckets of 1/32 nat (3 %): far below the estimate's own error, and a counting
// sort over buckets replaces a comparison sort. Ties inside a bucket go by cluster id, so that the order is deterministic.
inline constexpr int kOrderBucketsPerNat = 32;
inline constexpr int kNumOrderBuckets = 1024;

// Bucket of a log share per token (natural log, <= 0 in theory): 0 is read first. Shares below e^-32 go to the last bucket.
// NaN goes to the first bucket: a poisoned cluster is read, never hidden.
QUORUM_HOST_DEVICE constexpr int order_bucket(float log_share_per_token) {
  const float depth = -log_share_per_token * float(kOrderBucketsPerNat);
  if (!(depth > 0.0f)) return 0;
  return depth < float(kNumOrderBuckets - 1) ? int(depth) : kNumOrderBuckets - 1;
}

}  // namespace quorum
