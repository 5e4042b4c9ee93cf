// Coordinates in which queries are white and every coordinate is alike (algorithm.md eq. 3 and 4). Building only: uses Eigen.
#pragma once

#include <algorithm>
#include <cmath>

#include "quorum/cpu/simd/vector.hpp"  // before Eigen: it silences warnings in the compiler's own intrinsics

#include <Eigen/Dense>

#include "quorum/core/clustering.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cpu/aligned_vector.hpp"
#include "quorum/cpu/row_kernels.hpp"
#include "quorum/cpu/simd/rotate.hpp"

namespace quorum::cpu {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Coordinates of one KV head.
//
// Two steps lead from a key to its coordinates: y = (k - mean_key) * forward, in which the shared residual covariance is diagonal,
// then x = rotation(signs * y). A query goes the other way round: y = inverse * q, so that x.x' = (k - mean_key).q.
struct QueryMetric {
  RowMatrix forward;                 // [head_dim][head_dim]
  AlignedVector<f16> inverse;        // [head_dim padded / 16][head_dim][16]
  AlignedVector<float> signs;        // [head_dim]
  AlignedVector<float> eigenvalues;  // [head_dim padded], trace 1, zero beyond
  AlignedVector<float> mean_key;     // [head_dim padded], zero beyond

  QueryMetricView view() const { return {inverse.data(), signs.data(), eigenvalues.data(), mean_key.data()}; }
  int64_t bytes() const {
    return int64_t(forward.size()) * 4 + content_bytes(inverse) + content_bytes(signs) + content_bytes(eigenvalues) +
           content_bytes(mean_key);
  }
};

using Metrics = std::vector<QueryMetric>;  // [num_kv_heads]

// Second moment of the group's sampled queries, trace normalised to head_dim (eq. 3).
//
// Shapes: queries [num_rows][num_qo_heads][head_dim], any element type. Rows with NaN or Inf are left out; without any row: identity.
inline Eigen::MatrixXd second_moment(const QueryView* queries, const AttentionShape& shape, int kv_head) {
  const int d = shape.head_dim;
  const Eigen::MatrixXd identity = Eigen::MatrixXd::Identity(d, d);
  if (queries == nullptr || queries->num_rows == 0) return identity;
  const int group = shape.group_size();
  constexpr int kPart = 64;  // query rows multiplied together: bounds the copy
  RowMatrix rows(kPart * group, d);
  std::vector<float> row(size_t(padded_dim(d)));
  Eigen::MatrixXd moment = Eigen::MatrixXd::Zero(d, d);
  for (int first = 0; first < queries->num_rows; first += kPart) {
    int count = 0;
    for (int i = first; i < std::min(first + kPart, queries->num_rows); ++i)
      for (int g = 0; g < group; ++g) {
        load_row(queries->row(i, kv_head * group + g), queries->type, d, 1.0f, row.data());
        rows.row(count) = Eigen::Map<const Eigen::RowVectorXf>(row.data(), d);
        if (rows.row(count).allFinite()) ++count;
      }
    moment += (rows.topRows(count).transpose() * rows.topRows(count)).template cast<double>();
  }
  const double trace = moment.trace();
  if (!(trace > 0.0) || !std::isfinite(trace)) return identity;
  return double(d) / trace * moment;
}

// A factor B with B B^T = M', and its inverse.
struct MetricFactor {
  Eigen::MatrixXd forward, inverse;
};

// Factors the metric of a second moment, which must be positive semi-definite and not zero.
inline MetricFactor factor_metric(const Eigen::MatrixXd& moment, float shrinkage) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(moment);
  const Eigen::VectorXd roots = solver.eigenvalues().unaryExpr([](double x) { return metric_root(x); });
  const double mean = roots.mean();
  const Eigen::VectorXd scale = roots.unaryExpr([&](double root) { return std::sqrt(metric_eigenvalue(root, mean, double(shrinkage))); });
  return {solver.eigenvectors() * scale.asDiagonal(), scale.cwiseInverse().asDiagonal() * solver.eigenvectors().transpose()};
}

// Random signs of the rotation, one stream a KV head.
inline AlignedVector<float> random_signs(int head_dim, uint64_t seed, int kv_head) {
  AlignedVector<float> signs(static_cast<size_t>(head_dim));
  for (int c = 0; c < head_dim; ++c) signs[size_t(c)] = rotation_sign(seed, kv_head, c);
  return signs;
}

// Packs y = inverse * q for the decode step: blocks of 16 outputs, so that one input coordinate meets 16 contiguous factors.
inline AlignedVector<f16> pack_inverse(const Eigen::MatrixXd& inverse) {
  const int d = int(inverse.rows());
  AlignedVector<f16> packed(size_t(padded_dim(d)) * size_t(d));
  for (int out = 0; out < d; ++out)
    for (int in = 0; in < d; ++in)
      packed[(size_t(out / 16) * size_t(d) + size_t(in)) * 16 + size_t(out % 16)] = from_float<f16>(float(inverse(out, in)));
  return packed;
}

// Turns coordinates so that the shared residual covariance becomes diagonal (eq. 4). residual_moment: sum of r r^T in the factor's
// coordinates; a zero or non-finite one leaves them as they are, with an isotropic covariance. Post: returns the turn U, y = z U.
inline Eigen::MatrixXd align_to_residuals(const Eigen::MatrixXd& residual_moment, AlignedVector<float>& eigenvalues) {
  const int d = int(residual_moment.rows());
  const double trace = residual_moment.trace();
  eigenvalues.assign(size_t(padded_dim(d)), 0.0f);
  std::fill_n(eigenvalues.begin(), d, 1.0f / float(d));
  if (!(trace > 0.0) || !std::isfinite(trace)) return Eigen::MatrixXd::Identity(d, d);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(residual_moment / trace);
  for (int c = 0; c < d; ++c) eigenvalues[size_t(c)] = float(std::max(solver.eigenvalues()[c], 0.0));
  return solver.eigenvectors();
}

}  // namespace quorum::cpu
