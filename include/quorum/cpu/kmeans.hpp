// Lloyd's k-means over the rows of one segment, deterministic. Building only: uses Eigen.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "quorum/cpu/query_metric.hpp"

namespace quorum::cpu {

// Index of the largest element, the first of equals. NaN never wins; n >= 1.
inline int arg_max(const float* x, int n) {
  using namespace simd;
  int i = 0;
  float best = -kInfinity;
  if (n >= kVectorSize) {
    Vector largest(-kInfinity);
    for (; i + kVectorSize <= n; i += kVectorSize) largest = maximum(load(x + i), largest);
    float lanes[kVectorSize];
    store(lanes, largest);
    best = *std::max_element(lanes, lanes + kVectorSize);
  }
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  const float* found = std::find(x, x + n, best);
  return found == x + n ? 0 : int(found - x);
}

// assignment[i] = nearest centroid of row i, by the largest x.c - |c|^2 / 2. Returns how many rows changed.
// Cost: rows * clusters * dim multiply-adds as a matrix product, 256 rows at a time.
inline int assign_to_nearest(const RowMatrix& rows, const RowMatrix& centroids, std::vector<int>& assignment) {
  constexpr int kBlock = 256;
  const Eigen::RowVectorXf half_norms = 0.5f * centroids.rowwise().squaredNorm().transpose();
  RowMatrix scores(kBlock, centroids.rows());
  int changed = 0;
  for (Eigen::Index first = 0; first < rows.rows(); first += kBlock) {
    const Eigen::Index count = std::min<Eigen::Index>(kBlock, rows.rows() - first);
    scores.topRows(count).noalias() = rows.middleRows(first, count) * centroids.transpose();
    scores.topRows(count).rowwise() -= half_norms;
    for (Eigen::Index i = 0; i < count; ++i) {
      const int nearest = arg_max(scores.row(i).data(), int(centroids.rows()));
      changed += assignment[size_t(first + i)] != nearest;
      assignment[size_t(first + i)] = nearest;
    }
  }
  return changed;
}

// Mean of each cluster's rows; counts[j] rows each. Empty clusters keep their centroid.
inline void update_centroids(const RowMatrix& rows, const std::vector<int>& assignment, RowMatrix& centroids, std::vector<int>& counts) {
  RowMatrix sums = RowMatrix::Zero(centroids.rows(), centroids.cols());
  std::fill(counts.begin(), counts.end(), 0);
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    sums.row(assignment[size_t(i)]) += rows.row(i);
    ++counts[size_t(assignment[size_t(i)])];
  }
  for (Eigen::Index j = 0; j < centroids.rows(); ++j)
    if (counts[size_t(j)] > 0) centroids.row(j) = sums.row(j) / float(counts[size_t(j)]);
}

// Moves the centroids of empty clusters to the rows that are farthest from their own. Returns whether there were any.
inline bool restart_empty_clusters(const RowMatrix& rows, const std::vector<int>& assignment, RowMatrix& centroids,
                                   const std::vector<int>& counts) {
  const auto empty = size_t(std::count(counts.begin(), counts.end(), 0));
  if (empty == 0) return false;
  std::vector<float> distance(size_t(rows.rows()));
  for (Eigen::Index i = 0; i < rows.rows(); ++i) distance[size_t(i)] = (rows.row(i) - centroids.row(assignment[size_t(i)])).squaredNorm();
  std::vector<int> worst(distance.size());
  std::iota(worst.begin(), worst.end(), 0);
  const size_t restarts = std::min(empty, worst.size());
  std::partial_sort(worst.begin(), worst.begin() + std::ptrdiff_t(restarts), worst.end(), [&](int a, int b) {
    return distance[size_t(a)] != distance[size_t(b)] ? distance[size_t(a)] > distance[size_t(b)] : a < b;
  });
  size_t next = 0;
  for (size_t j = 0; j < counts.size() && next < restarts; ++j)
    if (counts[j] == 0) centroids.row(Eigen::Index(j)) = rows.row(worst[next++]);
  return true;
}

// Clusters the rows.
//
// Method: Lloyd's algorithm from rows at uniform stride, at most `iterations` rounds, then one last assignment (method as in the
// reference study). Shapes: rows [n][dim], finite; num_clusters <= n. Determinism: same rows, same result, whatever the threads.
// Post: assignment [n] in [0, num_clusters); clusters may be empty. Cost: (iterations + 1) * n * num_clusters * dim multiply-adds.
inline std::vector<int> kmeans(const RowMatrix& rows, int num_clusters, int iterations) {
  const Eigen::Index n = rows.rows();
  RowMatrix centroids(num_clusters, rows.cols());
  for (int j = 0; j < num_clusters; ++j)
    centroids.row(j) = rows.row(num_clusters == 1 ? 0 : Eigen::Index(int64_t(j) * (n - 1) / (num_clusters - 1)));
  std::vector<int> assignment(size_t(n), -1), counts(static_cast<size_t>(num_clusters));
  for (int round = 0; round < iterations; ++round) {
    const int changed = assign_to_nearest(rows, centroids, assignment);
    if (changed == 0) return assignment;
    update_centroids(rows, assignment, centroids, counts);
    restart_empty_clusters(rows, assignment, centroids, counts);
  }
  assign_to_nearest(rows, centroids, assignment);
  return assignment;
}

}  // namespace quorum::cpu
