// Clusters of one KV head in one segment, from its keys and values: a piece at a time, or all at once. Uses Eigen.
#pragma once

#include <optional>

#include "quorum/cpu/encode_segment.hpp"

namespace quorum::cpu {

// Tokens whose rows are loaded in one piece.
inline constexpr int kPieceTokens = 512;

// Fills a HeadSegment from the keys and values of tokens, in pieces of about equal cost, so that a decode step can carry one.
//
// Lifetime: metric, tokens and `out` stay with the caller. The input may be another one in each call, with the same rows.
class HeadSegmentBuild {
 public:
  HeadSegmentBuild(const BuildInput& input, const QueryMetric& metric, int kv_head, std::span<const int32_t> tokens, HeadSegment& out)
      : metric_(metric), kv_head_(kv_head), tokens_(tokens), out_(out), rows_(Eigen::Index(tokens.size()), input.shape->head_dim) {
    out_.num_clusters = num_clusters_for(int(tokens.size()), input.options->cluster_size);
  }

  // Does a piece of work in the metric's final coordinates: whole steps, until they cost as much as loading kPieceTokens rows. Returns
  // false once all is there. Cost: 2 * kPieceTokens * head_dim^2 multiply-adds, about; no step takes more than twice as long, but a round
  // of k-means over many clusters, see KMeans.
  bool advance(const BuildInput& input) {
    for (cost_ = 0.0; cost_ < 1.0;) {
      if (advance_clusters(input)) continue;
      store_centroids(centroids_, metric_, input.options->storage, out_);
      if (input.options->variance == VarianceModel::diagonal) store_residual_variance(residuals_, out_);
      if (input.options->residual_codes) store_residual_codes(residuals_, metric_, out_);
      return false;
    }
    return true;
  }
  // One step of what a further turn of the coordinates would not change; false once there is none left.
  bool advance_clusters(const BuildInput& input) {
    const Eigen::Index num_rows = rows_.rows();
    if (loaded_ < num_rows) return load_keys(input);
    if (out_.size.empty()) return find_clusters(input);
    if (loaded_ < 2 * num_rows) return load_values(input);
    store_values(input);
    return false;
  }

  // [num_clusters][head_dim] and [tokens][head_dim] in the metric's coordinates, residuals in the order of the clusters.
  RowMatrix& centroids() { return centroids_; }
  const RowMatrix& residuals() const { return residuals_; }

 private:
  std::span<const int32_t> next_tokens(size_t at) const { return tokens_.subspan(at, std::min(size_t(kPieceTokens), tokens_.size() - at)); }

  bool load_keys(const BuildInput& input) {
    const auto part = next_tokens(size_t(loaded_));
    load_coordinates(input, metric_, kv_head_, part, loaded_, rows_, out_.non_finite);
    loaded_ += Eigen::Index(part.size());
    return spend(double(part.size()));
  }

  bool find_clusters(const BuildInput& input) {
    const int num_rows = int(rows_.rows()), d = int(rows_.cols());
    if (!clustering_) {
      clustering_.emplace(rows_.data(), num_rows, d, out_.num_clusters, input.options->iterations);
      return spend(0.25 * num_rows);
    }
    if (clustering_->advance()) return spend(0.25 * num_rows * (16.0 + out_.num_clusters) / d);
    members_.emplace(clustering_->assignment(), out_.num_clusters);
    clustering_.reset();
    store_tokens(*members_, tokens_, out_);
    centroids_ = cluster_means(rows_, *members_);
    residuals_ = cluster_residuals(rows_, *members_, centroids_);
    store_spread(residuals_, out_);
    return spend(0.5 * num_rows);
  }

  bool load_values(const BuildInput& input) {
    const Eigen::Index at = loaded_ - rows_.rows();
    const auto part = next_tokens(size_t(at));
    load_rows(input, true, kv_head_, part, rows_.row(at).data(), out_.non_finite);
    loaded_ += Eigen::Index(part.size());
    return spend(0.25 * double(part.size()));
  }

  void store_values(const BuildInput& input) {
    const RowMatrix means = cluster_means(rows_, *members_);
    store_value_means(means, input.options->storage, out_);
    if (input.options->residual_codes) store_value_moments(rows_, means, *members_, out_);
  }

  // Adds up what steps cost, in rows of keys to load: rough figures for 128 dimensions.
  bool spend(double rows) {
    cost_ += rows / kPieceTokens;
    return true;
  }

  const QueryMetric& metric_;
  const int kv_head_;
  const std::span<const int32_t> tokens_;
  HeadSegment& out_;
  RowMatrix rows_, centroids_, residuals_;  // rows: coordinates of the keys, then the values
  Eigen::Index loaded_ = 0;                 // of keys, then of values
  double cost_ = 0.0;                       // of the piece so far
  std::optional<KMeans> clustering_;
  std::optional<ClusterMembers> members_;
};

// All pieces at once.
inline void build_head_segment(const BuildInput& input, const QueryMetric& metric, int kv_head, std::span<const int32_t> tokens,
                               HeadSegment& out) {
  HeadSegmentBuild build(input, metric, kv_head, tokens, out);
  while (build.advance(input)) {
  }
}

// What a further turn of the coordinates changed. centroids: in the metric's coordinates.
inline void finish_head_segment(const BuildInput& input, const QueryMetric& metric, int kv_head, const RowMatrix& centroids,
                                HeadSegment& out) {
  store_centroids(centroids, metric, input.options->storage, out);
  if (input.options->variance != VarianceModel::diagonal && !input.options->residual_codes) return;
  const RowMatrix residuals = cluster_residuals(input, metric, kv_head, centroids, out);
  if (input.options->variance == VarianceModel::diagonal) store_residual_variance(residuals, out);
  if (input.options->residual_codes) store_residual_codes(residuals, metric, out);
}

}  // namespace quorum::cpu
