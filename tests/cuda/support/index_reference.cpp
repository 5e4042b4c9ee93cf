#include "tests/cuda/support/index_reference.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "quorum/io/trace.hpp"
#include "quorum/quorum.hpp"
#include "tests/support/cache.hpp"

namespace quorum::test {
namespace {

using Vector = std::vector<double>;

Vector row_of(const HostCase& host, bool value, int sequence, int token, int kv_head) {
  const PagedKvView& kv = host.kv();
  const auto place = kv.place(sequence, token);
  const std::byte* row = value ? kv.value_row(place, kv_head) : kv.key_row(place, kv_head);
  Vector out(size_t(host.options().shape.head_dim));
  const double scale = double(value ? kv.value_scale(kv_head) : kv.key_scale(kv_head));
  for (size_t i = 0; i < out.size(); ++i) out[i] = scale * reference::element(row, reference_format(kv.type), int64_t(i));
  for (const double x : out)
    if (!std::isfinite(x)) return Vector(out.size(), 0.0);  // as an index takes them
  return out;
}

// x * map, map [d][d] with the input coordinate first; an empty map is the identity.
Vector mapped(const Vector& x, const std::vector<float>& map) {
  if (map.empty()) return x;
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    for (size_t c = 0; c < x.size(); ++c) out[c] += x[i] * double(map[i * x.size() + c]);
  return out;
}
double dot(const Vector& a, const Vector& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
Vector minus(Vector a, const Vector& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

void hadamard(Vector& x, size_t first, size_t size) {
  for (size_t half = size / 2; half >= 1; half /= 2)
    for (size_t i = 0; i < size; ++i)
      if ((i & half) == 0) {
        const double a = x[first + i], b = x[first + i + half];
        x[first + i] = a + b;
        x[first + i + half] = a - b;
      }
  for (size_t i = 0; i < size; ++i) x[first + i] /= std::sqrt(double(size));
}
Vector rotate(Vector x, const float* signs) {
  const size_t d = x.size(), power = std::bit_floor(d);
  for (size_t c = 0; c < d; ++c) x[c] *= double(signs[c]);
  hadamard(x, 0, power);
  if (power == d) return x;
  for (size_t c = 0; c < power; ++c) x[d - power + c] *= double(signs[c]);
  hadamard(x, d - power, power);
  return x;
}
// y = inverse * q.
Vector query_coordinates(const QueryMetricView& metric, const Vector& q) {
  const size_t d = q.size();
  Vector y(d);
  for (size_t out = 0; out < d; ++out)
    for (size_t in = 0; in < d; ++in)
      y[out] += q[in] * reference::element(metric.inverse, reference::Format::f16, int64_t((out / 16 * d + in) * 16 + out % 16));
  return y;
}

// Keys, values, their means by cluster, and what they should be, of one KV head.
struct Exact {
  std::vector<Vector> key_mean, value_mean, residuals;  // residuals: of keys, token by token in the order of the clusters
  Vector spread;                                        // by cluster
  double trace = 0.0;                                   // of the sum of z z^T over residuals
};

Exact exact_of(const HostCase& host, int sequence, int kv_head, const ClusterHeadView& head, const std::vector<float>& forward) {
  Exact exact;
  const size_t d = size_t(host.options().shape.head_dim);
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef cluster = cluster_at(head, j);
    Vector key(d), value(d);
    for (int i = 0; i < cluster.num_tokens(); ++i) {
      const Vector k = row_of(host, false, sequence, cluster.tokens()[i], kv_head),
                   v = row_of(host, true, sequence, cluster.tokens()[i], kv_head);
      for (size_t c = 0; c < d; ++c) {
        key[c] += k[c] / cluster.num_tokens();
        value[c] += v[c] / cluster.num_tokens();
      }
    }
    double squares = 0.0;
    for (int i = 0; i < cluster.num_tokens(); ++i) {
      exact.residuals.push_back(minus(row_of(host, false, sequence, cluster.tokens()[i], kv_head), key));
      const Vector z = mapped(exact.residuals.back(), forward);
      squares += dot(z, z);
    }
    exact.trace += squares;
    exact.spread.push_back(cluster.num_tokens() > 0 ? squares / cluster.num_tokens() : 0.0);
    exact.key_mean.push_back(key);
    exact.value_mean.push_back(value);
  }
  return exact;
}

bool is_partition(const ClusterIndexView& index, const ClusterHeadView& head) {
  std::vector<int> seen(size_t(index.always.num_known));
  for (int i = 0; i < index.always.num_listed; ++i) ++seen[size_t(index.always.listed[i])];
  int tokens = 0;
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef cluster = cluster_at(head, j);
    if (cluster.num_tokens() < 0 || cluster.size() != cluster.num_tokens()) return false;
    for (int i = 0; i < cluster.num_tokens(); ++i) {
      const int32_t token = cluster.tokens()[i];
      if (token < 0 || token >= index.indexed_end || (i > 0 && token <= cluster.tokens()[i - 1])) return false;
      ++seen[size_t(token)];
    }
    tokens += cluster.num_tokens();
  }
  return tokens == index.num_indexed && std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; });
}

