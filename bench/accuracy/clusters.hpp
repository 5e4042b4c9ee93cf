// The bench's own clusters: plain k-means and the sums over them that the baselines need. Shares nothing with the library's index.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "bench/accuracy/ground_truth.hpp"

namespace accuracy {

// Tokens clustered together, mean tokens a cluster and rounds, the same for every rule.
inline constexpr int kSegmentTokens = 8192, kClusterSize = 16, kKmeansIterations = 10;

// A clustering of the indexed tokens of one head.
struct Clusters {
  int count = 0;
  std::vector<int> of_token;  // [num_indexed]
  std::vector<int> indptr;    // [count + 1]
  std::vector<int> tokens;    // [num_indexed], by cluster, ascending inside one
  Vector size;                // [count]
  Matrix centroids;           // [count][head_dim], mean key
  Matrix value_means;         // [count][head_dim]
  Matrix scores;              // [rows][count], query . centroid - top
  Matrix weights;             // [rows][count], true weight of the cluster's tokens
};

namespace detail {

// Nearest centroid of every point; distances (less the point's own norm) if wanted.
inline void assign_points(const Matrix& points, const Matrix& centroids, std::vector<int>& of_point, quorum::Executor& executor) {
  const Eigen::RowVectorXf norms = centroids.rowwise().squaredNorm().transpose();
  constexpr int kChunk = 256;
  quorum::for_each_task(executor, int(quorum::ceil_div(points.rows(), kChunk)), [&](int chunk) {
    const int first = chunk * kChunk, count = std::min(kChunk, int(points.rows()) - first);
    Matrix distances = points.middleRows(first, count) * centroids.transpose() * -2.0f;
    distances.rowwise() += norms;
    for (int r = 0; r < count; ++r) distances.row(r).minCoeff(&of_point[size_t(first + r)]);
  });
}

// Empty clusters restart at the points that lie farthest from their centroid.
inline void restart_empty(const Matrix& points, const std::vector<int>& of_point, const std::vector<int>& empty, Matrix& centroids) {
  std::vector<float> distance(of_point.size());
  for (size_t i = 0; i < of_point.size(); ++i) distance[i] = (points.row(Eigen::Index(i)) - centroids.row(of_point[i])).squaredNorm();
  std::vector<int> order(of_point.size());
  std::iota(order.begin(), order.end(), 0);
  const auto count = std::min(empty.size(), order.size());
  std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(count), order.end(),
                    [&](int a, int b) { return distance[size_t(a)] > distance[size_t(b)]; });
  for (size_t i = 0; i < count; ++i) centroids.row(empty[i]) = points.row(order[i]);
}

// Lloyd's algorithm. Start: k points at uniform stride, shifted by `shift` in [0, 1) of the points. Returns the cluster of each point.
inline std::vector<int> kmeans(const Matrix& points, int k, double shift, quorum::Executor& executor) {
  const auto n = int(points.rows());
  Matrix centroids(k, points.cols());
  for (int j = 0; j < k; ++j) {
    const int start = k == 1 ? 0 : int(double(n - 1) * j / (k - 1));
    centroids.row(j) = points.row((start + int(shift * n)) % n);
  }
  std::vector<int> of_point(static_cast<size_t>(n));
  for (int iteration = 0; iteration < kKmeansIterations; ++iteration) {
    assign_points(points, centroids, of_point, executor);
    Matrix sums = Matrix::Zero(k, points.cols());
    std::vector<int> size(static_cast<size_t>(k)), empty;
    for (int i = 0; i < n; ++i) {
      sums.row(of_point[size_t(i)]) += points.row(i);
      ++size[size_t(of_point[size_t(i)])];
    }
    for (int j = 0; j < k; ++j) {
      if (size[size_t(j)] == 0) empty.push_back(j);
      if (size[size_t(j)] > 0) centroids.row(j) = sums.row(j) / float(size[size_t(j)]);
    }
    if (!empty.empty()) restart_empty(points, of_point, empty, centroids);
  }
  assign_points(points, centroids, of_point, executor);
  return of_point;
}

// Fills everything but the clustering itself.
inline void summarise(const HeadTruth& head, Clusters& clusters) {
  const int count = clusters.count, indexed = head.num_indexed();
  clusters.indptr.assign(size_t(count) + 1, 0);
  for (const int c : clusters.of_token) ++clusters.indptr[size_t(c) + 1];
  std::partial_sum(clusters.indptr.begin(), clusters.indptr.end(), clusters.indptr.begin());
  clusters.tokens.resize(size_t(indexed));
  std::vector<int> next(clusters.indptr.begin(), clusters.indptr.end() - 1);
  clusters.centroids = Matrix::Zero(count, head.head_dim);
  clusters.value_means = Matrix::Zero(count, head.head_dim);
  clusters.weights = Matrix::Zero(head.num_rows(), count);
  for (int i = 0; i < indexed; ++i) {
    const int c = clusters.of_token[size_t(i)];
    clusters.tokens[size_t(next[size_t(c)]++)] = i;
    clusters.centroids.row(c) += head.keys.row(i);
    clusters.value_means.row(c) += head.values.row(i);
  }
  clusters.size.resize(count);
  for (int c = 0; c < count; ++c) clusters.size[c] = clusters.indptr[size_t(c) + 1] - clusters.indptr[size_t(c)];
  clusters.centroids.array().colwise() /= clusters.size.cast<float>().array();
  clusters.value_means.array().colwise() /= clusters.size.cast<float>().array();
  for (int row = 0; row < head.num_rows(); ++row) {
    for (int i = 0; i < indexed; ++i) clusters.weights(row, clusters.of_token[size_t(i)]) += head.weights(row, i);
  }
  clusters.scores = head.queries * clusters.centroids.transpose();
  clusters.scores.array().colwise() -= head.top.cast<float>().array();
}

}  // namespace detail

// K-means of the keys, plain L2, segment by segment; empty clusters are left out.
//
// Determinism: the same seed gives the same clusters; seed 0 starts at uniform stride from the first token.
inline Clusters make_clusters(const HeadTruth& head, int seed, quorum::Executor& executor) {
  Clusters clusters;
  const int indexed = head.num_indexed();
  const double shift = seed * 0.6180339887498949 - std::floor(seed * 0.6180339887498949);
  clusters.of_token.resize(size_t(indexed));
  for (int first = 0; first < indexed; first += kSegmentTokens) {
    const int count = std::min(kSegmentTokens, indexed - first), k = std::max(1, count / kClusterSize);
    const std::vector<int> part = detail::kmeans(head.keys.middleRows(first, count), k, shift, executor);
    std::vector<int> id(static_cast<size_t>(k), -1);
    for (const int c : part) id[size_t(c)] = 0;
    for (int& c : id) {
      if (c == 0) c = clusters.count++;
    }
    for (int i = 0; i < count; ++i) clusters.of_token[size_t(first + i)] = id[size_t(part[size_t(i)])];
  }
  detail::summarise(head, clusters);
  return clusters;
}

// Lines of chosen clusters as lines of chosen tokens.
inline Mask tokens_of(const Clusters& clusters, const Mask& chosen) {
  Mask kept(chosen.rows(), Eigen::Index(clusters.of_token.size()));
  for (Eigen::Index r = 0; r < chosen.rows(); ++r) {
    for (Eigen::Index i = 0; i < kept.cols(); ++i) kept(r, i) = chosen(r, clusters.of_token[size_t(i)]);
  }
  return kept;
}

}  // namespace accuracy
