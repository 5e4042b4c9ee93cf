// From keys and values of a run of tokens to segments: coordinates, k-means, encoding, and the order of it all. Uses Eigen.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <exception>
#include <functional>
#include <memory>
#include <mutex>

#include "quorum/cpu/build_segment.hpp"
#include "quorum/cpu/executor.hpp"

namespace quorum {

// Called after each segment of each KV head has been clustered, by whichever worker did it, one call at a time: how many are done and how
// many there are. Returns false to stop building, which then ends with Error(cancelled) and leaves the index as it was.
using BuildProgress = std::function<bool(int done, int total)>;

}  // namespace quorum

namespace quorum::cpu {

// Second moment of every few residuals: enough of them that d * d numbers are well determined, by far not all.
inline Eigen::MatrixXd moment_of(const RowMatrix& residuals) {
  const Eigen::Index d = residuals.cols(), step = std::max<Eigen::Index>(1, residuals.rows() / (16 * d)), count = residuals.rows() / step;
  const Eigen::Map<const RowMatrix, 0, Eigen::OuterStride<>> some(residuals.data(), count, d, Eigen::OuterStride<>(step * d));
  Eigen::MatrixXf moment = Eigen::MatrixXf::Zero(d, d);
  moment.selfadjointView<Eigen::Lower>().rankUpdate(some.transpose());
  return Eigen::MatrixXf(moment.selfadjointView<Eigen::Lower>()).template cast<double>() * double(step);
}

// Mean of the finite keys among the tokens.
inline AlignedVector<float> mean_key(const BuildInput& input, int kv_head, std::span<const int32_t> tokens) {
  const int d = input.shape->head_dim;
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(d);
  RowMatrix keys(kLoadRows, d);
  bool ignored = false;
  for (size_t at = 0; at < tokens.size(); at += kLoadRows) {
    const auto part = tokens.subspan(at, std::min(size_t(kLoadRows), tokens.size() - at));
    load_rows(input, false, kv_head, part, keys.data(), ignored);
    sum += keys.topRows(Eigen::Index(part.size())).colwise().sum().template cast<double>();
  }
  AlignedVector<float> mean(size_t(padded_dim(d)), 0.0f);
  for (int c = 0; c < d; ++c) mean[size_t(c)] = float(sum[c] / double(std::max<size_t>(1, tokens.size())));
  return mean;
}

// Tokens of segment s if they are cut into segments of options.segment_tokens.
inline std::span<const int32_t> tokens_of_segment(const BuildInput& input, std::span<const int32_t> tokens, int s) {
  const size_t length = size_t(input.options->segment_tokens), first = size_t(s) * length;
  return tokens.subspan(first, std::min(length, tokens.size() - first));
}

inline std::shared_ptr<Segment> empty_segment(const BuildInput& input, std::span<const int32_t> tokens) {
  auto segment = std::make_shared<Segment>();
  segment->set_tokens(tokens);
  segment->heads.resize(size_t(input.shape->num_kv_heads));
  return segment;
}

inline std::vector<std::shared_ptr<Segment>> empty_segments(const BuildInput& input, std::span<const int32_t> tokens) {
  std::vector<std::shared_ptr<Segment>> segments;
  const int count = int(ceil_div(int64_t(tokens.size()), input.options->segment_tokens));
  for (int s = 0; s < count; ++s) segments.push_back(empty_segment(input, tokens_of_segment(input, tokens, s)));
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

// The first build: finds the coordinates of every head from the prompt's queries and residuals, and indexes the tokens.
//
// Cost: see ClusterIndex::build. Memory: see build_bytes().
inline std::vector<std::shared_ptr<Segment>> build_first_segments(const BuildInput& input, const QueryView* prompt_queries,
                                                                  std::span<const int32_t> tokens, std::vector<QueryMetric>& metrics,
                                                                  Executor& executor, const BuildProgress& progress) {
  const int num_kv_heads = input.shape->num_kv_heads;
  auto segments = empty_segments(input, tokens);
  const int num_segments = int(segments.size());
  std::vector<MetricFactor> factors(static_cast<size_t>(num_kv_heads));
  for_each_head_segment(executor, 1, num_kv_heads, {}, [&](int, int head) {
    QueryMetric& metric = metrics[size_t(head)];
    factors[size_t(head)] = factor_metric(second_moment(prompt_queries, *input.shape, head), input.options->metric_shrinkage);
    metric.forward = factors[size_t(head)].forward.template cast<float>();
    metric.signs = random_signs(input.shape->head_dim, input.options->seed, head);
    metric.mean_key = mean_key(input, head, tokens);
  });
  std::vector<RowMatrix> centroids(size_t(num_segments * num_kv_heads));
  std::vector<Eigen::MatrixXd> moments(centroids.size());
  const auto at = [&](int segment, int head) { return size_t(segment * num_kv_heads + head); };
  for_each_head_segment(executor, num_segments, num_kv_heads, progress, [&](int s, int head) {
    HeadSegmentBuild build(input, metrics[size_t(head)], head, tokens_of_segment(input, tokens, s),
                           segments[size_t(s)]->heads[size_t(head)]);
    while (build.advance_clusters(input)) {
    }
    moments[at(s, head)] = moment_of(build.residuals());
    centroids[at(s, head)] = std::move(build.centroids());
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
    RowMatrix& own = centroids[at(s, head)];
    own = own * turns[size_t(head)];
    finish_head_segment(input, metrics[size_t(head)], head, own, segments[size_t(s)]->heads[size_t(head)]);
    own.resize(0, 0);
  });
  return segments;
}

// Indexes further tokens in coordinates that are already there.
inline std::vector<std::shared_ptr<Segment>> build_segments(const BuildInput& input, std::span<const int32_t> tokens,
                                                            const std::vector<QueryMetric>& metrics, Executor& executor,
                                                            const BuildProgress& progress) {
  auto segments = empty_segments(input, tokens);
  for_each_head_segment(executor, int(segments.size()), input.shape->num_kv_heads, progress, [&](int s, int head) {
    build_head_segment(input, metrics[size_t(head)], head, tokens_of_segment(input, tokens, s), segments[size_t(s)]->heads[size_t(head)]);
  });
  return segments;
}

// Most memory that building holds besides the index itself, in bytes: for each worker a segment's coordinates and k-means, for each head
// its metric in double precision, and the centroids of all heads until the coordinates are final.
inline int64_t build_bytes(const AttentionShape& shape, const IndexOptions& options, int64_t num_tokens, int num_workers) {
  const int64_t d = shape.head_dim, heads = shape.num_kv_heads;
  const int64_t rows = std::min<int64_t>(options.segment_tokens, num_tokens), clusters = std::max<int64_t>(1, rows / options.cluster_size);
  const int64_t segments = ceil_div(num_tokens, options.segment_tokens);
  // Coordinates, a part of the keys, k-means or else the residuals and the means of keys and values, a copy of the moment.
  const int64_t worker = rows * d * 4 + kLoadRows * d * 4 +
                         std::max(kmeans_bytes(int(rows), int(d), int(clusters)), rows * d * 4 + clusters * d * 8) + rows * 8 + d * d * 24 +
                         64 * d;
  const int64_t first_build = segments * heads * (clusters * d * 4 + d * d * 8) + heads * d * d * 28;
  return num_workers * worker + first_build;
}

}  // namespace quorum::cpu
