// Reading tokens by short codes of what their cluster's mean leaves of their keys: codes_1bit and codes_2bit. A plain restatement of the
// method that shares nothing with the library's own index and decoder, to check their figures against.
#pragma once

#include <random>

#include "bench/accuracy/record.hpp"

namespace accuracy {

// Mean tokens a cluster: more than the other rules have, since codes tell apart the tokens of one cluster.
inline constexpr int kCodedClusterSize = 32;
// Part of the estimated weight whose clusters are candidates, the only ones whose codes are read.
inline constexpr double kCandidateShare = 0.97;

namespace detail {

// Estimates are in double: their exponent has no bound.
using Estimates = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Coordinates in which an error of a key costs the same in every direction, on average over the prompt's queries.
struct QueryMetric {
  Matrix of_keys, of_queries;  // [head_dim][head_dim]; (q of_queries) . (k of_keys) = q . k
};

// The second moment of the prompt's queries, trace normalised to head_dim and shrunk by a tenth, as B B^T; then one random rotation, fixed
// for all heads and seeds, so that every coordinate of k B is alike: int8 rows and short codes lose little then.
inline QueryMetric make_query_metric(const HeadTruth& head) {
  constexpr double kShrinkage = 0.1;
  const int d = head.head_dim;
  Eigen::MatrixXd moment = Eigen::MatrixXd::Identity(d, d);
  if (head.prompt_queries.rows() > 0) {
    const Eigen::MatrixXd queries = head.prompt_queries.cast<double>(), sum = queries.transpose() * queries;
    moment = kShrinkage * moment + (1.0 - kShrinkage) * d / sum.trace() * sum;
  }
  std::mt19937_64 random(1);
  std::normal_distribution<double> gaussian;
  const Eigen::MatrixXd noise = Eigen::MatrixXd::NullaryExpr(d, d, [&] { return gaussian(random); });
  const Eigen::MatrixXd rotation = Eigen::HouseholderQR<Eigen::MatrixXd>(noise).householderQ();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(moment);
  const Vector root = eigen.eigenvalues().cwiseSqrt();
  return {(eigen.eigenvectors() * root.asDiagonal() * rotation).cast<float>(),
          (eigen.eigenvectors() * root.cwiseInverse().asDiagonal() * rotation).cast<float>()};
}

// K-means of keys in metric coordinates, segment by segment; otherwise as make_clusters.
inline Clusters make_coded_clusters(const HeadTruth& head, const Matrix& keys, int seed, quorum::Executor& executor) {
  Clusters clusters;
  const double shift = seed * 0.6180339887498949 - std::floor(seed * 0.6180339887498949);
  for (int first = 0; first < head.num_indexed(); first += kSegmentTokens) {
    const int count = std::min(kSegmentTokens, head.num_indexed() - first), k = std::max(1, count / kCodedClusterSize);
    const std::vector<int> part = kmeans(keys.middleRows(first, count), k, shift, executor);
    std::vector<int> id(static_cast<size_t>(k), -1);
    for (const int c : part) {
      if (id[size_t(c)] < 0) id[size_t(c)] = clusters.count++;
      clusters.of_token.push_back(id[size_t(c)]);
    }
  }
  summarise(head, clusters);
  return clusters;
}

// Each row in 8 bits a dimension and one scale.
inline Matrix int8_rows(const Matrix& rows) {
  Matrix out = rows;
  for (Eigen::Index r = 0; r < out.rows(); ++r) {
    const float scale = std::max(rows.row(r).cwiseAbs().maxCoeff(), 1e-12f) / 127.0f;
    out.row(r) = (rows.row(r) / scale).array().round() * scale;
  }
  return out;
}

// Each row's code, decoded. One bit is the sign, times the row's mean magnitude (the conditional mean); more are an even grid around 0.
inline Matrix code_rows(const Matrix& rows, int bits) {
  Matrix out(rows.rows(), rows.cols());
  const float top = float(1 << (bits - 1)) - 0.5f;
  for (Eigen::Index r = 0; r < rows.rows(); ++r) {
    const auto row = rows.row(r).array();
    const float step = std::max(row.abs().maxCoeff() / top, 1e-9f);
    if (bits == 1) out.row(r) = row.sign() * row.abs().mean();
    if (bits > 1) out.row(r) = ((row / step).floor() + 0.5f).cwiseMax(-top).cwiseMin(top) * step;
  }
  return out;
}

// All that does not depend on the number of bits.
struct CodedIndex {
  Clusters clusters;   // scores by int8 centroids
  Matrix queries;      // [rows][head_dim], in metric coordinates
  Matrix residuals;    // [num_indexed][head_dim], key less its cluster's mean key, in metric coordinates
  Estimates estimate;  // [rows][count], weight of the cluster's tokens
};

// The estimate is n exp(q . c + v / 2), v the variance of the scores inside the cluster: one covariance for all clusters, scaled by each
// one's mean square.
inline CodedIndex make_coded_index(const HeadTruth& head, int seed, quorum::Executor& executor) {
  const QueryMetric metric = make_query_metric(head);
  CodedIndex index{{}, head.queries * metric.of_queries, head.keys * metric.of_keys, {}};
  Clusters& clusters = index.clusters;
  clusters = make_coded_clusters(head, index.residuals, seed, executor);
  const Matrix centroids = clusters.centroids * metric.of_keys;
  Vector spread = Vector::Zero(clusters.count);
  for (int i = 0; i < head.num_indexed(); ++i) {
    const int c = clusters.of_token[size_t(i)];
    index.residuals.row(i) -= centroids.row(c);
    spread[c] += double(index.residuals.row(i).squaredNorm()) / clusters.size[c];
  }
  const Matrix square = index.residuals.transpose() * index.residuals;
  const Matrix shared = square / std::max(square.trace(), 1e-30f);
  const Vector along = (index.queries * shared).cwiseProduct(index.queries).rowwise().sum().cast<double>();
  clusters.scores = index.queries * int8_rows(centroids).transpose();
  clusters.scores.array().colwise() -= head.top.cast<float>().array();
  index.estimate = (clusters.scores.cast<double>() + 0.5 * along * spread.transpose()).array().exp();
  index.estimate.array().rowwise() *= clusters.size.transpose().array();
  return index;
}

// Clusters whose codes are read, one set per group: in the order of the largest estimated share per token over the heads, until every
// head has kCandidateShare of its estimated weight. Shape: [num_queries][count].
inline Mask choose_candidates(const HeadTruth& head, const CodedIndex& index) {
  const int count = index.clusters.count;
  const Vector whole = head.always + index.estimate.rowwise().sum();
  Matrix density = group_max(head, (index.estimate.array().colwise() / whole.array()).cast<float>().matrix());
  density.array().rowwise() /= index.clusters.size.transpose().cast<float>().array();
  Mask candidates = Mask::Zero(head.num_queries, count);
  for (int set = 0; set < head.num_queries; ++set) {
    const std::vector<int> order = descending_order(density.row(set));
    int most = 0;
    for (int row = set; row < head.num_rows(); row += head.num_queries) {
      int own = 0;
      for (double seen = head.always[row]; own < count && seen < kCandidateShare * whole[row]; ++own) {
        seen += index.estimate(row, order[size_t(own)]);
      }
      most = std::max(most, own);
    }
    mark_first(candidates, set, order, most);
  }
  return candidates;
}

// What stands for the clusters outside the candidates: their estimate, in the direction of the value means of the few that hold 90 % of it.
struct Outside {
  Mask used;  // [num_queries][count], clusters whose value means are read
  TailSum tail;
};

inline Outside estimate_outside(const HeadTruth& head, const CodedIndex& index, const Mask& candidates) {
  Estimates estimate = index.estimate;
  for (int row = 0; row < head.num_rows(); ++row) {
    estimate.row(row).array() *= (1 - candidates.row(row % head.num_queries)).cast<double>();
  }
  const Vector total = estimate.rowwise().sum();
  const Matrix share = group_max(head, (estimate.array().colwise() / total.array().max(1e-300)).cast<float>().matrix());
  Outside outside{Mask::Zero(head.num_queries, index.clusters.count), {{}, total}};
  for (int set = 0; set < head.num_queries; ++set) {
    const double whole = share.row(set).cast<double>().sum();
    double seen = 0.0;
    for (const int c : descending_order(share.row(set))) {
      if (seen >= 0.9 * whole) break;
      outside.used(set, c) = 1;
      seen += double(share(set, c));
    }
  }
  for (int row = 0; row < head.num_rows(); ++row) estimate.row(row).array() *= outside.used.row(row % head.num_queries).cast<double>();
  const Vector scale = (total.array() / estimate.rowwise().sum().array().max(1e-300)).matrix();
  outside.tail.numerator = (scale.asDiagonal() * (estimate * index.clusters.value_means.cast<double>())).cast<float>();
  return outside;
}

// Weights of the candidates' tokens by their codes, 0 for all others. Shape: [rows][num_indexed].
//
// What a code lost adds no second-order term as in the clusters' estimate: in these weights it would double the output's error.
inline Matrix coded_weights(const Study& study, const CodedIndex& index, const Mask& candidates, int bits) {
  const Matrix codes = code_rows(index.residuals, bits);
  Matrix weights(study.head.num_rows(), study.head.num_indexed());
  for_row_chunks(study.executor, study.head.num_rows(), [&](int first, int count) {
    Matrix scores = index.queries.middleRows(first, count) * codes.transpose();
    for (int r = 0; r < count; ++r) {
      const int set = (first + r) % study.head.num_queries;
      for (Eigen::Index i = 0; i < scores.cols(); ++i) {
        const int c = index.clusters.of_token[size_t(i)];
        // No true score exceeds 0; a coded one that does by far must not swamp the sums.
        const float score = std::min(scores(r, i) + index.clusters.scores(first + r, c), 30.0f);
        weights(first + r, i) = candidates(set, c) != 0 ? std::exp(score) : 0.0f;
      }
    }
  });
  return weights;
}

// Adds to what stands outside the candidates' tokens that are not read: their coded weight, at the value mean of their cluster.
inline TailSum add_unread(const Study& study, const Clusters& clusters, const Matrix& weights, const Mask& read, TailSum tail) {
  for_row_chunks(study.executor, study.head.num_rows(), [&](int first, int count) {
    Matrix mass = Matrix::Zero(count, clusters.count);
    for (int r = 0; r < count; ++r) {
      const int set = (first + r) % study.head.num_queries;
      for (Eigen::Index i = 0; i < weights.cols(); ++i) {
        if (read(set, i) == 0) mass(r, clusters.of_token[size_t(i)]) += weights(first + r, i);
      }
    }
    tail.numerator.middleRows(first, count) += mass * clusters.value_means;
    tail.weight.segment(first, count) += mass.cast<double>().rowwise().sum();
  });
  return tail;
}

}  // namespace detail

// Clusters propose candidates, codes rank their tokens, the best of these are read; every other token keeps its estimated weight with its
// cluster's value mean. One set per group. Bytes: int8 centroids with a scale, the candidates' codes with one f16 each, int8 value means.
inline void run_residual_codes(const Study& study) {
  const HeadTruth& head = study.head;
  const detail::CodedIndex index = detail::make_coded_index(head, study.seed, study.executor);
  const Clusters& clusters = index.clusters;
  const Mask candidates = detail::choose_candidates(head, index), coded = tokens_of(clusters, candidates);
  const detail::Outside outside = detail::estimate_outside(head, index, candidates);
  const Vector means = count_chosen(candidates.max(outside.used)) * head.head_dim;
  for (const int bits : {1, 2}) {
    const Matrix weights = detail::coded_weights(study, index, candidates, bits);
    const Vector total = head.always + weights.cast<double>().rowwise().sum() + outside.tail.weight;
    const Matrix share = group_max(head, (weights.array().colwise() / total.cast<float>().array()).matrix());
    std::vector<std::vector<int>> order;
    for (int set = 0; set < head.num_queries; ++set) order.push_back(descending_order(share.row(set)));
    const Vector index_bytes =
        (count_chosen(coded) * (bits * head.head_dim / 8.0 + 2) + means).array() + clusters.count * (head.head_dim + 4.0);
    for (int tokens = 16; tokens <= 2048 && tokens < head.num_indexed(); tokens *= 2) {
      Mask read = Mask::Zero(head.num_queries, head.num_indexed());
      for (int set = 0; set < head.num_queries; ++set) mark_first(read, set, order[size_t(set)], tokens);
      read *= coded;  // a set may have fewer candidates than the budget
      const TailSum tail = detail::add_unread(study, clusters, weights, read, outside.tail);
      study.add("codes_" + std::to_string(bits) + "bit", budget(tokens), read, index_bytes, &tail);
    }
  }
}

}  // namespace accuracy