void check_scores(const ClusterHeadView& head, const Exact& exact, IndexCheck& check) {
  const size_t d = exact.key_mean[0].size();
  std::mt19937_64 random(d);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 5; ++trial) {
    Vector q(d);
    for (double& x : q) x = normal(random) / std::sqrt(double(d));
    const Vector y = query_coordinates(head.metric, q), x = rotate(y, head.metric.signs);
    double mean = 0.0, variance = 0.0, expected_variance = 0.0, largest = 0.0, sum = 0.0, squares = 0.0;
    int count = 0;
    for (size_t c = 0; c < d; ++c) {
      mean += q[c] * double(head.metric.mean_key[c]);
      variance += double(head.metric.eigenvalues[c]) * y[c] * y[c];
    }
    for (const Vector& r : exact.residuals) expected_variance += dot(q, r) * dot(q, r) / exact.trace;
    if (exact.trace > 0.0)
      check.variance_error = std::max(check.variance_error, std::fabs(variance - expected_variance) / expected_variance);
    for (int j = 0; j < head.num_cluster_slots(); ++j) {
      const ClusterRef at = cluster_at(head, j);
      if (at.num_tokens() == 0) continue;
      double score = mean;
      for (size_t c = 0; c < d; ++c) {
        const size_t byte = ((size_t(at.local / 16) * (d / 4) + c / 4) * 16 + size_t(at.local % 16)) * 4 + c % 4;
        score += x[c] * double(at.segment->centroid_scale[at.local]) * (double(at.segment->centroids[byte]) - 128.0);
      }
      const double wanted = dot(q, exact.key_mean[size_t(j)]);
      largest = std::max(largest, std::fabs(score - wanted));
      sum += wanted, squares += wanted * wanted, ++count;
    }
    const double deviation = std::sqrt(std::max(1e-12, squares / count - sum / count * sum / count));
    check.score_error = std::max(check.score_error, largest / std::max(deviation, 1e-3));
  }
}

// Segments are runs of segment_tokens indexed tokens, whichever way they are joined.
void check_nearest(const HostCase& host, int sequence, int kv_head, const ClusterHeadView& head, const Exact& exact,
                   const std::vector<float>& forward, IndexCheck& check) {
  const IndexOptions& options = host.options().index;
  const auto segment_of = [&](int32_t token) { return (token - options.num_sink_tokens) / options.segment_tokens; };
  std::vector<Vector> means;
  std::vector<int> segments;
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    means.push_back(mapped(exact.key_mean[size_t(j)], forward));
    segments.push_back(cluster_at(head, j).num_tokens() == 0 ? -1 : segment_of(cluster_at(head, j).tokens()[0]));
  }
  int near = 0;
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef cluster = cluster_at(head, j);
    for (int i = 0; i < cluster.num_tokens(); ++i) {
      const Vector z = mapped(row_of(host, false, sequence, cluster.tokens()[i], kv_head), forward);
      const auto square_to = [&](int other) {
        const Vector r = minus(z, means[size_t(other)]);
        return dot(r, r);
      };
      const double own = square_to(j);
      bool nearest = segment_of(cluster.tokens()[i]) == segments[size_t(j)];
      for (int other = 0; other < head.num_cluster_slots(); ++other)
        if (segments[size_t(other)] == segments[size_t(j)]) nearest = nearest && own <= 1.02 * square_to(other) + 1e-9;
      near += nearest ? 1 : 0;
    }
  }
  check.nearest_share = double(near) / double(exact.residuals.size());
}

