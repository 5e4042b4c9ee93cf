// From keys and values of a run of tokens to a segment: coordinates, k-means, and the bytes that decoding reads. Uses Eigen.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <exception>
#include <memory>
#include <mutex>

#include "quorum/core/options.hpp"
#include "quorum/cpu/executor.hpp"
#include "quorum/cpu/kmeans.hpp"
#include "quorum/cpu/segment.hpp"

namespace quorum::cpu {

// What building one segment of one head needs to know.
struct BuildInput {
  const KvCacheView* kv = nullptr;
  const AttentionShape* shape = nullptr;
  const IndexOptions* options = nullptr;
};

// Rows of keys or values as floats. Rows with NaN or Inf become zero and set `non_finite`.
inline RowMatrix load_rows(const BuildInput& input, bool values, int kv_head, int begin, int end, bool& non_finite) {
  const int d = input.shape->head_dim;
  RowMatrix rows(end - begin, d);
  std::vector<float> row(size_t(padded_dim(d)));
  for (int i = begin; i < end; ++i) {
    load_row(values ? input.kv->value_row(i, kv_head) : input.kv->key_row(i, kv_head), input.kv->type, d, 1.0f, row.data());
    const Eigen::Map<const Eigen::RowVectorXf> mapped(row.data(), d);
    if (mapped.allFinite()) {
      rows.row(i - begin) = mapped;
    } else {
      rows.row(i - begin).setZero();
      non_finite = true;
    }
  }
  return rows;
}

// Coordinates of the keys of tokens [begin, end) under a linear map: (k - mean_key) * forward.
inline RowMatrix key_coordinates(const BuildInput& input, const QueryMetric& metric, int kv_head, int begin, int end, bool& non_finite) {
  RowMatrix keys = load_rows(input, false, kv_head, begin, end, non_finite);
  keys.rowwise() -= Eigen::Map<const Eigen::RowVectorXf>(metric.mean_key.data(), input.shape->head_dim);
  return keys * metric.forward;
}

inline int num_clusters_for(int num_tokens, const IndexOptions& options) { return std::max(1, num_tokens / options.cluster_size); }

// Means of the rows of each cluster; empty clusters get zeros.
inline RowMatrix cluster_means(const RowMatrix& rows, const std::vector<int>& assignment, int num_clusters) {
  RowMatrix means = RowMatrix::Zero(num_clusters, rows.cols());
  std::vector<int> counts(size_t(num_clusters), 0);
  update_centroids(rows, assignment, means, counts);
  return means;
}

// Compressed rows of tokens by cluster, ascending inside each, and the sizes.
inline void store_tokens(const std::vector<int>& assignment, int begin, HeadSegment& out) {
  const size_t slots = size_t(round_up(out.num_clusters, kClusterBlock));
  out.size.assign(slots, 0.0f);
  out.cluster_indptr.assign(slots + 1, 0);
  for (const int cluster : assignment) ++out.cluster_indptr[size_t(cluster) + 1];
  for (size_t j = 0; j < slots; ++j) {
    out.size[j] = float(out.cluster_indptr[j + 1]);
    out.cluster_indptr[j + 1] += out.cluster_indptr[j];
  }
  std::vector<int32_t> next(out.cluster_indptr.begin(), out.cluster_indptr.end() - 1);
  out.cluster_tokens.resize(assignment.size());
  for (size_t i = 0; i < assignment.size(); ++i) out.cluster_tokens[size_t(next[size_t(assignment[i])]++)] = begin + int(i);
}

// Scale of an int8 row: its largest magnitude is 127 steps.
inline float row_scale(const float* row, int dim) {
  float largest = 1e-12f;
  for (int c = 0; c < dim; ++c) largest = std::max(largest, std::fabs(row[c]));
  return largest / 127.0f;
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
    for (int c = 0; c < d; ++c)
      block[(c / 4) * 4 * kClusterBlock + (j % kClusterBlock) * 4 + c % 4] =
          uint8_t(int(std::lround(x[size_t(c)] / scale)) + kCentroidZero);
  }
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
    for (int c = 0; c < d; ++c) out.value_means[size_t(j) * size_t(d) + size_t(c)] = int8_t(std::lround(means(j, c) / scale));
  }
}

