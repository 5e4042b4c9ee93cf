// Residual codes of a built index: bits and scales against residuals in double, and the arrays' shape and bytes.
#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"
#include "tests/support/tokens.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

// Clustered keys and values of one sequence of two KV heads, and four query heads' queries.
struct Setup {
  AttentionShape shape;
  IndexOptions options;
  test::ClusteredData data;
  test::TestCache cache;
  KvCacheView kv;

  Setup(int num_tokens, int head_dim, uint64_t seed, ElementType type = ElementType::f32)
      : shape{4, 2, head_dim, 0.0f},
        data(test::clustered_data({num_tokens, 2, 4, head_dim, 40, seed})),
        cache({num_tokens, 2, head_dim, type, test::Layout::nhd}, data.keys, data.values),
        kv(cache.view()) {
    options.residual_codes = true;
    options.segment_tokens = 160;
    options.cluster_size = 12;
  }
  BuildInput input() const { return {&kv, &shape, &options}; }
  QueryView prompt() const { return QueryView::contiguous(data.queries.data(), 40, 4, shape.head_dim); }

  // The first segments of tokens [begin, end) and the coordinates they determine, and one more of tokens [end, num_tokens).
  std::vector<std::shared_ptr<Segment>> segments(bool with_queries, int begin, int end, std::vector<QueryMetric>& metrics) const {
    SerialExecutor executor;
    const QueryView queries = prompt();
    metrics.resize(2);
    auto all = build_first_segments(input(), with_queries ? &queries : nullptr, test::token_run(begin, end), metrics, executor, {});
    for (auto& segment : build_segments(input(), test::token_run(end, kv.num_tokens), metrics, executor, {}))
      all.push_back(std::move(segment));
    return all;
  }
};

// The whole way of a key's difference to the mean key into the coordinates of the codes, as one matrix in double.
Eigen::MatrixXd map_to_codes(const QueryMetric& metric) {
  const Eigen::Index d = metric.forward.rows();
  RowMatrix rotation = RowMatrix::Identity(d, d);  // row c becomes what coordinate c is spread to
  for (Eigen::Index c = 0; c < d; ++c) simd::rotate(rotation.row(c).data(), metric.signs.data(), int(d));
  return metric.forward.cast<double>() * rotation.cast<double>();
}

bool coded_bit(const uint8_t* block, int c, int lane) { return (block[code_bit(c, lane).byte] >> code_bit(c, lane).shift & 1) != 0; }

// What a segment's codes have wrong, of all kinds, and how many bits were too close to zero to tell.
struct CodeFaults {
  int bits = 0, scales = 0, beyond = 0;
  int64_t checked = 0, skipped = 0;
  int single = 0;  // clusters of one token met
  double largest_single_scale = 0.0;
};

// Compares all codes of a segment with the residuals of the tokens around the mean of their cluster, all in double. Sums in float of
// head_dim products may be off by `rounding`.
void check_codes(const reference::Matrix& keys, const QueryMetric& metric, const HeadSegment& segment, CodeFaults& faults) {
  const int d = int(metric.forward.rows());
  const Eigen::MatrixXd map = map_to_codes(metric);
  const double rounding = 1e-4;
  for (int j = 0; j < segment.num_clusters; ++j) {
    const int first = segment.cluster_indptr[size_t(j)], size = segment.cluster_indptr[size_t(j) + 1] - first;
    Eigen::MatrixXd residuals(size, d);
    for (int i = 0; i < size; ++i) {
      const double* key = keys.row(segment.cluster_tokens[size_t(first + i)]);
      for (int c = 0; c < d; ++c) residuals(i, c) = key[c] - double(metric.mean_key[size_t(c)]);
    }
    residuals *= map;
    if (size > 0) residuals.rowwise() -= Eigen::RowVectorXd(residuals.colwise().mean());
    const int first_block = segment.code_indptr[size_t(j)], last_block = segment.code_indptr[size_t(j) + 1];
    for (int i = 0; i < (last_block - first_block) * kCodeBlock; ++i) {
      const int block = first_block + i / kCodeBlock, lane = i % kCodeBlock;
      const uint8_t* codes = segment.codes.data() + block * code_block_bytes(d);
      const double scale = double(to_float(segment.code_scale[size_t(block * kCodeBlock + lane)]));
      if (i >= size) {
        for (int c = 0; c < code_lines(d) * kCodeLineDim; ++c) faults.beyond += coded_bit(codes, c, lane);
        faults.beyond += scale != 0.0;
        continue;
      }
      for (int c = 0; c < d; ++c) {
        if (std::fabs(residuals(i, c)) <= rounding) {
          ++faults.skipped;
          continue;
        }
        ++faults.checked;
        faults.bits += coded_bit(codes, c, lane) != (residuals(i, c) > 0.0);
      }
      for (int c = d; c < code_lines(d) * kCodeLineDim; ++c) faults.beyond += coded_bit(codes, c, lane);
      const double want = residuals.row(i).cwiseAbs().mean();
      faults.scales += !test::near(scale, want, 0x1p-11 * want + 1e-5);
      if (size == 1) {
        ++faults.single;
        faults.largest_single_scale = test::larger_error(faults.largest_single_scale, scale);
      }
    }
  }
}

