// Lloyd's k-means over the rows of one segment, in int8, deterministic.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "quorum/core/clustering.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cpu/aligned_vector.hpp"
#include "quorum/cpu/simd/nearest_centroids.hpp"
#include "quorum/cpu/simd/rotate.hpp"
#include "quorum/cpu/simd/transform.hpp"

namespace quorum::cpu {

// Rounds that search all centroids. The first starts from centroids that are rows, far from what they become, so half of the coordinates
// (alike after the rotation) are enough; by the third the clusters have found their places. In every other round a row chooses among
// the 16 centroids that were the best of their lanes in the last full search. What that saves and costs: docs/decisions/0009.
inline constexpr int kSecondFullSearch = 2;

// Rows as the search wants them: signs and Hadamard transform, which keep distances and make coordinates alike, then int8 row by row.
class QuantisedRows {
 public:
  // rows [num_rows][dim], finite, dim a multiple of 8.
  QuantisedRows(const float* rows, int num_rows, int dim)
      : dim_(dim), stride_(int(round_up(dim, 64))), bytes_(size_t(num_rows) * size_t(stride_)), scale_(static_cast<size_t>(num_rows)) {
    AlignedVector<float> signs(static_cast<size_t>(dim)), x(static_cast<size_t>(stride_), 0.0f);
    for (int c = 0; c < dim; ++c) signs[size_t(c)] = uniform_unit(kSigns, uint64_t(c)) < 0.5f ? -1.0f : 1.0f;
    for (int i = 0; i < num_rows; ++i) {
      std::copy_n(rows + int64_t(i) * dim, dim, x.data());
      simd::rotate(x.data(), signs.data(), dim);
      scale_[size_t(i)] = std::max(simd::largest_magnitude(x.data(), stride_), kSmallest) / 127.0f;
      simd::quantise(x.data(), scale_[size_t(i)], stride_, bytes_.data() + int64_t(i) * stride_);
    }
  }
  simd::ByteRows view() const { return {bytes_.data(), scale_.data(), int(scale_.size()), dim_, stride_}; }

  static constexpr float kSmallest = 1e-20f;  // of a row of zeros

 private:
  static constexpr uint64_t kSigns = 0x6b6d65616e73;
  int dim_, stride_;
  AlignedVector<int8_t> bytes_;
  AlignedVector<float> scale_;
};

// Centroids in the rows' rotated coordinates, and their int8 form for the search.
class Centroids {
 public:
  Centroids(int num_clusters, const simd::ByteRows& rows)
      : num_clusters_(num_clusters),
        dim_(rows.dim),
        stride_(rows.stride),
        means_(size_t(num_clusters) * size_t(rows.stride), 0.0f),
        blocks_(size_t(slots()) * size_t(rows.dim), 128),
        byte_rows_(size_t(slots()) * size_t(rows.stride), 128),
        scale_(size_t(slots()), 0.0f),
        half_norm_(size_t(slots()), kInfinity) {}

  float* mean(int cluster) { return means_.data() + int64_t(cluster) * stride_; }
  const float* mean(int cluster) const { return means_.data() + int64_t(cluster) * stride_; }
  int num_clusters() const { return num_clusters_; }
  simd::ByteCentroids view() const {
    return {blocks_.data(), byte_rows_.data(), scale_.data(), half_norm_.data(), slots() / 16, dim_, stride_};
  }

  // The centroid becomes a row.
  void set_to_row(int cluster, const simd::ByteRows& rows, int i) {
    for (int c = 0; c < stride_; ++c) mean(cluster)[c] = rows.scale[i] * float(rows.row(i)[c]);
  }

  // Brings the int8 form up to date; lengths are those of the first `dims` coordinates.
  void quantise(int dims) {
    AlignedVector<int8_t> row(static_cast<size_t>(stride_));
    for (int j = 0; j < num_clusters_; ++j) {
      const float scale = std::max(simd::largest_magnitude(mean(j), stride_), QuantisedRows::kSmallest) / 127.0f;
      simd::quantise(mean(j), scale, stride_, row.data());
      int32_t square = 0;
      for (int c = 0; c < dims; ++c) square += int32_t(row[size_t(c)]) * int32_t(row[size_t(c)]);
      uint8_t* bytes = byte_rows_.data() + int64_t(j) * stride_;
      for (int c = 0; c < stride_; ++c) bytes[c] = uint8_t(int(row[size_t(c)]) + 128);
      uint8_t* lane = blocks_.data() + int64_t(j / 16) * 16 * dim_ + (j % 16) * 4;
      for (int c = 0; c < dim_; c += 4) std::memcpy(lane + c * 16, bytes + c, 4);
      scale_[size_t(j)] = scale;
      half_norm_[size_t(j)] = 0.5f * scale * scale * float(square);
    }
  }

