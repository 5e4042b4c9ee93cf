// What the residual codes of a built index tell of scores: exact ones against centroids alone and with codes, all in double.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

// Squares and products, summed over tokens, of what centroids miss of exact scores and of what codes add to them.
struct ScoreErrors {
  double centroid = 0.0, coded = 0.0;  // squared errors of the centroid's score alone and with the codes
  double added = 0.0, product = 0.0;   // squares of what codes add, and its products with what they should
  int tokens = 0;
};

// q' of one query by the view's own coordinates, in double (algorithm.md eq. 3).
std::vector<double> rotated_query(const QueryMetricView& metric, const float* query, int d) {
  std::vector<float> y(size_t(padded_dim(d)), 0.0f);
  for (int out = 0; out < d; ++out) {
    double sum = 0.0;
    for (int in = 0; in < d; ++in) sum += double(to_float(metric.inverse[(out / 16 * d + in) * 16 + out % 16])) * double(query[in]);
    y[size_t(out)] = float(sum);
  }
  simd::rotate(y.data(), metric.signs, d);
  return {y.begin(), y.begin() + d};
}

void add_errors(const test::TestCache& cache, const ClusterIndexView& view, const float* query, int kv_head, ScoreErrors& errors) {
  const int d = view.head_dim;
  const ClusterHeadView& head = view.heads[kv_head];
  const std::vector<double> q = rotated_query(head.metric, query, d);
  double mean_score = 0.0;
  for (int c = 0; c < d; ++c) mean_score += double(query[c]) * double(head.metric.mean_key[c]);
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef cluster = cluster_at(head, j);
    const SegmentView& segment = *cluster.segment;
    double centroid = mean_score;
    for (int c = 0; c < d && cluster.num_tokens() > 0; ++c) centroid += q[size_t(c)] * double(segment.centroids_f32[cluster.local * d + c]);
    for (int i = 0; i < cluster.num_tokens(); ++i) {
      const int block = segment.code_indptr[cluster.local] + i / kCodeBlock, lane = i % kCodeBlock;
      const uint8_t* codes = segment.codes + block * code_block_bytes(d);
      double exact = 0.0, sign_dot = 0.0;
      for (int c = 0; c < d; ++c) {
        exact += double(query[c]) * cache.keys(kv_head).row(cluster.tokens()[i])[c];
        sign_dot += (codes[code_bit(c, lane).byte] >> code_bit(c, lane).shift & 1) != 0 ? q[size_t(c)] : -q[size_t(c)];
      }
      const double coded = coded_score(centroid, double(to_float(segment.code_scale[block * kCodeBlock + lane])), sign_dot);
      errors.centroid += (exact - centroid) * (exact - centroid);
      errors.coded += (exact - coded) * (exact - coded);
      errors.added += (coded - centroid) * (coded - centroid);
      errors.product += (coded - centroid) * (exact - centroid);
      ++errors.tokens;
    }
  }
}

}  // namespace

TEST_CASE("coded scores are far closer to the exact ones than the centroids' alone, in built and appended segments") {
  const uint64_t seed = 176;
  CAPTURE(seed);
  for (const int head_dim : {64, 80, 128})
    for (const bool with_queries : {true, false}) {
      CAPTURE(head_dim);
      CAPTURE(with_queries);
      const test::ClusteredData data = test::clustered_data({900, 2, 4, head_dim, 40, seed});
      const test::TestCache cache({900, 2, head_dim, ElementType::f16, test::Layout::nhd}, data.keys, data.values);
      IndexOptions options;
      options.residual_codes = true;
      options.cluster_size = 12;
      options.segment_tokens = 160;
      options.recluster_every = 100;
      options.storage = IndexStorage::f32;
      SerialExecutor executor;
      ClusterIndex index({4, 2, head_dim, 0.0f}, options);
      const QueryView prompt = QueryView::contiguous(data.queries.data(), 40, 4, head_dim);
      index.build(cache.view().first(600), with_queries ? &prompt : nullptr, executor);
      index.append(cache.view(), executor);
      ScoreErrors errors;
      for (int row = 0; row < 4; ++row)
        for (int h = 0; h < 4; ++h) add_errors(cache, index.view(), data.queries.data() + (row * 4 + h) * head_dim, h / 2, errors);
      REQUIRE(errors.tokens == 4 * 4 * 896);
      // Of normal residuals the signs explain 2 / pi of the variance: correlation 0.80, and 0.36 of the squared error remains.
      const double correlation = errors.product / std::sqrt(errors.added * errors.centroid), remains = errors.coded / errors.centroid;
      CAPTURE(correlation);
      CAPTURE(remains);
      CHECK(correlation >= 0.77);
      CHECK(remains <= 0.42);
    }
}
