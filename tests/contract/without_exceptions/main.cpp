// Compiled with -fno-exceptions -fno-rtti: everything a decode step needs, run over an index that is laid out here by hand, since building
// one needs exceptions. Neither doctest nor Eigen comes in. Returns the number of what went wrong, as printed.
#include <quorum/cpu/decode.hpp>
#include <quorum/cpu/simd/rotate.hpp>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/support/random.hpp"

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "compile this file without exceptions and without run-time types"
#endif

using namespace quorum;

namespace {

constexpr int kTokens = 640, kSinks = 4, kWindow = 28, kClusterSize = 16, kDim = 64, kGroup = 2;
constexpr int kClusters = (kTokens - kSinks - kWindow) / kClusterSize, kSlots = int(round_up(kClusters, kClusterBlock));
static_assert(kSinks + kClusters * kClusterSize + kWindow == kTokens);

int faults = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("fault: %s\n", what);
  ++faults;
}

// Runs of 16 tokens as clusters, in the rotated coordinates of the keys themselves, stored as f32 with residual codes.
struct HandMadeIndex {
  cpu::AlignedVector<f16> inverse, code_scale;
  cpu::AlignedVector<float> signs, eigenvalues, mean_key, centroids, spread, size, value_means;
  cpu::AlignedVector<int32_t> sinks{0, 1, 2, 3}, cluster_indptr, cluster_tokens, code_indptr, segment_first{0, kSlots}, block_segment;
  cpu::AlignedVector<uint8_t> codes;
  SegmentView segment;
  ClusterHeadView head;
  ClusterIndexView view;

  HandMadeIndex(const float* keys, const float* values)
      : inverse(kDim * kDim, from_float<f16>(0.0f)),
        code_scale(kClusters * kCodeBlock),
        signs(kDim, 1.0f),
        eigenvalues(kDim, 1.0f / kDim),
        mean_key(kDim, 0.0f),
        centroids(kClusters * kDim, 0.0f),
        spread(kSlots, 0.0f),
        size(kSlots, 0.0f),
        value_means(kClusters * kDim, 0.0f),
        cluster_indptr(kSlots + 1, kClusters * kClusterSize),
        code_indptr(kSlots + 1, kClusters),
        block_segment(kSlots / kClusterBlock, 0),
        codes(size_t(kClusters) * size_t(code_block_bytes(kDim)), 0) {
    for (int c = 0; c < kDim; ++c) inverse[size_t((c / 16 * kDim + c) * 16 + c % 16)] = from_float<f16>(1.0f);
    for (int j = 0; j < kClusters; ++j) add_cluster(j, keys, values);
    point();
  }

  void add_cluster(int j, const float* keys, const float* values) {
    const int first = kSinks + j * kClusterSize;
    float* centroid = centroids.data() + j * kDim;
    float* value_mean = value_means.data() + j * kDim;
    for (int i = first; i < first + kClusterSize; ++i) {
      cluster_tokens.push_back(i);
      for (int c = 0; c < kDim; ++c) {
        centroid[c] += keys[i * kDim + c] / kClusterSize;
        value_mean[c] += values[i * kDim + c] / kClusterSize;
      }
    }
    size[size_t(j)] = kClusterSize;
    cluster_indptr[size_t(j)] = j * kClusterSize;
    code_indptr[size_t(j)] = j;
    for (int i = 0; i < kClusterSize; ++i) add_code(j, i, keys + (first + i) * kDim, centroid);
    simd::rotate(centroid, signs.data(), kDim);
  }
  void add_code(int j, int lane, const float* key, const float* centroid) {
    alignas(64) float residual[kDim];
    float squares = 0.0f, magnitudes = 0.0f;
    for (int c = 0; c < kDim; ++c) residual[c] = key[c] - centroid[c];
    simd::rotate(residual, signs.data(), kDim);
    for (int c = 0; c < kDim; ++c) {
      const CodeBit bit = code_bit(c, lane);
      uint8_t& byte = codes[size_t(j * code_block_bytes(kDim) + bit.byte)];
      if (residual[c] > 0.0f) byte = uint8_t(byte | 1u << bit.shift);
      squares += residual[c] * residual[c];
      magnitudes += std::fabs(residual[c]);
    }
    code_scale[size_t(j * kCodeBlock + lane)] = from_float<f16>(magnitudes / kDim);
    spread[size_t(j)] += squares / kClusterSize;
  }
  void point() {
    segment.num_clusters = kClusters;
    segment.centroids_f32 = centroids.data();
    segment.spread = spread.data();
    segment.size = size.data();
    segment.cluster_indptr = cluster_indptr.data();
    segment.cluster_tokens = cluster_tokens.data();
    segment.value_means_f32 = value_means.data();
    segment.codes = codes.data();
    segment.code_scale = code_scale.data();
    segment.code_indptr = code_indptr.data();
    head.metric = {inverse.data(), signs.data(), eigenvalues.data(), mean_key.data()};
    head.segments = &segment;
    head.segment_first = segment_first.data();
    head.block_segment = block_segment.data();
    head.num_segments = 1;
    view.heads = &head;
    view.num_kv_heads = 1;
    view.head_dim = kDim;
    view.num_indexed = kClusters * kClusterSize;
    view.indexed_end = kTokens - kWindow;
    view.always = {sinks.data(), kSinks, kTokens - kWindow};
    view.storage = IndexStorage::f32;
    view.residual_codes = true;
  }
};