// Each cluster's code blocks follow those of the one before; clusters without tokens have none.
bool prefix_sums(const HeadSegment& segment) {
  if (segment.code_indptr.size() != segment.size.size() + 1 || segment.code_indptr[0] != 0) return false;
  for (size_t j = 0; j < segment.size.size(); ++j) {
    const int num_tokens = segment.cluster_indptr[j + 1] - segment.cluster_indptr[j];
    if (segment.code_indptr[j + 1] - segment.code_indptr[j] != (num_tokens + 15) / 16) return false;
  }
  return true;
}

// All of an index's segments and heads.
template <class Visit>
void for_each_segment(const ClusterIndexView& view, Visit&& visit) {
  for (int h = 0; h < view.num_kv_heads; ++h)
    for (int s = 0; s < view.heads[h].num_segments; ++s) visit(view.heads[h].segments[s]);
}

// Bytes of codes, scales and positions of all segments and heads.
int64_t code_bytes(const ClusterIndexView& view) {
  int64_t bytes = 0;
  for_each_segment(view, [&](const SegmentView& segment) {
    const int64_t slots = round_up(segment.num_clusters, kClusterBlock), blocks = segment.code_indptr[slots];
    bytes += blocks * (code_block_bytes(view.head_dim) + 2 * kCodeBlock) + 4 * (slots + 1);
  });
  return bytes;
}

}  // namespace

TEST_CASE("codes: bits are the signs of the rotated residuals, scales their mean magnitudes, nothing beyond the last token") {
  const uint64_t seed = 171;
  CAPTURE(seed);
  for (const int head_dim : {8, 24, 64, 72, 80, 128, 256})
    for (const bool with_queries : {true, false}) {
      CAPTURE(head_dim);
      CAPTURE(with_queries);
      Setup setup(430, head_dim, seed);
      setup.options.storage = with_queries ? IndexStorage::int8 : IndexStorage::f32;  // codes are of the exact residuals in both
      setup.options.variance = with_queries ? VarianceModel::diagonal : VarianceModel::shared;
      std::vector<QueryMetric> metrics;
      const auto segments = setup.segments(with_queries, 4, 300, metrics);
      REQUIRE(segments.size() == 3);  // the last one is appended
      CodeFaults faults;
      for (const auto& segment : segments)
        for (int head = 0; head < 2; ++head) {
          const HeadSegment& own = segment->heads[size_t(head)];
          REQUIRE(prefix_sums(own));
          REQUIRE(int64_t(own.codes.size()) == own.code_indptr.back() * code_block_bytes(head_dim));
          REQUIRE(int(own.code_scale.size()) == own.code_indptr.back() * kCodeBlock);
          check_codes(setup.cache.keys(head), metrics[size_t(head)], own, faults);
        }
      CHECK(faults.bits == 0);
      CHECK(faults.scales == 0);
      CHECK(faults.beyond == 0);
      CHECK(faults.checked >= 2 * 400 * head_dim);
      CHECK(faults.skipped <= faults.single * head_dim + 2 * 426 * head_dim / 500);  // tokens alone in their cluster have no residual
    }
}

TEST_CASE("tokens alone in their cluster have no residual: their scale is that of rounding") {
  const uint64_t seed = 172;
  CAPTURE(seed);
  Setup setup(300, 64, seed, ElementType::f16);
  setup.options.cluster_size = 1;
  std::vector<QueryMetric> metrics;
  CodeFaults faults;
  for (const auto& segment : setup.segments(true, 0, 200, metrics))
    for (int head = 0; head < 2; ++head) {
      const HeadSegment& own = segment->heads[size_t(head)];
      CHECK(prefix_sums(own));
      check_codes(setup.cache.keys(head), metrics[size_t(head)], own, faults);
    }
  CHECK(faults.bits == 0);
  CHECK(faults.scales == 0);
  CHECK(faults.beyond == 0);
  CHECK(faults.single >= 300);
  CHECK(faults.largest_single_scale <= 1e-5);
}