 private:
  int slots() const { return int(round_up(num_clusters_, 16)); }
  int num_clusters_, dim_, stride_;
  AlignedVector<float> means_;        // [num_clusters][stride]
  AlignedVector<uint8_t> blocks_;     // [slots / 16][dim / 4][16][4]
  AlignedVector<uint8_t> byte_rows_;  // [slots][stride]
  AlignedVector<float> scale_, half_norm_;
};

// Which rows each cluster has: compressed rows, ascending inside a cluster.
struct ClusterMembers {
  std::vector<int32_t> indptr;  // [num_clusters + 1]
  std::vector<int32_t> rows;    // [num_rows]

  ClusterMembers(const std::vector<int>& assignment, int num_clusters) : indptr(size_t(num_clusters) + 1, 0), rows(assignment.size()) {
    for (const int cluster : assignment) ++indptr[size_t(cluster) + 1];
    std::partial_sum(indptr.begin(), indptr.end(), indptr.begin());
    std::vector<int32_t> next(indptr.begin(), indptr.end() - 1);
    for (size_t i = 0; i < assignment.size(); ++i) rows[size_t(next[size_t(assignment[i])]++)] = int32_t(i);
  }
  int size(int cluster) const { return indptr[size_t(cluster) + 1] - indptr[size_t(cluster)]; }
};

// Every row to the nearest of all centroids by the first `dims` coordinates; keeps the best of each lane as candidates [rows][16].
// Returns how many rows changed.
inline int assign_to_nearest(const simd::ByteRows& rows, const simd::ByteCentroids& centroids, int dims, std::vector<int>& assignment,
                             AlignedVector<int32_t>& candidates) {
  simd::LaneBest best[simd::kSearchRows];
  int changed = 0;
  for (int first = 0; first < rows.num_rows; first += simd::kSearchRows) {
    const int count = std::min(simd::kSearchRows, rows.num_rows - first);
    simd::search_all(centroids, rows, first, count, dims, best);
    for (int r = 0; r < count; ++r) {
      const int nearest = best[r].cluster[simd::best_lane(best[r].value)];
      changed += assignment[size_t(first + r)] != nearest;
      assignment[size_t(first + r)] = nearest;
      std::copy_n(best[r].cluster, 16, candidates.data() + int64_t(first + r) * 16);
    }
  }
  return changed;
}

// The same among each row's candidates, in all coordinates.
inline int assign_to_candidates(const simd::ByteRows& rows, const simd::ByteCentroids& centroids, std::vector<int>& assignment,
                                const AlignedVector<int32_t>& candidates) {
  int changed = 0;
  for (int i = 0; i < rows.num_rows; ++i) {
    const int nearest = simd::search_candidates(centroids, candidates.data() + int64_t(i) * 16, rows, i);
    changed += assignment[size_t(i)] != nearest;
    assignment[size_t(i)] = nearest;
  }
  return changed;
}

// Centroids become the means of their rows; empty clusters keep theirs.
inline void update_centroids(const simd::ByteRows& rows, const ClusterMembers& members, Centroids& centroids) {
  using namespace simd;
  constexpr int kPart = 64 / kVectorSize;
  for (int j = 0; j < centroids.num_clusters(); ++j) {
    if (members.size(j) == 0) continue;
    const Vector weight(1.0f / float(members.size(j)));
    for (int first = 0; first < rows.stride; first += 64) {
      Vector sums[kPart];
      for (Vector& sum : sums) sum = Vector(0.0f);
      for (int at = members.indptr[size_t(j)]; at < members.indptr[size_t(j) + 1]; ++at) {
        const int i = members.rows[size_t(at)];
        const Vector scale(rows.scale[i]);
        for (int p = 0; p < kPart; ++p) sums[p] = multiply_add(scale, load_as_float(rows.row(i) + first + p * kVectorSize), sums[p]);
      }
      for (int p = 0; p < kPart; ++p) store(centroids.mean(j) + first + p * kVectorSize, sums[p] * weight);
    }
  }
}

// Squared distance of a row to a centroid.
inline float squared_distance(const simd::ByteRows& rows, int i, const float* mean) {
  using namespace simd;
  const Vector scale(rows.scale[i]);
  Vector sum(0.0f);
  for (int c = 0; c < rows.stride; c += kVectorSize) {
    const Vector difference = scale * load_as_float(rows.row(i) + c) - load(mean + c);
    sum = multiply_add(difference, difference, sum);
  }
  return reduce_add(sum);
}

// Moves the centroids of empty clusters to the rows that are farthest from their own. Returns whether there were any.
inline bool restart_empty_clusters(const simd::ByteRows& rows, const std::vector<int>& assignment, const ClusterMembers& members,
                                   Centroids& centroids) {
  std::vector<int> empty;
  for (int j = 0; j < centroids.num_clusters(); ++j)
    if (members.size(j) == 0) empty.push_back(j);
  if (empty.empty()) return false;
  std::vector<float> distance(static_cast<size_t>(rows.num_rows));
  for (int i = 0; i < rows.num_rows; ++i) {
    const float own = squared_distance(rows, i, centroids.mean(assignment[size_t(i)]));
    distance[size_t(i)] = own == own ? own : 0.0f;  // a row or mean that overflowed: NaN has no order
  }
  std::vector<int> worst(distance.size());
  std::iota(worst.begin(), worst.end(), 0);
  const size_t restarts = std::min(empty.size(), worst.size());
  const auto farther = [&](int a, int b) {
    return distance[size_t(a)] != distance[size_t(b)] ? distance[size_t(a)] > distance[size_t(b)] : a < b;
  };
  std::partial_sort(worst.begin(), worst.begin() + std::ptrdiff_t(restarts), worst.end(), farther);
  for (size_t e = 0; e < restarts; ++e) centroids.set_to_row(empty[e], rows, worst[e]);
  return true;
}

// Clusters rows, a round at a time.
//
// Method: Lloyd's algorithm in int8 from rows at uniform stride, at most `iterations` rounds, then one last assignment. Shapes: rows
// [num_rows][dim], finite, dim a multiple of 8, needed by the constructor only; num_clusters <= num_rows. Determinism: same rows, same
// result, whatever the threads. Cost: 1.5 * num_rows * num_clusters * dim multiply-adds of bytes and 16 * num_rows * dim for each further
// round. Memory: kmeans_bytes().
class KMeans {
 public:
  KMeans(const float* row_data, int num_rows, int dim, int num_clusters, int iterations)
      : quantised_(row_data, num_rows, dim),
        rows_(quantised_.view()),
        centroids_(num_clusters, rows_),
        iterations_(iterations),
        assignment_(static_cast<size_t>(num_rows), -1),
        candidates_(static_cast<size_t>(num_rows) * 16) {
    for (int j = 0; j < num_clusters; ++j) centroids_.set_to_row(j, rows_, seed_row(j, num_rows, num_clusters));
  }
  KMeans(const KMeans&) = delete;
  KMeans& operator=(const KMeans&) = delete;