// Mean squared residual of each cluster and, for VarianceModel::diagonal, the variance of each coordinate.
inline void store_spread(const RowMatrix& rows, const RowMatrix& centroids, const std::vector<int>& assignment, VarianceModel model,
                         HeadSegment& out) {
  const Eigen::Index d = rows.cols();
  RowMatrix variance = RowMatrix::Zero(out.num_clusters, d);
  for (Eigen::Index i = 0; i < rows.rows(); ++i)
    variance.row(assignment[size_t(i)]) += (rows.row(i) - centroids.row(assignment[size_t(i)])).cwiseAbs2();
  out.spread.assign(out.size.size(), 0.0f);
  for (int j = 0; j < out.num_clusters; ++j) {
    if (out.size[size_t(j)] > 0.0f) variance.row(j) /= out.size[size_t(j)];
    out.spread[size_t(j)] = variance.row(j).sum();
  }
  if (model != VarianceModel::diagonal) return;
  out.residual_variance.assign(size_t(variance.size()), 0);
  out.variance_scale.assign(out.size.size(), 0.0f);
  for (int j = 0; j < out.num_clusters; ++j) {
    const float scale = std::max(variance.row(j).maxCoeff(), 1e-12f) / 255.0f;
    out.variance_scale[size_t(j)] = scale;
    for (Eigen::Index c = 0; c < d; ++c) out.residual_variance[size_t(j * d + c)] = uint8_t(std::lround(variance(j, c) / scale));
  }
}

// Everything decoding needs of tokens [begin, end) of one KV head, given which cluster each token is in.
inline HeadSegment encode_segment(const BuildInput& input, const QueryMetric& metric, int kv_head, int begin, int end,
                                  const std::vector<int>& assignment) {
  HeadSegment out;
  out.num_clusters = num_clusters_for(end - begin, *input.options);
  store_tokens(assignment, begin, out);
  const RowMatrix rows = key_coordinates(input, metric, kv_head, begin, end, out.non_finite);
  const RowMatrix centroids = cluster_means(rows, assignment, out.num_clusters);
  store_centroids(centroids, metric, input.options->storage, out);
  store_spread(rows, centroids, assignment, input.options->variance, out);
  const RowMatrix values = load_rows(input, true, kv_head, begin, end, out.non_finite);
  store_value_means(cluster_means(values, assignment, out.num_clusters), input.options->storage, out);
  return out;
}

// Clusters tokens [begin, end) of one KV head. Adds their residual moment to `residual_moment` if it is not null.
inline std::vector<int> cluster_segment(const BuildInput& input, const QueryMetric& metric, int kv_head, int begin, int end,
                                        Eigen::MatrixXd* residual_moment) {
  bool ignored = false;
  RowMatrix rows = key_coordinates(input, metric, kv_head, begin, end, ignored);
  const int num_clusters = num_clusters_for(end - begin, *input.options);
  std::vector<int> assignment = kmeans(rows, num_clusters, input.options->iterations);
  if (residual_moment != nullptr) {
    const RowMatrix centroids = cluster_means(rows, assignment, num_clusters);
    for (Eigen::Index i = 0; i < rows.rows(); ++i) rows.row(i) -= centroids.row(assignment[size_t(i)]);
    *residual_moment = (rows.transpose() * rows).template cast<double>();
  }
  return assignment;
}

// Mean of the finite keys among tokens [begin, end).
inline AlignedVector<float> mean_key(const BuildInput& input, int kv_head, int begin, int end) {
  const int d = input.shape->head_dim;
  constexpr int kChunk = 4096;  // bounds the copy
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(d);
  bool ignored = false;
  for (int first = begin; first < end; first += kChunk) {
    const RowMatrix keys = load_rows(input, false, kv_head, first, std::min(first + kChunk, end), ignored);
    sum += keys.colwise().sum().template cast<double>();
  }
  AlignedVector<float> mean(size_t(padded_dim(d)), 0.0f);
  for (int c = 0; c < d; ++c) mean[size_t(c)] = float(sum[c] / std::max(1, end - begin));
  return mean;
}

// Cuts [begin, end) into segments of options.segment_tokens.
inline std::vector<std::shared_ptr<Segment>> empty_segments(const BuildInput& input, int begin, int end) {
  std::vector<std::shared_ptr<Segment>> segments;
  for (int first = begin; first < end; first += input.options->segment_tokens) {
    auto segment = std::make_shared<Segment>();
    segment->begin_token = first;
    segment->end_token = std::min(first + input.options->segment_tokens, end);
    segment->heads.resize(size_t(input.shape->num_kv_heads));
    segments.push_back(std::move(segment));
  }
  return segments;
}

