#include "tests/cuda/support/score_reference.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "tests/support/cache.hpp"

namespace quorum::test {
namespace {

// x[first .. first + size) times the orthonormal Walsh-Hadamard matrix, entry by entry.
void hadamard(std::vector<double>& x, int first, int size) {
  const std::vector<double> from(x.begin() + first, x.begin() + first + size);
  for (int i = 0; i < size; ++i) {
    double sum = 0.0;
    for (int j = 0; j < size; ++j) sum += from[size_t(j)] * (std::popcount(unsigned(i & j)) % 2 == 0 ? 1.0 : -1.0);
    x[size_t(first + i)] = sum / std::sqrt(double(size));
  }
}

// Signs and Hadamard transform; sizes that are no power of two take two overlapping ones.
std::vector<double> rotate(std::vector<double> x, const float* signs) {
  const int d = int(x.size()), power = int(std::bit_floor(unsigned(d)));
  for (int c = 0; c < d; ++c) x[size_t(c)] *= double(signs[c]);
  hadamard(x, 0, power);
  if (power == d) return x;
  for (int c = 0; c < power; ++c) x[size_t(d - power + c)] *= double(signs[c]);
  hadamard(x, d - power, power);
  return x;
}

}  // namespace

ExpectedScores expected_scores(const HostCase& host, int sequence, int qo_head, bool shared_variance) {
  const AttentionShape& shape = host.options().shape;
  const ClusterHeadView& head = host.index(sequence).heads[qo_head / shape.group_size()];
  const int d = shape.head_dim;
  const QueryView queries = host.queries();
  ExpectedScores expected;
  for (int i = 0; i < d; ++i)
    expected.scaled.push_back(double(shape.softmax_scale()) *
                              reference::element(queries.row(sequence, qo_head), reference_format(queries.type), i));
  std::vector<double> y(static_cast<size_t>(d));
  for (int out = 0; out < d; ++out) {
    for (int in = 0; in < d; ++in)
      y[size_t(out)] += reference::element(head.metric.inverse, reference::Format::f16, (int64_t(out / 16) * d + in) * 16 + out % 16) *
                        expected.scaled[size_t(in)];
    expected.half_variance += 0.5 * double(head.metric.eigenvalues[out]) * y[size_t(out)] * y[size_t(out)];
    expected.mean_score += expected.scaled[size_t(out)] * double(head.metric.mean_key[out]);
  }
  expected.rotated = rotate(y, head.metric.signs);
  double largest = 0.0;
  for (const double x : expected.rotated) largest = std::max(largest, std::fabs(x));
  for (int id = 0; id < head.num_cluster_slots(); ++id) {
    const ClusterRef at = cluster_at(head, id);
    const double scale = double(at.segment->centroid_scale[at.local]), spread = double(at.segment->spread[at.local]);
    double score = expected.mean_score, magnitude = 0.0;
    for (int c = 0; c < d; ++c) {
      const int64_t byte = ((int64_t(at.local / 16) * (d / 4) + c / 4) * 16 + at.local % 16) * 4 + c % 4;
      const double coordinate = scale * (double(at.segment->centroids[byte]) - 128.0);
      score += expected.rotated[size_t(c)] * coordinate;
      magnitude += std::fabs(coordinate);
    }
    const bool empty = at.segment->size[at.local] == 0.0f;
    expected.log_weight.push_back(empty ? -std::numeric_limits<double>::infinity()
                                        : score + (shared_variance ? spread * expected.half_variance : 0.0));
    expected.tolerance.push_back(0.5 * largest / 127.0 * magnitude + 1e-3);
  }
  return expected;
}

std::vector<int32_t> always_read(const HostCase& host, int sequence) {
  const ClusterIndexView& index = host.index(sequence);
  const int num_tokens = host.num_tokens()[size_t(sequence)];
  std::vector<int32_t> tokens(size_t(index.empty() ? num_tokens : index.always.count(num_tokens)));
  for (int i = 0; i < int(tokens.size()); ++i) tokens[size_t(i)] = index.empty() ? i : index.always.token(i);
  return tokens;
}

}  // namespace quorum::test