  // Does the next round. Returns false once the assignment is final.
  bool advance() {
    const int dim = rows_.dim, half = dim >= 32 ? int(round_up(dim / 2, 4)) : dim, dims = round_ == 0 ? half : dim;
    centroids_.quantise(dims);
    const bool searches_all = round_ == 0 || round_ == std::min(kSecondFullSearch, iterations_);
    const int changed = searches_all ? assign_to_nearest(rows_, centroids_.view(), dims, assignment_, candidates_)
                                     : assign_to_candidates(rows_, centroids_.view(), assignment_, candidates_);
    if (round_ == iterations_ || (changed == 0 && round_ >= kSecondFullSearch)) return false;
    const ClusterMembers members(assignment_, centroids_.num_clusters());
    update_centroids(rows_, members, centroids_);
    restart_empty_clusters(rows_, assignment_, members, centroids_);
    ++round_;
    return true;
  }
  // [num_rows], in [0, num_clusters); clusters may be empty.
  const std::vector<int>& assignment() const { return assignment_; }

 private:
  QuantisedRows quantised_;
  simd::ByteRows rows_;
  Centroids centroids_;
  int iterations_, round_ = 0;
  std::vector<int> assignment_;
  AlignedVector<int32_t> candidates_;
};

// All rounds at once.
inline std::vector<int> kmeans(const float* row_data, int num_rows, int dim, int num_clusters, int iterations) {
  KMeans clustering(row_data, num_rows, dim, num_clusters, iterations);
  while (clustering.advance()) {
  }
  return clustering.assignment();
}

// Most memory that kmeans() holds at a time, in bytes, its result included.
inline int64_t kmeans_bytes(int num_rows, int dim, int num_clusters) {
  const int64_t n = num_rows, stride = round_up(dim, 64), slots = round_up(num_clusters, 16);
  const int64_t rows = n * (stride + 4), centroids = num_clusters * stride * 4 + slots * (dim + stride + 8);
  const int64_t lists = n * (4 + 64), members = 4 * n + 8 * (num_clusters + 1), restart = n * 8 + num_clusters * 4;
  return rows + centroids + lists + members + restart + 16 * stride;
}

}  // namespace quorum::cpu