void check_values(const ClusterHeadView& head, const Exact& exact, IndexCheck& check) {
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef at = cluster_at(head, j);
    if (at.num_tokens() == 0) continue;
    const double scale = double(at.segment->value_mean_scale[at.local]);
    const Vector& wanted = exact.value_mean[size_t(j)];
    for (size_t c = 0; c < wanted.size(); ++c)
      check.value_error =
          std::max(check.value_error, std::fabs(double(at.segment->value_means[size_t(at.local) * wanted.size() + c]) - wanted[c] / scale));
  }
}

// Plain L2: `inverse` is orthogonal, so it turns keys as it turns queries.
void check_codes(const ClusterHeadView& head, const Exact& exact, IndexCheck& check) {
  const size_t d = exact.key_mean[0].size(), lines = (d + 31) / 32;
  int64_t bits = 0, wrong = 0;
  size_t next = 0;
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef at = cluster_at(head, j);
    for (int i = 0; i < at.num_tokens(); ++i, ++next) {
      const Vector x = rotate(query_coordinates(head.metric, exact.residuals[next]), head.metric.signs);
      const size_t block = size_t(at.segment->code_indptr[at.local] + i / 16), lane = size_t(i % 16);
      double sum = 0.0;
      for (const double v : x) sum += std::fabs(v) / double(d);
      if (at.num_tokens() == 1) continue;  // nothing but rounding is left of it
      const double scale = double(to_float(at.segment->code_scale[block * 16 + lane]));
      check.code_scale_error = std::max(check.code_scale_error, std::fabs(scale - sum) / (sum + 1e-6));
      for (size_t c = 0; c < d; ++c) {
        if (std::fabs(x[c]) < 0.05 * sum) continue;
        const size_t byte = (block * lines + c / 32) * 64 + lane * 4 + c % 16 / 4;
        const bool bit = (at.segment->codes[byte] >> (c % 32 / 16 * 4 + c % 4) & 1) != 0;
        ++bits;
        wrong += bit != (x[c] > 0.0) ? 1 : 0;
      }
    }
  }
  check.code_bits_wrong = bits > 0 ? double(wrong) / double(bits) : 0.0;
}

}  // namespace

namespace {

std::vector<float> factor_of(const std::vector<float>& factors, int kv_head, int head_dim) {
  const auto square = std::ptrdiff_t(head_dim) * head_dim;
  return factors.empty() ? factors : std::vector<float>(factors.begin() + kv_head * square, factors.begin() + (kv_head + 1) * square);
}

}  // namespace

ExpectedRows expected_rows(const HostCase& host, int kv_head, const std::vector<float>& forward) {
  const IndexOptions& options = host.options().index;
  const int d = host.options().shape.head_dim, first = options.num_sink_tokens;
  const int last = host.num_tokens()[0] - options.window_tokens;
  ExpectedRows rows{Vector(size_t(d)), {}};
  for (int t = first; t < last; ++t) {
    const Vector key = row_of(host, false, 0, t, kv_head);
    for (size_t c = 0; c < key.size(); ++c) rows.mean_key[c] += key[c] / (last - first);
  }
  for (int t = first; t < last; ++t)
    rows.z.push_back(mapped(minus(row_of(host, false, 0, t, kv_head), rows.mean_key), factor_of(forward, kv_head, d)));
  return rows;
}