// Keeps Eigen on the calling thread for its lifetime: built with OpenMP it would otherwise start threads inside every worker.
class SerialEigen {
 public:
#if defined(_OPENMP)
  SerialEigen() : num_threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SerialEigen() { omp_set_num_threads(num_threads_); }
  SerialEigen(const SerialEigen&) = delete;
  SerialEigen& operator=(const SerialEigen&) = delete;

 private:
  int num_threads_;
#else
  SerialEigen() {}  // not trivial, so that an unused variable is no warning
#endif
};

// Runs task(segment, kv_head) for all pairs on the executor; the first exception of any of them is thrown here, after all have ended.
template <class Task>
void for_each_head_segment(Executor& executor, int num_segments, int num_kv_heads, Task&& task) {
  std::exception_ptr failure;
  std::mutex mutex;
  for_each_task(executor, num_segments * num_kv_heads, [&](int i) {
    try {
      const SerialEigen serial;
      task(i / num_kv_heads, i % num_kv_heads);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// The first build: finds the coordinates of every head from the prompt's queries and residuals, and indexes tokens [begin, end).
//
// Cost: k-means dominates, see kmeans(). Memory: a float copy of one segment's keys per worker.
inline std::vector<std::shared_ptr<Segment>> build_first_segments(const BuildInput& input, const QueryView* prompt_queries, int begin,
                                                                  int end, std::vector<QueryMetric>& metrics, Executor& executor) {
  const int num_kv_heads = input.shape->num_kv_heads;
  auto segments = empty_segments(input, begin, end);
  const int num_segments = int(segments.size());
  std::vector<MetricFactor> factors(static_cast<size_t>(num_kv_heads));
  for_each_head_segment(executor, 1, num_kv_heads, [&](int, int head) {
    QueryMetric& metric = metrics[size_t(head)];
    factors[size_t(head)] = factor_metric(shrunk_second_moment(prompt_queries, *input.shape, head, input.options->metric_shrinkage));
    metric.forward = factors[size_t(head)].forward.template cast<float>();
    metric.signs = random_signs(input.shape->head_dim, input.options->seed, head);
    metric.mean_key = mean_key(input, head, begin, end);
  });
  std::vector<std::vector<int>> assignments(size_t(num_segments * num_kv_heads));
  std::vector<Eigen::MatrixXd> moments(assignments.size());
  const auto at = [&](int segment, int head) { return size_t(segment * num_kv_heads + head); };
  for_each_head_segment(executor, num_segments, num_kv_heads, [&](int s, int head) {
    assignments[at(s, head)] = cluster_segment(input, metrics[size_t(head)], head, segments[size_t(s)]->begin_token,
                                               segments[size_t(s)]->end_token, &moments[at(s, head)]);
  });
  for_each_head_segment(executor, 1, num_kv_heads, [&](int, int head) {
    QueryMetric& metric = metrics[size_t(head)];
    for (int s = 1; s < num_segments; ++s) moments[size_t(head)] += moments[at(s, head)];
    const Eigen::MatrixXd turn = align_to_residuals(moments[size_t(head)], metric.eigenvalues);
    metric.forward = (factors[size_t(head)].forward * turn).template cast<float>();
    metric.inverse = pack_inverse(turn.transpose() * factors[size_t(head)].inverse);
  });
  for_each_head_segment(executor, num_segments, num_kv_heads, [&](int s, int head) {
    Segment& segment = *segments[size_t(s)];
    segment.heads[size_t(head)] =
        encode_segment(input, metrics[size_t(head)], head, segment.begin_token, segment.end_token, assignments[at(s, head)]);
  });
  return segments;
}

// Indexes further tokens [begin, end) in coordinates that are already there.
inline std::vector<std::shared_ptr<Segment>> build_segments(const BuildInput& input, int begin, int end,
                                                            const std::vector<QueryMetric>& metrics, Executor& executor) {
  auto segments = empty_segments(input, begin, end);
  for_each_head_segment(executor, int(segments.size()), input.shape->num_kv_heads, [&](int s, int head) {
    Segment& segment = *segments[size_t(s)];
    const QueryMetric& metric = metrics[size_t(head)];
    const auto assignment = cluster_segment(input, metric, head, segment.begin_token, segment.end_token, nullptr);
    segment.heads[size_t(head)] = encode_segment(input, metric, head, segment.begin_token, segment.end_token, assignment);
  });
  return segments;
}

}  // namespace quorum::cpu