TEST_CASE("all keys equal: no residual has a length, whatever the clusters") {
  for (const float element : {0.0f, 1.5f}) {
    CAPTURE(element);
    const std::vector<float> rows(500 * 2 * 64, element);
    const test::TestCache cache({500, 2, 64, ElementType::f16, test::Layout::nhd}, rows, rows);
    IndexOptions options;
    options.residual_codes = true;
    ClusterIndex index({4, 2, 64, 0.0f}, options);
    SerialExecutor executor;
    index.build(cache.view(), executor);
    int tokens = 0, wrong = 0;
    for_each_segment(index.view(), [&](const SegmentView& segment) {
      tokens += segment.cluster_indptr[segment.num_clusters];
      const int blocks = segment.code_indptr[segment.num_clusters];
      CHECK(blocks * kCodeBlock >= segment.cluster_indptr[segment.num_clusters]);
      for (int i = 0; i < blocks * kCodeBlock; ++i) wrong += to_float(segment.code_scale[i]) != 0.0f;
    });
    CHECK(tokens == 2 * 496);
    CHECK(wrong == 0);
  }
}

TEST_CASE("residuals beyond what an f16 holds have the largest finite scale") {
  std::vector<float> x(64, 1e6f);
  x[5] = -1e6f;
  std::vector<uint8_t> block(size_t(code_block_bytes(64)), 0);
  f16 scale;
  store_code(x.data(), 64, 3, block.data(), scale);
  CHECK(to_float(scale) == 65504.0f);
  int wrong = 0;
  for (int c = 0; c < 64; ++c)
    for (int lane = 0; lane < kCodeBlock; ++lane) wrong += coded_bit(block.data(), c, lane) != (lane == 3 && c != 5);
  CHECK(wrong == 0);
}

TEST_CASE("a NaN key is coded as the zero row it becomes: all scales stay finite") {
  Setup setup(200, 64, 173);
  setup.cache.set_key(7, 1, 3, kNan);
  std::vector<QueryMetric> metrics;
  for (const auto& segment : setup.segments(true, 0, 150, metrics))
    for (const HeadSegment& own : segment->heads)
      for (const f16 scale : own.code_scale) CHECK(std::isfinite(to_float(scale)));
}

TEST_CASE("an index has codes in every segment, appended ones too, only if its options say so") {
  Setup setup(900, 64, 174, ElementType::f16);
  setup.options.recluster_every = 100;
  SerialExecutor executor;
  for (const bool residual_codes : {true, false}) {
    CAPTURE(residual_codes);
    setup.options.residual_codes = residual_codes;
    ClusterIndex index(setup.shape, setup.options);
    CHECK(index.view().residual_codes == residual_codes);  // before there is anything to index as well
    index.build(setup.kv.first(500), executor);
    index.append(setup.kv.first(700), executor);
    index.append(setup.kv, executor);
    CHECK(index.view().residual_codes == residual_codes);
    CHECK(index.view().heads[0].num_segments == 4 + 2 + 2);
    int tokens = 0;
    for_each_segment(index.view(), [&](const SegmentView& segment) {
      CHECK((segment.codes != nullptr) == residual_codes);
      CHECK((segment.code_scale != nullptr) == residual_codes);
      CHECK((segment.code_indptr != nullptr) == residual_codes);
      tokens += segment.cluster_indptr[segment.num_clusters];
    });
    CHECK(tokens == 2 * 896);
  }
}

TEST_CASE("bytes count the codes: head_dim / 8 + 2 a token and about a quarter for unfilled ends at 32 tokens a cluster") {
  for (const int head_dim : {64, 128}) {
    CAPTURE(head_dim);
    const Setup setup(6000, head_dim, 175, ElementType::f16);
    SerialExecutor executor;
    IndexOptions options;
    options.cluster_size = 32;
    options.residual_codes = false;
    ClusterIndex without(setup.shape, options);
    without.build(setup.kv, executor);
    options.residual_codes = true;
    ClusterIndex with(setup.shape, options);
    with.build(setup.kv, executor);
    const int64_t bytes = with.bytes() - without.bytes();
    CHECK(bytes == code_bytes(with.view()));
    const double a_token = double(bytes) / (2 * 5996.0);
    CAPTURE(a_token);
    CHECK(a_token >= head_dim / 8 + 2);
    // Half a block a cluster, 8 / 32, on average over evenly spread sizes; and an int32 a cluster, an eighth of a byte a token.
    CHECK(a_token <= 1.3 * (head_dim / 8 + 2));
  }
}
