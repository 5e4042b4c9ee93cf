// From keys and values of a run of tokens to a segment: coordinates, k-means, and the bytes that decoding reads. Uses Eigen.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <exception>
#include <functional>
#include <memory>
#include <mutex>

#include "quorum/core/options.hpp"
#include "quorum/cpu/executor.hpp"
#include "quorum/cpu/kmeans.hpp"
#include "quorum/cpu/query_metric.hpp"
#include "quorum/cpu/segment.hpp"

namespace quorum {

// Called after each segment of each KV head has been clustered, by whichever worker did it, one call at a time: how many are done and how
// many there are. Returns false to stop building, which then ends with Error(cancelled) and leaves the index as it was.
using BuildProgress = std::function<bool(int done, int total)>;

}  // namespace quorum

namespace quorum::cpu {

// What building one segment of one head needs to know.
struct BuildInput {
  const KvCacheView* kv = nullptr;
  const AttentionShape* shape = nullptr;
  const IndexOptions* options = nullptr;
};

// Rows that are converted and multiplied together: the copy in floats stays in L2.
inline constexpr int kLoadRows = 256;

// Rows of keys or values as floats, `out` [end - begin][head_dim]. Rows with NaN or Inf become zero and set `non_finite`.
inline void load_rows(const BuildInput& input, bool values, int kv_head, int begin, int end, float* out, bool& non_finite) {
  const int d = input.shape->head_dim;
  AlignedVector<float> row(size_t(padded_dim(d)));
  for (int i = begin; i < end; ++i, out += d) {
    load_row(values ? input.kv->value_row(i, kv_head) : input.kv->key_row(i, kv_head), input.kv->type, d, 1.0f, row.data());
    if (simd::all_finite(row.data(), int(row.size()))) {
      std::copy_n(row.data(), d, out);
    } else {
      std::fill_n(out, d, 0.0f);
      non_finite = true;
    }
  }
}

// Coordinates of the keys of tokens [begin, end) under a linear map: (k - mean_key) * forward.
inline RowMatrix key_coordinates(const BuildInput& input, const QueryMetric& metric, int kv_head, int begin, int end, bool& non_finite) {
  const int d = input.shape->head_dim;
  RowMatrix coordinates(end - begin, d), keys(kLoadRows, d);
  for (int first = begin; first < end; first += kLoadRows) {
    const int count = std::min(kLoadRows, end - first);
    load_rows(input, false, kv_head, first, first + count, keys.data(), non_finite);
    keys.topRows(count).rowwise() -= Eigen::Map<const Eigen::RowVectorXf>(metric.mean_key.data(), d);
    coordinates.middleRows(first - begin, count).noalias() = keys.topRows(count) * metric.forward;
  }
  return coordinates;
}

inline int num_clusters_for(int num_tokens, const IndexOptions& options) { return std::max(1, num_tokens / options.cluster_size); }

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

// Compressed rows of tokens by cluster, ascending inside each, and the sizes.
inline void store_tokens(const ClusterMembers& members, int begin, HeadSegment& out) {
  const size_t slots = size_t(round_up(out.num_clusters, kClusterBlock));
  out.size.assign(slots, 0.0f);
  out.cluster_indptr.assign(slots + 1, int32_t(members.rows.size()));
  for (int j = 0; j < out.num_clusters; ++j) {
    out.size[size_t(j)] = float(members.size(j));
    out.cluster_indptr[size_t(j)] = members.indptr[size_t(j)];
  }
  out.cluster_tokens.resize(members.rows.size());
  for (size_t i = 0; i < members.rows.size(); ++i) out.cluster_tokens[i] = begin + members.rows[i];
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

// Mean squared residual of each cluster. residuals: rows minus the centroids of their clusters.
inline void store_spread(const RowMatrix& residuals, const ClusterMembers& members, HeadSegment& out) {
  out.spread.assign(out.size.size(), 0.0f);
  for (int j = 0; j < out.num_clusters; ++j) {
    float sum = 0.0f;
    for (int at = members.indptr[size_t(j)]; at < members.indptr[size_t(j) + 1]; ++at)
      sum += residuals.row(members.rows[size_t(at)]).squaredNorm();
    if (members.size(j) > 0) out.spread[size_t(j)] = sum / float(members.size(j));
  }
}

// Variance of each coordinate in each cluster, VarianceModel::diagonal. Goes over the keys again: final coordinates are known only now.
inline void store_residual_variance(const BuildInput& input, const QueryMetric& metric, int kv_head, int begin, int end,
                                    const RowMatrix& centroids, HeadSegment& out) {
  bool ignored = false;
  const RowMatrix rows = key_coordinates(input, metric, kv_head, begin, end, ignored);
  const Eigen::Index d = rows.cols();
  out.residual_variance.assign(size_t(centroids.size()), 0);
  out.variance_scale.assign(out.size.size(), 0.0f);
  for (int j = 0; j < out.num_clusters; ++j) {
    Eigen::RowVectorXf variance = Eigen::RowVectorXf::Zero(d);
    for (int at = out.cluster_indptr[size_t(j)]; at < out.cluster_indptr[size_t(j) + 1]; ++at)
      variance += (rows.row(out.cluster_tokens[size_t(at)] - begin) - centroids.row(j)).cwiseAbs2();
    variance /= std::max(1.0f, out.size[size_t(j)]);
    const float scale = std::max(variance.maxCoeff(), 1e-12f) / 255.0f;
    out.variance_scale[size_t(j)] = scale;
    for (Eigen::Index c = 0; c < d; ++c) out.residual_variance[size_t(j * d + c)] = uint8_t(std::lround(variance[c] / scale));
  }
}

// Second moment of every few residuals: enough of them that d * d numbers are well determined, by far not all.
inline Eigen::MatrixXd moment_of(const RowMatrix& residuals) {
  const Eigen::Index d = residuals.cols(), step = std::max<Eigen::Index>(1, residuals.rows() / (16 * d)), count = residuals.rows() / step;
  const Eigen::Map<const RowMatrix, 0, Eigen::OuterStride<>> some(residuals.data(), count, d, Eigen::OuterStride<>(step * d));
  Eigen::MatrixXf moment = Eigen::MatrixXf::Zero(d, d);
  moment.selfadjointView<Eigen::Lower>().rankUpdate(some.transpose());
  return Eigen::MatrixXf(moment.selfadjointView<Eigen::Lower>()).template cast<double>() * double(step);
}

// Clusters tokens [begin, end) of one KV head and fills all of `out` that does not depend on a further turn of the coordinates.
// Adds nothing to `residual_moment` if it is null. Returns the centroids [num_clusters][head_dim] in the metric's coordinates.
inline RowMatrix cluster_segment(const BuildInput& input, const QueryMetric& metric, int kv_head, int begin, int end, HeadSegment& out,
                                 Eigen::MatrixXd* residual_moment) {
  const int d = input.shape->head_dim;
  RowMatrix rows = key_coordinates(input, metric, kv_head, begin, end, out.non_finite);
  out.num_clusters = num_clusters_for(end - begin, *input.options);
  const ClusterMembers members(kmeans(rows.data(), end - begin, d, out.num_clusters, input.options->iterations), out.num_clusters);
  store_tokens(members, begin, out);
  RowMatrix centroids = cluster_means(rows, members);
  for (int j = 0; j < out.num_clusters; ++j)
    for (int at = members.indptr[size_t(j)]; at < members.indptr[size_t(j) + 1]; ++at)
      rows.row(members.rows[size_t(at)]) -= centroids.row(j);
  store_spread(rows, members, out);
  if (residual_moment != nullptr) *residual_moment = moment_of(rows);
  load_rows(input, true, kv_head, begin, end, rows.data(), out.non_finite);
  store_value_means(cluster_means(rows, members), input.options->storage, out);
  return centroids;
}

// The rest of a segment, once the coordinates are final. centroids: in the metric's coordinates.
inline void finish_segment(const BuildInput& input, const QueryMetric& metric, int kv_head, int begin, int end, const RowMatrix& centroids,
                           HeadSegment& out) {
  store_centroids(centroids, metric, input.options->storage, out);
  if (input.options->variance == VarianceModel::diagonal) store_residual_variance(input, metric, kv_head, begin, end, centroids, out);
}

// Mean of the finite keys among tokens [begin, end).
inline AlignedVector<float> mean_key(const BuildInput& input, int kv_head, int begin, int end) {
  const int d = input.shape->head_dim;
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(d);
  RowMatrix keys(kLoadRows, d);
  bool ignored = false;
  for (int first = begin; first < end; first += kLoadRows) {
    const int count = std::min(kLoadRows, end - first);
    load_rows(input, false, kv_head, first, first + count, keys.data(), ignored);
    sum += keys.topRows(count).colwise().sum().template cast<double>();
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

// Runs task(segment, kv_head) for all pairs on the executor; the first exception of any of them, or of the progress report after each, is
// thrown here once all have ended; tasks that have not begun by then are left out.
template <class Task>
void for_each_head_segment(Executor& executor, int num_segments, int num_kv_heads, const BuildProgress& progress, Task&& task) {
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  std::mutex mutex;
  int done = 0;
  const int total = num_segments * num_kv_heads;
  for_each_task(executor, total, [&](int i) {
    if (failed.load(std::memory_order_relaxed)) return;
    const auto fail = [&] {  // under the lock, so that nobody reports progress after the failure
      if (!failure) failure = std::current_exception();
      failed.store(true, std::memory_order_relaxed);
    };
    try {
      const SerialEigen serial;
      task(i / num_kv_heads, i % num_kv_heads);
    } catch (...) {
      std::lock_guard lock(mutex);
      return fail();
    }
    if (!progress) return;
    std::lock_guard lock(mutex);
    if (failure) return;
    try {
      if (!progress(++done, total)) throw Error(ErrorCode::cancelled, "ClusterIndex: the progress callback asked to stop");
    } catch (...) {
      fail();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// The first build: finds the coordinates of every head from the prompt's queries and residuals, and indexes tokens [begin, end).
//
// Cost: see ClusterIndex::build. Memory: see build_bytes().
inline std::vector<std::shared_ptr<Segment>> build_first_segments(const BuildInput& input, const QueryView* prompt_queries, int begin,
                                                                  int end, std::vector<QueryMetric>& metrics, Executor& executor,
                                                                  const BuildProgress& progress) {
  const int num_kv_heads = input.shape->num_kv_heads;
  auto segments = empty_segments(input, begin, end);
  const int num_segments = int(segments.size());
  std::vector<MetricFactor> factors(static_cast<size_t>(num_kv_heads));
  for_each_head_segment(executor, 1, num_kv_heads, {}, [&](int, int head) {
    QueryMetric& metric = metrics[size_t(head)];
    factors[size_t(head)] = factor_metric(shrunk_second_moment(prompt_queries, *input.shape, head, input.options->metric_shrinkage));
    metric.forward = factors[size_t(head)].forward.template cast<float>();
    metric.signs = random_signs(input.shape->head_dim, input.options->seed, head);
    metric.mean_key = mean_key(input, head, begin, end);
  });
  std::vector<RowMatrix> centroids(size_t(num_segments * num_kv_heads));
  std::vector<Eigen::MatrixXd> moments(centroids.size());
  const auto at = [&](int segment, int head) { return size_t(segment * num_kv_heads + head); };
  for_each_head_segment(executor, num_segments, num_kv_heads, progress, [&](int s, int head) {
    Segment& segment = *segments[size_t(s)];
    centroids[at(s, head)] = cluster_segment(input, metrics[size_t(head)], head, segment.begin_token, segment.end_token,
                                             segment.heads[size_t(head)], &moments[at(s, head)]);
  });
  std::vector<RowMatrix> turns(static_cast<size_t>(num_kv_heads));
  for_each_head_segment(executor, 1, num_kv_heads, {}, [&](int, int head) {
    QueryMetric& metric = metrics[size_t(head)];
    for (int s = 1; s < num_segments; ++s) moments[size_t(head)] += moments[at(s, head)];
    const Eigen::MatrixXd turn = align_to_residuals(moments[size_t(head)], metric.eigenvalues);
    turns[size_t(head)] = turn.template cast<float>();
    metric.forward = (factors[size_t(head)].forward * turn).template cast<float>();
    metric.inverse = pack_inverse(turn.transpose() * factors[size_t(head)].inverse);
  });
  for_each_head_segment(executor, num_segments, num_kv_heads, {}, [&](int s, int head) {
    Segment& segment = *segments[size_t(s)];
    RowMatrix& own = centroids[at(s, head)];
    own = own * turns[size_t(head)];
    finish_segment(input, metrics[size_t(head)], head, segment.begin_token, segment.end_token, own, segment.heads[size_t(head)]);
    own.resize(0, 0);
  });
  return segments;
}

// Indexes further tokens [begin, end) in coordinates that are already there.
inline std::vector<std::shared_ptr<Segment>> build_segments(const BuildInput& input, int begin, int end,
                                                            const std::vector<QueryMetric>& metrics, Executor& executor,
                                                            const BuildProgress& progress) {
  auto segments = empty_segments(input, begin, end);
  for_each_head_segment(executor, int(segments.size()), input.shape->num_kv_heads, progress, [&](int s, int head) {
    Segment& segment = *segments[size_t(s)];
    const QueryMetric& metric = metrics[size_t(head)];
    HeadSegment& out = segment.heads[size_t(head)];
    const RowMatrix centroids = cluster_segment(input, metric, head, segment.begin_token, segment.end_token, out, nullptr);
    finish_segment(input, metric, head, segment.begin_token, segment.end_token, centroids, out);
  });
  return segments;
}

// Most memory that building holds besides the index itself, in bytes: for each worker a segment's coordinates and k-means, for each head
// its metric in double precision, and the centroids of all heads until the coordinates are final.
inline int64_t build_bytes(const AttentionShape& shape, const IndexOptions& options, int64_t num_tokens, int num_workers) {
  const int64_t d = shape.head_dim, heads = shape.num_kv_heads;
  const int64_t rows = std::min<int64_t>(options.segment_tokens, num_tokens), clusters = std::max<int64_t>(1, rows / options.cluster_size);
  const int64_t segments = ceil_div(num_tokens, options.segment_tokens);
  // Coordinates, a part of the keys, k-means or else the means of keys and values, a copy of the moment.
  const int64_t worker = rows * d * 4 + kLoadRows * d * 4 + std::max(kmeans_bytes(int(rows), int(d), int(clusters)), clusters * d * 8) +
                         rows * 8 + d * d * 24 + 64 * d;
  const int64_t first_build = segments * heads * (clusters * d * 4 + d * d * 8) + heads * d * d * 28;
  return num_workers * worker + first_build;
}

}  // namespace quorum::cpu
