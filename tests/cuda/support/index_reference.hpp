// What an index says of its tokens against the keys and values themselves, in double precision, written independently of both backends.
#pragma once

#include <vector>

#include "tests/cuda/support/host_case.hpp"

namespace quorum::test {

// Of one KV head. Distances are in the coordinates of the metric, z = k * forward.
struct IndexCheck {
  bool partition = false;         // every indexed token is in exactly one cluster, ascending inside each; sizes and padding say so
  int num_clusters = 0;           // with tokens
  double inertia = 0.0;           // mean squared distance of a key from the mean of its cluster
  double nearest_share = 0.0;     // of the tokens, those that no other cluster of their segment is nearer to by more than 2 %
  double spread_error = 0.0;      // largest difference of a cluster's spread, relative to inertia
  double score_error = 0.0;       // largest difference of q.centroid, relative to the scores' standard deviation, random queries
  double variance_error = 0.0;    // largest difference of the shared variance, relative to what it should be, random queries
  double value_error = 0.0;       // largest difference of a value mean, in its steps of int8
  double code_bits_wrong = 0.0;   // share of bits that are not the sign of a coordinate that is not small; plain L2 only
  double code_scale_error = 0.0;  // largest difference of a code's scale, relative; plain L2 only
};
// forward: [head_dim][head_dim], key coordinate first; empty: the identity.
IndexCheck check_index(const HostCase& host, int sequence, int kv_head, const ClusterIndexView& index,
                       const std::vector<float>& forward = {});

// The indexed keys of the first sequence and a KV head in the coordinates of the metric, z = (k - mean_key) * forward.
struct ExpectedRows {
  std::vector<double> mean_key;
  std::vector<std::vector<double>> z;
};
ExpectedRows expected_rows(const HostCase& host, int kv_head, const std::vector<float>& forward);

// Mean of the values of some tokens, mean squared distance from it, its squared length.
struct ExpectedMean {
  std::vector<double> mean;
  double spread = 0.0, square = 0.0;
};
ExpectedMean expected_value_mean(const HostCase& host, int kv_head, const std::vector<int>& tokens);

// The same indexed tokens, centroids, bytes: what two indexes differ in, or "" if in nothing. Their segments may be joined differently.
std::string difference(const ClusterIndexView& a, const ClusterIndexView& b);

// Factors of the metric of every KV head from some random queries that are far from white: forward, then inverse.
struct Factors {
  std::vector<float> forward, inverse;
};
Factors factors_of(const AttentionShape& shape, const IndexOptions& options, const QueryView& queries);
// [num_rows][num_qo_heads][head_dim].
std::vector<float> skewed_queries(const AttentionShape& shape, int num_rows, uint64_t seed);
Factors random_factors(const AttentionShape& shape, const IndexOptions& options, uint64_t seed);
// The same from the sampled queries of a trace.
Factors trace_factors(const std::string& trace, const IndexOptions& options);

}  // namespace quorum::test