struct Step {
  const AttentionShape shape{kGroup, 1, kDim, 0.0f};
  const test::ClusteredData data = test::clustered_data({kTokens, 1, kGroup, kDim, 1, 1});
  const KvCacheView kv = KvCacheView::nhd(data.keys.data(), data.values.data(), kTokens, 1, kDim);
  const QueryView queries = QueryView::contiguous(data.queries.data(), 1, kGroup, kDim);
  const HandMadeIndex index{data.keys.data(), data.values.data()};
  std::vector<float> dense = std::vector<float>(kGroup * kDim);
  ThreadExecutor executor{2};

  Step() { dense_attention(shape, queries, {&kv, 1}, {dense.data(), nullptr}, executor); }

  // One decode and one select; the path they must take and the error they may have.
  void run(const char* what, const ClusterIndexView* view, const DecodeOptions& options, DecodePath path, double tolerance) {
    Decoder decoder(shape, options, {1, kTokens, 0, executor.num_workers()});
    const SequenceView sequence{kv, view};
    std::vector<float> output(kGroup * kDim), lse(kGroup);
    HeadReport reports[kGroup];
    const DecodeStatus status = decoder.decode(queries, {&sequence, 1}, {output.data(), lse.data()}, reports, executor);
    check(status == DecodeStatus::ok, what);
    double error = 0.0, norm = 0.0;
    for (size_t i = 0; i < output.size(); ++i) {
      error += (double(output[i]) - double(dense[i])) * (double(output[i]) - double(dense[i]));
      norm += double(dense[i]) * double(dense[i]);
    }
    check(error <= tolerance * tolerance * norm, what);
    std::vector<int32_t> tokens(kTokens);
    int32_t count = 0;
    check(decoder.select(queries, {&sequence, 1}, {tokens.data(), &count, kTokens}, reports, executor) == DecodeStatus::ok, what);
    for (const HeadReport& report : reports) check(report.path == path && report.tokens_read == count, what);
    check(is_dense(path) == (count == kTokens), what);
  }
};

void run_all() {
  Step step;
  DecodeOptions options;
  options.dense_below = 0;
  options.target_ratio = 0.9f;
  step.run("without an index", nullptr, options, DecodePath::dense_by_length, 0.0);
  for (const bool certify : {false, true}) {
    options.certificate.enabled = certify;
    options.unit = ReadUnit::clusters;
    step.run("whole clusters", &step.index.view, options, DecodePath::sparse, 0.2);
    options.unit = ReadUnit::tokens;
    step.run("single tokens", &step.index.view, options, DecodePath::sparse_tokens, 0.2);
  }
}

// Where a broken rule ends: the handler has the message, then the program is aborted.
void expect_abort() {
  static bool told = false;
  error_handler = [](ErrorCode code, const char* message) {
    told = code == ErrorCode::invalid_argument && std::strcmp(message, "Decoder: options.target_ratio must be in (0, 1], got 2") == 0;
    if (!told) std::fprintf(stderr, "told: %s\n", message);
  };
  std::signal(SIGABRT, [](int) { std::_Exit(told && faults == 0 ? 0 : 1); });
  DecodeOptions options;
  options.target_ratio = 2.0f;
  const Decoder decoder({kGroup, 1, kDim, 0.0f}, options, {1, kTokens, 0, 1});
  std::printf("fault: a wrong option was taken\n");
}

}  // namespace

int main() {
  run_all();
  std::fflush(stdout);
  expect_abort();
  return 1;
}
