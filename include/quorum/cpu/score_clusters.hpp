// First stage: the query in the index's coordinates, the score of every centroid, and the weight each cluster is expected to hold.
#pragma once

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/cpu/head_task.hpp"
#include "quorum/cpu/simd/int8_dot.hpp"
#include "quorum/cpu/simd/rotate.hpp"

namespace quorum::cpu {

// The queries of a task in the coordinates of its index: q' in the worker's scratch, and what scoring needs besides.
struct IndexQueries {
  float mean_score[kMaxGroupSize];        // q . mean_key
  float half_variance[kMaxGroupSize];     // half the score variance of a cluster of spread 1
  float step[kMaxGroupSize];              // value of one step of the int8 query
  int32_t zero_point_dot[kMaxGroupSize];  // what the centroids' zero point adds to an int8 dot product
};

// y = inverse * q for output blocks [first, last) of 16 (algorithm.md eq. 4). Cost: reads 2 * head_dim^2 bytes once for the group.
inline void transform_blocks(const HeadTask& task, const QueryMetricView& metric, int first, int last) {
  using namespace simd;
  const int d = task.head_dim();
  for (int block = first; block < last; ++block) {
    const f16* factors = metric.inverse + int64_t(block) * d * 16;
    for (int g0 = 0; g0 < task.num_heads; g0 += kHeadBlock) {
      const int heads = std::min(kHeadBlock, task.num_heads - g0);
      constexpr int kParts = 16 / kVectorSize;
      Vector sums[kHeadBlock][kParts];
      for (int g = 0; g < kHeadBlock; ++g)
        for (int i = 0; i < kParts; ++i) sums[g][i] = Vector(0.0f);
      for (int c = 0; c < d; ++c)
        for (int i = 0; i < kParts; ++i) {
          const Vector factor = load_as_float(factors + int64_t(c) * 16 + i * kVectorSize);
          for (int g = 0; g < heads; ++g) sums[g][i] = multiply_add(factor, Vector(task.own().queries.row(g0 + g)[c]), sums[g][i]);
        }
      for (int g = 0; g < heads; ++g)
        for (int i = 0; i < kParts; ++i) store(task.shared->transformed.row(g0 + g) + block * 16 + i * kVectorSize, sums[g][i]);
    }
  }
}

// Rotated and quantised queries in the worker's own scratch, from the team's y.
//
// The int8 query has one scale a head. Its rounding moves a score by about |q'| |x| / (127 sqrt(12 head_dim)) * 3.5, a few hundredths of
// the spread of scores (docs/numerics.md).
inline IndexQueries prepare_queries(const HeadTask& task, const QueryMetricView& metric) {
  const int d = task.head_dim();
  IndexQueries out;
  for (int g = 0; g < task.num_heads; ++g) {
    const float* query = task.own().queries.row(g);
    const float* y = task.shared->transformed.row(g);
    float* x = task.own().rotated.row(g);
    int8_t* quantised = task.own().quantised + int64_t(g) * task.own().rotated.stride;
    float variance = 0.0f, mean_score = 0.0f, largest = 1e-20f;
    for (int c = 0; c < d; ++c) {
      variance += y[c] * y[c] * metric.eigenvalues[c];
      mean_score += query[c] * metric.mean_key[c];
      x[c] = y[c];
    }
    simd::rotate(x, metric.signs, d);
    for (int c = 0; c < d; ++c) largest = std::max(largest, std::fabs(x[c]));
    const float step = largest / 127.0f, inverse_step = 1.0f / step;
    int32_t sum = 0;
    for (int c = 0; c < d; ++c) {
      // Clamped first: a NaN or Inf query must not become an undefined conversion (it ends on the dense path).
      const float steps = std::clamp(x[c] * inverse_step, -127.0f, 127.0f);
      quantised[c] = steps == steps ? int8_t(std::lrintf(steps)) : int8_t(0);
      sum += quantised[c];
    }
    out.mean_score[g] = mean_score;
    out.half_variance[g] = 0.5f * variance;
    out.step[g] = step;
    out.zero_point_dot[g] = kCentroidZero * sum;
  }
  return out;
}

// Scores of one block of 16 clusters: scores[g * 16 + lane] = q' . x.
inline void score_block(const HeadTask& task, const SegmentView& segment, int block, const IndexQueries& queries, float* scores) {
  const int d = task.head_dim();
  const WorkerScratch& own = task.own();
  if (segment.centroids_f32 != nullptr) {
    for (int lane = 0; lane < kClusterBlock; ++lane) {
      const int cluster = std::min(block * kClusterBlock + lane, segment.num_clusters - 1);
      const std::byte* row = reinterpret_cast<const std::byte*>(segment.centroids_f32 + int64_t(cluster) * d);
      for (int g = 0; g < task.num_heads; ++g)
        simd::score_tile<float, 1>({&row, nullptr, 1, 0, d}, own.rotated.row(g), own.rotated.stride, scores + g * kClusterBlock + lane, 1);
    }
    return;
  }
  const uint8_t* bytes = segment.centroids + int64_t(block) * kClusterBlock * d;
  int32_t dots[kMaxGroupSize * kClusterBlock];
  const int stride = own.rotated.stride;
  for (int g = 0; g < task.num_heads; g += simd::kHeadBlock) {
    const int8_t* query = own.quantised + int64_t(g) * stride;
    switch (std::min(simd::kHeadBlock, task.num_heads - g)) {
      case 1:
        simd::int8_dot_block<1>(bytes, query, stride, d, dots + g * kClusterBlock);
        break;
      case 2:
        simd::int8_dot_block<2>(bytes, query, stride, d, dots + g * kClusterBlock);
        break;
      case 3:
        simd::int8_dot_block<3>(bytes, query, stride, d, dots + g * kClusterBlock);
        break;
      default:
        simd::int8_dot_block<4>(bytes, query, stride, d, dots + g * kClusterBlock);
        break;
    }
  }
  const float* scale = segment.centroid_scale + block * kClusterBlock;
  for (int g = 0; g < task.num_heads; ++g)
    for (int lane = 0; lane < kClusterBlock; ++lane)
      scores[g * kClusterBlock + lane] =
          float(dots[g * kClusterBlock + lane] - queries.zero_point_dot[g]) * (scale[lane] * queries.step[g]);
}

// Half the score variance of one cluster with a variance per coordinate: 1/2 sum_c var_c y_c^2.
inline float half_diagonal_variance(const SegmentView& segment, int cluster, const float* y, int head_dim) {
  const uint8_t* variance = segment.residual_variance + int64_t(cluster) * head_dim;
  float sum = 0.0f;
  for (int c = 0; c < head_dim; ++c) sum += float(variance[c]) * y[c] * y[c];
  return 0.5f * segment.variance_scale[cluster] * sum;
}

// Log of the expected weight of a token for blocks [first, last) of cluster ids, all heads; the largest goes to own().max_score.
//
// Method: algorithm.md eq. 5. Cost: head_dim + 12 bytes a cluster (int8), read once for the group.
inline void score_blocks(const HeadTask& task, const ClusterHeadView& head, VarianceModel model, const IndexQueries& queries, int first,
                         int last) {
  float scores[kMaxGroupSize * kClusterBlock];
  for (int block = first; block < last; ++block) {
    const int segment_id = head.block_segment[block];
    const SegmentView& segment = head.segments[segment_id];
    const int local = block - head.segment_first[segment_id] / kClusterBlock;
    if (segment.centroids != nullptr) simd::prefetch(segment.centroids + int64_t(local + 4) * kClusterBlock * task.head_dim());
    score_block(task, segment, local, queries, scores);
    const float* spread = segment.spread + local * kClusterBlock;
    const float* size = segment.size + local * kClusterBlock;
    for (int g = 0; g < task.num_heads; ++g) {
      float* out = task.shared->log_weight + (int64_t(block) * task.num_heads + g) * kClusterBlock;
      for (int lane = 0; lane < kClusterBlock; ++lane) {
        const float score = scores[g * kClusterBlock + lane] + queries.mean_score[g];
        float log_weight = score;
        if (model == VarianceModel::shared) {
          log_weight = token_log_weight(score, spread[lane], queries.half_variance[g]);
        } else if (model == VarianceModel::diagonal && size[lane] > 0.0f) {
          log_weight =
              score + half_diagonal_variance(segment, local * kClusterBlock + lane, task.shared->transformed.row(g), task.head_dim());
        }
        out[lane] = size[lane] > 0.0f ? log_weight : -kInfinity;
      }
      float& max = task.own().max_score[g];
      for (int lane = 0; lane < kClusterBlock; ++lane) max = out[lane] > max ? out[lane] : max;
    }
  }
}

// Expected weights of blocks [first, last) in units of exp(reference[g]); their sums go to own().estimate.
inline void weigh_blocks(const HeadTask& task, const ClusterHeadView& head, const float* reference, int first, int last) {
  using namespace simd;
  for (int g = 0; g < task.num_heads; ++g) {
    double total = 0.0;
    for (int block = first; block < last; ++block) {
      const int segment_id = head.block_segment[block];
      const float* size = head.segments[segment_id].size + block * kClusterBlock - head.segment_first[segment_id];
      const int64_t at = (int64_t(block) * task.num_heads + g) * kClusterBlock;
      Vector sum(0.0f);
      for (int lane = 0; lane < kClusterBlock; lane += kVectorSize) {
        const Vector token = exponential(load(task.shared->log_weight + at + lane) - Vector(reference[g]));
        const Vector weight = cluster_weight(load(size + lane), token);
        store(task.shared->estimate + at + lane, weight);
        sum = sum + weight;
      }
      total += double(reduce_add(sum));
    }
    task.own().estimate[g] = total;
  }
}

}  // namespace quorum::cpu