ExpectedMean expected_value_mean(const HostCase& host, int kv_head, const std::vector<int>& tokens) {
  ExpectedMean expected{Vector(size_t(host.options().shape.head_dim)), 0.0, 0.0};
  const double weight = 1.0 / double(std::max<size_t>(1, tokens.size()));
  for (const int t : tokens) {
    const Vector value = row_of(host, true, 0, t, kv_head);
    for (size_t c = 0; c < value.size(); ++c) expected.mean[c] += weight * value[c];
  }
  for (const int t : tokens) {
    const Vector difference = minus(row_of(host, true, 0, t, kv_head), expected.mean);
    expected.spread += weight * dot(difference, difference);
  }
  expected.square = dot(expected.mean, expected.mean);
  return expected;
}

IndexCheck check_index(const HostCase& host, int sequence, int kv_head, const ClusterIndexView& index, const std::vector<float>& forward) {
  IndexCheck check;
  const ClusterHeadView& head = index.heads[kv_head];
  check.partition = is_partition(index, head);
  if (!check.partition || index.num_indexed == 0) return check;
  const std::vector<float> own = factor_of(forward, kv_head, index.head_dim);
  const Exact exact = exact_of(host, sequence, kv_head, head, own);
  check.inertia = exact.trace / double(index.num_indexed);
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef at = cluster_at(head, j);
    check.num_clusters += at.num_tokens() > 0 ? 1 : 0;
    const double error = std::fabs(double(at.segment->spread[at.local]) - exact.spread[size_t(j)]);
    check.spread_error = std::max(check.spread_error, error / (check.inertia + 1e-9));
  }
  check_nearest(host, sequence, kv_head, head, exact, own, check);
  check_scores(head, exact, check);
  check_values(head, exact, check);
  if (index.residual_codes && forward.empty()) check_codes(head, exact, check);
  return check;
}

namespace {

// Elements of an array of all segments, one after another.
template <class T>
std::vector<T> joined(const ClusterHeadView& head, const T* SegmentView::*array, int64_t per_slot) {
  std::vector<T> all;
  for (int s = 0; s < head.num_segments; ++s) {
    const SegmentView& segment = head.segments[s];
    const int64_t slots = head.segment_first[s + 1] - head.segment_first[s];
    constexpr bool padded = !std::is_same_v<T, int8_t>;  // value means have no rows for padding
    all.insert(all.end(), segment.*array, segment.*array + (padded ? slots : segment.num_clusters) * per_slot);
    all.resize(size_t(head.segment_first[s + 1] * per_slot));
  }
  return all;
}
// The runs of all slots of compressed rows, one after another, with their lengths in between.
template <class T>
std::vector<std::vector<T>> runs(const ClusterHeadView& head, const T* SegmentView::*array, const int32_t* SegmentView::*indptr,
                                 int64_t per_entry) {
  std::vector<std::vector<T>> all;
  for (int j = 0; j < head.num_cluster_slots(); ++j) {
    const ClusterRef at = cluster_at(head, j);
    const int32_t* bounds = at.segment->*indptr + at.local;
    const T* first = at.segment->*array;
    all.emplace_back(first + bounds[0] * per_entry, first + bounds[1] * per_entry);
  }
  return all;
}
template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <class T>
bool same_bytes(const std::vector<std::vector<T>>& a, const std::vector<std::vector<T>>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) { return same_bytes(x, y); });
}
template <class T>
bool same_bytes(const T* a, const T* b, int64_t count) {
  return count == 0 || std::memcmp(a, b, size_t(count) * sizeof(T)) == 0;
}

