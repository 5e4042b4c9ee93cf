// What decoding reads of a segment, from rows of keys and values and their clusters: int8 rows, spreads, residual codes. Uses Eigen.
#pragma once

#include <span>

#include "quorum/core/clustering.hpp"
#include "quorum/core/options.hpp"
#include "quorum/cpu/kmeans.hpp"
#include "quorum/cpu/query_metric.hpp"
#include "quorum/cpu/segment.hpp"

namespace quorum::cpu {

// What building one segment of one head needs to know.
struct BuildInput {
  const KvCacheView* kv = nullptr;
  const AttentionShape* shape = nullptr;
  const IndexOptions* options = nullptr;
};

// Rows that are converted and multiplied together: the copy in floats stays in L2.
inline constexpr int kLoadRows = 256;

// Rows of keys or values as floats, `out` [tokens][head_dim]. Rows with NaN or Inf become zero and set `non_finite`.
inline void load_rows(const BuildInput& input, bool values, int kv_head, std::span<const int32_t> tokens, float* out, bool& non_finite) {
  const int d = input.shape->head_dim;
  const KvCacheView& kv = *input.kv;
  const float scale = values ? kv.value_scale(kv_head) : kv.key_scale(kv_head);
  AlignedVector<float> row(size_t(padded_dim(d)));
  for (const int32_t token : tokens) {
    load_row(values ? kv.value_row(token, kv_head) : kv.key_row(token, kv_head), kv.type, d, scale, row.data());
    if (simd::all_finite(row.data(), int(row.size()))) {
      std::copy_n(row.data(), d, out);
    } else {
      std::fill_n(out, d, 0.0f);
      non_finite = true;
    }
    out += d;
  }
}

// Coordinates of the keys of tokens under a linear map, (k - mean_key) * forward, into rows [first, first + tokens) of `out`.
inline void load_coordinates(const BuildInput& input, const QueryMetric& metric, int kv_head, std::span<const int32_t> tokens,
                             Eigen::Index first, RowMatrix& out, bool& non_finite) {
  const int d = input.shape->head_dim;
  RowMatrix keys(kLoadRows, d);
  for (size_t at = 0; at < tokens.size(); at += kLoadRows) {
    const auto part = tokens.subspan(at, std::min(size_t(kLoadRows), tokens.size() - at));
    const auto count = Eigen::Index(part.size());
    load_rows(input, false, kv_head, part, keys.data(), non_finite);
    keys.topRows(count).rowwise() -= Eigen::Map<const Eigen::RowVectorXf>(metric.mean_key.data(), d);
    out.middleRows(first + Eigen::Index(at), count).noalias() = keys.topRows(count) * metric.forward;
  }
}
inline RowMatrix key_coordinates(const BuildInput& input, const QueryMetric& metric, int kv_head, std::span<const int32_t> tokens,
                                 bool& non_finite) {
  RowMatrix coordinates(Eigen::Index(tokens.size()), input.shape->head_dim);
  load_coordinates(input, metric, kv_head, tokens, 0, coordinates, non_finite);
  return coordinates;
}

// Means of the rows of each cluster; empty clusters get zeros.
inline RowMatrix cluster_means(const RowMatrix& rows, const ClusterMembers& members) {
  const int num_clusters = int(members.indptr.size()) - 1;
  RowMatrix means = RowMatrix::Zero(num_clusters, rows.cols());
  for (int j = 0; j < num_clusters; ++j) {
    if (members.size(j) == 0) continue;
    for (int at = members.indptr[size_t(j)]; at < members.indptr[size_t(j) + 1]; ++at) means.row(j) += rows.row(members.rows[size_t(at)]);
    means.row(j) /= float(members.size(j));
  }
  return means;
}

// Compressed rows of tokens by cluster, inside each in the order of `tokens`, and the sizes.
inline void store_tokens(const ClusterMembers& members, std::span<const int32_t> tokens, HeadSegment& out) {
  const size_t slots = size_t(round_up(out.num_clusters, kClusterBlock));
  out.size.assign(slots, 0.0f);
  out.cluster_indptr.assign(slots + 1, int32_t(members.rows.size()));
  for (int j = 0; j < out.num_clusters; ++j) {
    out.size[size_t(j)] = float(members.size(j));
    out.cluster_indptr[size_t(j)] = members.indptr[size_t(j)];
  }
  out.cluster_tokens.resize(members.rows.size());
  for (size_t i = 0; i < members.rows.size(); ++i) out.cluster_tokens[i] = tokens[size_t(members.rows[i])];
}

// Scale of an int8 row: its largest magnitude is 127 steps.
inline float row_scale(const float* row, int dim) {
  float largest = 0.0f;
  for (int c = 0; c < dim; ++c) largest = std::max(largest, std::fabs(row[c]));
  return int8_scale(largest);
}

// Centroids in rotated coordinates: int8 blocks of 16, or f32 rows.
inline void store_centroids(const RowMatrix& centroids, const QueryMetric& metric, IndexStorage storage, HeadSegment& out) {
  const int d = int(centroids.cols());
  const size_t slots = out.size.size();
  if (storage == IndexStorage::f32) {
    out.centroids_f32.resize(size_t(centroids.size()));
  } else {
    out.centroids.assign(slots * size_t(d), uint8_t(kCentroidZero));
    out.centroid_scale.assign(slots, 0.0f);
  }
  std::vector<float> x(size_t(padded_dim(d)));
  for (int j = 0; j < out.num_clusters; ++j) {
    std::copy_n(centroids.row(j).data(), d, x.data());
    simd::rotate(x.data(), metric.signs.data(), d);
    if (storage == IndexStorage::f32) {
      std::copy_n(x.data(), d, out.centroids_f32.data() + size_t(j) * size_t(d));
      continue;
    }
    const float scale = row_scale(x.data(), d);
    out.centroid_scale[size_t(j)] = scale;
    uint8_t* block = out.centroids.data() + size_t(j / kClusterBlock) * size_t(kClusterBlock * d);
    for (int c = 0; c < d; ++c) block[centroid_byte(c, j % kClusterBlock)] = uint8_t(int8_steps(x[size_t(c)], scale) + kCentroidZero);
  }
}

// Code of one residual x [head_dim] into its lane of a block of zeros. x must be 0 up to whole lines.
inline void store_code(const float* x, int head_dim, int lane, uint8_t* block, f16& scale) {
  for (int c = 0; c < round_up(head_dim, kCodeLineDim); c += 4) {
    const unsigned signs =
        unsigned(x[c] > 0.0f) | unsigned(x[c + 1] > 0.0f) << 1 | unsigned(x[c + 2] > 0.0f) << 2 | unsigned(x[c + 3] > 0.0f) << 3;
    const CodeBit first = code_bit(c, lane);
    block[first.byte] = uint8_t(block[first.byte] | signs << first.shift);
  }
  float sum = 0.0f;
  for (int c = 0; c < head_dim; ++c) sum += std::fabs(x[c]);
  scale = code_scale(sum, head_dim);
}

// Means of the values, int8 rows or f32 rows.
inline void store_value_means(const RowMatrix& means, IndexStorage storage, HeadSegment& out) {
  const int d = int(means.cols());
  if (storage == IndexStorage::f32) {
    out.value_means_f32.assign(means.data(), means.data() + means.size());
    return;
  }
  out.value_means.resize(size_t(means.size()));
  out.value_mean_scale.assign(out.size.size(), 0.0f);
  for (int j = 0; j < out.num_clusters; ++j) {
    const float scale = row_scale(means.row(j).data(), d);
    out.value_mean_scale[size_t(j)] = scale;
    for (int c = 0; c < d; ++c) out.value_means[size_t(j) * size_t(d) + size_t(c)] = int8_t(int8_steps(means(j, c), scale));
  }
}

// How far values lie from their cluster's mean, cluster by cluster, and how long the means are, token by token.
inline void store_value_moments(const RowMatrix& values, const RowMatrix& means, const ClusterMembers& members, HeadSegment& out) {
  double spread = 0.0, mean_square = 0.0;
  int clusters = 0;
  for (int j = 0; j < out.num_clusters; ++j) {
    const int size = members.size(j);
    if (size == 0) continue;
    double sum = 0.0;
    for (int at = members.indptr[size_t(j)]; at < members.indptr[size_t(j) + 1]; ++at)
      sum += double((values.row(members.rows[size_t(at)]) - means.row(j)).squaredNorm());
    spread += sum / size;
    mean_square += double(means.row(j).squaredNorm()) * size;
    ++clusters;
  }
  out.moments.spread = float(spread / std::max(1, clusters));
  out.moments.mean_square = float(mean_square / double(std::max<Eigen::Index>(1, values.rows())));
}

// Rows of the tokens in the order of the clusters, minus the centroids. rows: in the order in which the clustering met them.
inline RowMatrix cluster_residuals(const RowMatrix& rows, const ClusterMembers& members, const RowMatrix& centroids) {
  RowMatrix residuals(rows.rows(), rows.cols());
  for (int j = 0; j < int(centroids.rows()); ++j)
    for (int at = members.indptr[size_t(j)]; at < members.indptr[size_t(j) + 1]; ++at)
      residuals.row(at) = rows.row(members.rows[size_t(at)]) - centroids.row(j);
  return residuals;
}
// The same from the keys, once the coordinates are final.
inline RowMatrix cluster_residuals(const BuildInput& input, const QueryMetric& metric, int kv_head, const RowMatrix& centroids,
                                   const HeadSegment& segment) {
  bool ignored = false;
  RowMatrix rows = key_coordinates(input, metric, kv_head, segment.cluster_tokens, ignored);
  for (int j = 0; j < segment.num_clusters; ++j)
    for (int at = segment.cluster_indptr[size_t(j)]; at < segment.cluster_indptr[size_t(j) + 1]; ++at) rows.row(at) -= centroids.row(j);
  return rows;
}

// Mean squared residual of each cluster. residuals: see cluster_residuals().
inline void store_spread(const RowMatrix& residuals, HeadSegment& out) {
  out.spread.assign(out.size.size(), 0.0f);
  for (int j = 0; j < out.num_clusters; ++j) {
    float sum = 0.0f;
    for (int at = out.cluster_indptr[size_t(j)]; at < out.cluster_indptr[size_t(j) + 1]; ++at) sum += residuals.row(at).squaredNorm();
    if (out.size[size_t(j)] > 0.0f) out.spread[size_t(j)] = sum / out.size[size_t(j)];
  }
}

// Variance of each coordinate in each cluster, VarianceModel::diagonal.
inline void store_residual_variance(const RowMatrix& residuals, HeadSegment& out) {
  const Eigen::Index d = residuals.cols();
  out.residual_variance.assign(size_t(out.num_clusters) * size_t(d), 0);
  out.variance_scale.assign(out.size.size(), 0.0f);
  for (int j = 0; j < out.num_clusters; ++j) {
    Eigen::RowVectorXf variance = Eigen::RowVectorXf::Zero(d);
    for (int at = out.cluster_indptr[size_t(j)]; at < out.cluster_indptr[size_t(j) + 1]; ++at) variance += residuals.row(at).cwiseAbs2();
    variance /= std::max(1.0f, out.size[size_t(j)]);
    const float scale = std::max(variance.maxCoeff(), 1e-12f) / 255.0f;
    out.variance_scale[size_t(j)] = scale;
    for (Eigen::Index c = 0; c < d; ++c) out.residual_variance[size_t(j * d + c)] = uint8_t(std::lround(variance[c] / scale));
  }
}

// Residual codes of all tokens, cluster by cluster.
inline void store_residual_codes(const RowMatrix& residuals, const QueryMetric& metric, HeadSegment& out) {
  const int d = int(residuals.cols());
  out.code_indptr.assign(out.size.size() + 1, 0);
  for (size_t j = 0; j < out.size.size(); ++j) out.code_indptr[j + 1] = out.code_indptr[j] + num_code_blocks(int(out.size[j]));
  const size_t blocks = size_t(out.code_indptr.back());
  out.codes.assign(blocks * size_t(code_block_bytes(d)), 0);
  out.code_scale.assign(blocks * kCodeBlock, f16{});
  std::vector<float> x(size_t(code_lines(d) * kCodeLineDim));
  double squares = 0.0;
  for (int j = 0; j < out.num_clusters; ++j) {
    const int first = out.cluster_indptr[size_t(j)], size = out.cluster_indptr[size_t(j) + 1] - first;
    for (int i = 0; i < size; ++i) {
      Eigen::Map<Eigen::RowVectorXf>(x.data(), d) = residuals.row(first + i);
      simd::rotate(x.data(), metric.signs.data(), d);
      const size_t block = size_t(out.code_indptr[size_t(j)] + i / kCodeBlock), lane = size_t(i % kCodeBlock);
      f16& scale = out.code_scale[block * kCodeBlock + lane];
      store_code(x.data(), d, int(lane), out.codes.data() + block * size_t(code_block_bytes(d)), scale);
      squares += double(to_float(scale)) * double(to_float(scale));
    }
  }
  out.moments.code_scale = float(squares / double(std::max<Eigen::Index>(1, residuals.rows())));
}

}  // namespace quorum::cpu
