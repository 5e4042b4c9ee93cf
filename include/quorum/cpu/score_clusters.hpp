// First stage: the query in the index's coordinates, the score of every centroid, and the weight each cluster is expected to hold.
#pragma once

#include "quorum/core/cluster_index_view.hpp"
#include "quorum/cpu/head_task.hpp"
#include "quorum/cpu/simd/int8_dot.hpp"
#include "quorum/cpu/simd/rotate.hpp"
#include "quorum/cpu/simd/transform.hpp"

namespace quorum::cpu {

// The queries of a task in the coordinates of its index: q' in the worker's scratch, and what scoring needs besides.
struct IndexQueries {
  float mean_score[kMaxGroupSize];        // q . mean_key
  float half_variance[kMaxGroupSize];     // half the score variance of a cluster of spread 1
  float square[kMaxGroupSize];            // |q'|^2
  float step[kMaxGroupSize];              // value of one step of the int8 query
  int32_t zero_point_dot[kMaxGroupSize];  // what the centroids' zero point adds to an int8 dot product
};

// y = inverse * q for output blocks [first, last) of 16 (algorithm.md eq. 4). Cost: reads 2 * head_dim^2 bytes once for the group.
inline void transform_blocks(const HeadTask& task, const QueryMetricView& metric, int first, int last) {
  const int d = task.head_dim();
  const HeadRows queries = task.own().queries, out = task.shared->transformed;
  for (int block = first; block < last; ++block)
    simd::for_head_blocks(task.num_heads, [&](auto heads, int head) {
      simd::transform_block<heads()>(metric.inverse + int64_t(block) * d * 16, d, queries.row(head), queries.stride,
                                     out.row(head) + block * 16, out.stride);
    });
}

// Rotated and quantised queries in the worker's own scratch, from the team's y.
//
// The int8 query has one scale a head. Its rounding moves a score by about |q'| |x| / (127 sqrt(12 head_dim)) * 3.5, about one
// hundredth of the spread of scores (docs/numerics.md). NaN and Inf are rounded to something here; they end on the dense path by way of
// mean_score and step.
inline IndexQueries prepare_queries(const HeadTask& task, const QueryMetricView& metric) {
  const int d = task.head_dim(), dim = padded_dim(d);
  IndexQueries out;
  for (int g = 0; g < task.num_heads; ++g) {
    const float* y = task.shared->transformed.row(g);
    float* x = task.own().rotated.row(g);
    std::copy_n(y, dim, x);
    simd::rotate(x, metric.signs, d);
    const float sum = simd::dot(task.own().queries.row(g), metric.mean_key, dim);
    out.mean_score[g] = sum;
    out.half_variance[g] = 0.5f * simd::weighted_square_sum(y, metric.eigenvalues, dim);
    out.square[g] = simd::dot(x, x, dim);
    out.step[g] = std::max(simd::largest_magnitude(x, dim), 1e-20f) / 127.0f;
    out.zero_point_dot[g] =
        kCentroidZero * simd::quantise(x, out.step[g], dim, task.own().quantised + int64_t(g) * task.own().rotated.stride);
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
  simd::for_head_blocks(task.num_heads, [&](auto heads, int head) {
    const int stride = own.rotated.stride;
    simd::int8_dot_block<heads()>(bytes, own.quantised + int64_t(head) * stride, stride, d, dots + head * kClusterBlock);
  });
  for (int g = 0; g < task.num_heads; ++g) {
    const simd::Vector zero(float(queries.zero_point_dot[g])), step(queries.step[g]);
    for (int lane = 0; lane < kClusterBlock; lane += simd::kVectorSize) {
      const simd::Vector scale = simd::load(segment.centroid_scale + block * kClusterBlock + lane) * step;
      simd::store(scores + g * kClusterBlock + lane, (simd::load_as_float(dots + g * kClusterBlock + lane) - zero) * scale);
    }
  }
}

// Adds half the score variance of each cluster of a block under a variance per coordinate: 1/2 sum_c var_c y_c^2.
inline void add_diagonal_variance(const HeadTask& task, const SegmentView& segment, int block, int head, float* scores) {
  const int d = task.head_dim();
  const float* y = task.shared->transformed.row(head);
  for (int lane = 0; lane < kClusterBlock && block * kClusterBlock + lane < segment.num_clusters; ++lane) {
    const int cluster = block * kClusterBlock + lane;
    const uint8_t* variance = segment.residual_variance + int64_t(cluster) * d;
    float sum = 0.0f;
    for (int c = 0; c < d; ++c) sum += float(variance[c]) * y[c] * y[c];
    scores[lane] += 0.5f * segment.variance_scale[cluster] * sum;
  }
}

// Sizes of the 16 clusters of a block of ids, as far as the task sees their tokens.
inline const float* visible_sizes(const HeadTask& task, const ClusterHeadView& head, int block) {
  return task.filters_clusters ? task.shared->visible_size + int64_t(block) * kClusterBlock : block_sizes(head, block);
}

// Counts the tokens of blocks [first, last) that the task sees. Cost: a pass over the clusters' lists of tokens, 4 bytes each.
inline void count_visible(const HeadTask& task, const ClusterHeadView& head, int first, int last) {
  for (int cluster = first * kClusterBlock; cluster < last * kClusterBlock; ++cluster) {
    const ClusterRef ref = cluster_at(head, cluster);
    const int32_t* tokens = ref.tokens();
    int visible = 0;
    for (int i = 0; i < ref.size(); ++i) visible += task.filter.passes(tokens[i]);
    task.shared->visible_size[cluster] = float(visible);
  }
}

// Log of the expected weight of a token for blocks [first, last) of cluster ids, all heads; the largest goes to own().max_score.
//
// Method: algorithm.md eq. 5; limited: by its second form. Empty clusters get -inf. Cost: head_dim + 12 bytes a cluster (int8), read once
// for the group.
inline void score_blocks(const HeadTask& task, const ClusterHeadView& head, VarianceModel model, const IndexQueries& queries, int first,
                         int last, bool limited = false) {
  using simd::Vector;
  Vector largest[kMaxGroupSize];
  for (int g = 0; g < task.num_heads; ++g) largest[g] = Vector(-kInfinity);
  float scores[kMaxGroupSize * kClusterBlock];
  for (int block = first; block < last; ++block) {
    const int segment_id = head.block_segment[block];
    const SegmentView& segment = head.segments[segment_id];
    const int local = block - head.segment_first[segment_id] / kClusterBlock;
    const float* size = visible_sizes(task, head, block);
    score_block(task, segment, local, queries, scores);
    for (int g = 0; g < task.num_heads; ++g) {
      float* out = task.shared->log_weight + (int64_t(block) * task.num_heads + g) * kClusterBlock;
      const float half_variance = model == VarianceModel::shared ? queries.half_variance[g] : 0.0f;
      if (model == VarianceModel::diagonal) add_diagonal_variance(task, segment, local, g, scores + g * kClusterBlock);
      for (int lane = 0; lane < kClusterBlock; lane += simd::kVectorSize) {
        const int cluster = local * kClusterBlock + lane;
        const Vector score = simd::load(scores + g * kClusterBlock + lane) + Vector(queries.mean_score[g]);
        const Vector spread = simd::load(segment.spread + cluster);
        const Vector weight = limited ? limited_token_log_weight(score, spread, Vector(half_variance))
                                      : token_log_weight(score, spread, Vector(half_variance));
        const Vector value = simd::where_positive(simd::load(size + lane), weight, Vector(-kInfinity));
        simd::store(out + lane, value);
        largest[g] = simd::maximum(value, largest[g]);
      }
    }
  }
  for (int g = 0; g < task.num_heads; ++g) {
    const float max = simd::reduce_max(largest[g]), cap = task.shape->logit_softcap;
    task.own().max_score[g] = cap > 0.0f && max > -kInfinity ? simd::soft_cap(max, cap) : max;
  }
}

// The 16 entries of shared.log_weight of a block and head, soft-capped as scores are, if they are, in `buffer`. Empty clusters then have
// some weight, times their size of 0.
inline const float* capped_log_weights(const HeadTask& task, int block, int head, float* buffer) {
  const float* log_weight = task.shared->log_weight + (int64_t(block) * task.num_heads + head) * kClusterBlock;
  if (task.shape->logit_softcap == 0.0f) return log_weight;
  std::copy_n(log_weight, kClusterBlock, buffer);
  simd::soft_cap_scores(buffer, kClusterBlock, task.shape->logit_softcap);
  return buffer;
}

// Expected weights of blocks [first, last) in units of exp(reference[g]); their sums go to own().estimate.
inline void weigh_blocks(const HeadTask& task, const ClusterHeadView& head, const float* reference, int first, int last) {
  using namespace simd;
  float buffer[kClusterBlock];
  for (int g = 0; g < task.num_heads; ++g) {
    double total = 0.0;
    for (int block = first; block < last; ++block) {
      const float* size = visible_sizes(task, head, block);
      const int64_t at = (int64_t(block) * task.num_heads + g) * kClusterBlock;
      const float* log_weight = capped_log_weights(task, block, g, buffer);
      Vector sum(0.0f);
      for (int lane = 0; lane < kClusterBlock; lane += kVectorSize) {
        const Vector token = exponential(load(log_weight + lane) - Vector(reference[g]));
        const Vector weight = cluster_weight(load(size + lane), token);
        store(task.shared->estimate + at + lane, weight);
        sum = sum + weight;
      }
      total += double(reduce_add(sum));
    }
    task.own().estimate[g] = total;
  }
}

// Expected weight of a cluster for one head, once weigh_blocks() has been there.
inline float cluster_estimate(const HeadTask& task, int cluster, int head) {
  return task.shared->estimate[(int64_t(cluster / kClusterBlock) * task.num_heads + head) * kClusterBlock + cluster % kClusterBlock];
}

}  // namespace quorum::cpu