const char* head_difference(const ClusterHeadView& a, const ClusterHeadView& b, int d, bool codes) {
  if (a.num_cluster_slots() != b.num_cluster_slots()) return "num_cluster_slots";
  if (a.non_finite != b.non_finite) return "non_finite";
  if (a.num_cluster_slots() == 0) return "";
  const int padded = padded_dim(d);
  if (!same_bytes(a.metric.inverse, b.metric.inverse, int64_t(padded) * d)) return "inverse";
  if (!same_bytes(a.metric.signs, b.metric.signs, d)) return "signs";
  if (!same_bytes(a.metric.eigenvalues, b.metric.eigenvalues, padded)) return "eigenvalues";
  if (!same_bytes(a.metric.mean_key, b.metric.mean_key, padded)) return "mean_key";
  const auto same = [&](auto array, int64_t per_slot) { return same_bytes(joined(a, array, per_slot), joined(b, array, per_slot)); };
  if (!same(&SegmentView::size, 1)) return "size";
  if (!same_bytes(runs(a, &SegmentView::cluster_tokens, &SegmentView::cluster_indptr, 1),
                  runs(b, &SegmentView::cluster_tokens, &SegmentView::cluster_indptr, 1)))
    return "cluster_tokens";
  if (!same(&SegmentView::centroid_scale, 1)) return "centroid_scale";
  if (!same(&SegmentView::centroids, d)) return "centroids";
  if (!same(&SegmentView::spread, 1)) return "spread";
  if (!same(&SegmentView::value_mean_scale, 1)) return "value_mean_scale";
  if (!same(&SegmentView::value_means, d)) return "value_means";
  if (!codes) return "";
  if (!same_bytes(runs(a, &SegmentView::codes, &SegmentView::code_indptr, code_block_bytes(d)),
                  runs(b, &SegmentView::codes, &SegmentView::code_indptr, code_block_bytes(d))))
    return "codes";
  if (!same_bytes(runs(a, &SegmentView::code_scale, &SegmentView::code_indptr, kCodeBlock),
                  runs(b, &SegmentView::code_scale, &SegmentView::code_indptr, kCodeBlock)))
    return "code_scale";
  if (!same_bytes(&a.moments, &b.moments, 1)) return "moments";
  return "";
}

}  // namespace

std::string difference(const ClusterIndexView& a, const ClusterIndexView& b) {
  if (a.num_kv_heads != b.num_kv_heads || a.head_dim != b.head_dim) return "shape";
  if (a.num_indexed != b.num_indexed || a.indexed_end != b.indexed_end) return "indexed tokens";
  if (a.always.num_listed != b.always.num_listed || a.always.num_known != b.always.num_known) return "always";
  if (!same_bytes(a.always.listed, b.always.listed, a.always.num_listed)) return "always.listed";
  if ((a.live == nullptr) != (b.live == nullptr)) return "live";
  if (a.live != nullptr && !same_bytes(a.live, b.live, ceil_div(a.always.num_known, 64))) return "live";
  if (a.residual_codes != b.residual_codes || a.storage != b.storage || a.variance != b.variance) return "options";
  for (int h = 0; h < a.num_kv_heads; ++h)
    if (const std::string what = head_difference(a.heads[h], b.heads[h], a.head_dim, a.residual_codes); !what.empty())
      return what + " of head " + std::to_string(h);
  return "";
}

Factors factors_of(const AttentionShape& shape, const IndexOptions& options, const QueryView& queries) {
  const MetricFactors factors = metric_factors(shape, options, queries);
  return {factors.forward, factors.inverse};
}

std::vector<float> skewed_queries(const AttentionShape& shape, int num_rows, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> queries(size_t(num_rows) * size_t(shape.num_qo_heads * shape.head_dim));
  for (size_t i = 0; i < queries.size(); ++i)  // some coordinates four times as long as others, neighbours alike
    queries[i] = normal(random) * (i % 5 == 0 ? 2.0f : 0.5f) + (i % 2 == 1 ? 0.5f * queries[i - 1] : 0.0f);
  return queries;
}

Factors random_factors(const AttentionShape& shape, const IndexOptions& options, uint64_t seed) {
  const int rows = 2 * shape.head_dim;
  const std::vector<float> queries = skewed_queries(shape, rows, seed);
  return factors_of(shape, options, QueryView::contiguous(queries.data(), rows, shape.num_qo_heads, shape.head_dim));
}

Factors trace_factors(const std::string& path, const IndexOptions& options) {
  const auto trace = io::Trace::open(path);
  return factors_of({trace.num_qo_heads, trace.num_kv_heads, trace.head_dim, trace.sm_scale}, options, trace.prompt_query_view());
}

}  // namespace quorum::test
