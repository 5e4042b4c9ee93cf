// What the scan of codes leaves, against the same sums bit by bit and in double precision.
#include "quorum/cuda/kernel/scan_codes_kernel.cuh"

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/cuda/support/coded_case.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

CaseOptions small_case(int head_dim, int group) {
  CaseOptions options;
  options.shape = {2 * group, 2, head_dim, 0.0f};
  options.num_tokens = {300, 150};
  options.index.window_tokens = 9;
  options.index.cluster_size = 20;
  return options;
}
DecodeOptions token_options() {
  DecodeOptions options;
  options.dense_below = 0;
  return options;
}

// Buckets of every token of the candidates, up to keys at an edge; sums by bucket and by cluster, from the buckets that were found.
void check_row(const CodedCase& coded, int row) {
  const cuda::StepParams& p = coded.params();
  const CodedRow r = coded.read(row);
  const size_t group = size_t(p.group);
  std::vector<double> sums(group * kNumKeyBuckets), counts(kNumKeyBuckets);
  int tokens = 0, wrong_bucket = 0, wrong_mass = 0, wrong_key = 0;
  for (int j = 0; j < coded.num_clusters(row); ++j) {
    if (r.cluster_key[size_t(j)] >= cuda::kEntersOutside) continue;
    const int size = cluster_at(coded.head(row), j).size();
    std::vector<double> mass(group);
    int best = kNumKeyBuckets - 1;
    for (int i = 0; i < size; ++i, ++tokens) {
      double key = 0.0;
      const int bucket = r.token_bucket[size_t(coded.first_block(row, j) * kCodeBlock + i)];
      best = std::min(best, bucket);
      for (size_t g = 0; g < group; ++g) {
        const double share = coded.share(row, r, j, i, int(g)), expected = share * coded.with_lost_variance(row, r, j, int(g));
        key = std::max(key, share);
        mass[g] += share;
        sums[g * kNumKeyBuckets + size_t(bucket)] += p.options.target_error > 0.0f ? share * share : expected;
      }
      counts[size_t(bucket)] += 1.0;
      wrong_bucket += bucket >= key_bucket(float(key * 1.002)) && bucket <= key_bucket(float(key * 0.998)) ? 0 : 1;
    }
    wrong_key += r.cluster_key[size_t(j)] == best ? 0 : 1;
    for (size_t g = 0; g < group; ++g) {
      const double got = double(r.tail_weight[size_t(j) * group + g]);
      wrong_mass += std::fabs(got - (std::log(mass[g] / size) + double(r.plan.log_total[g]))) <= 2e-3 ? 0 : 1;
    }
  }
  CHECK(tokens == r.plan.num_coded);
  CHECK(wrong_bucket == 0);
  CHECK(wrong_key == 0);
  CHECK(wrong_mass == 0);
  const double unit = double(cuda::token_unit(p.options));
  int wrong_sum = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    const double tolerance = 4e-3 * sums[i] + (counts[i % kNumKeyBuckets] + 1.0) / unit;
    wrong_sum += std::fabs(double(r.histogram[i]) / unit - sums[i]) <= tolerance ? 0 : 1;
  }
  for (size_t b = 0; b < kNumKeyBuckets; ++b) wrong_sum += double(r.histogram[group * kNumKeyBuckets + b]) == counts[b] ? 0 : 1;
  CHECK(wrong_sum == 0);
  // Tiles count the same tokens.
  const auto tiles =
      download(p.workspace.tile_counts + int64_t(row) * p.scan_tiles * kNumKeyBuckets, size_t(p.scan_tiles) * kNumKeyBuckets);
  for (size_t b = 0; b < kNumKeyBuckets; ++b) {
    double count = 0.0;
    for (size_t tile = 0; tile < size_t(p.scan_tiles); ++tile) count += tiles[tile * kNumKeyBuckets + b];
    CHECK(count == counts[b]);
  }
}

TEST_CASE("cuda scan: every token's bucket, sums by bucket and cluster, for every head_dim and number of columns") {
  for (const int head_dim : {64, 96, 128, 256})
    for (const int group : {1, 5, 16}) {
      CAPTURE(head_dim);
      CAPTURE(group);
      const HostCase host(small_case(head_dim, group));
      CodedCase coded(host, token_options());
      coded.scan();
      for (int row = 0; row < coded.params().num_rows(); ++row) check_row(coded, row);
    }
}

TEST_CASE("cuda scan: soft-capped scores, no variance model, squares for an error, clusters of one token and of many blocks") {
  for (const int variant : {0, 1, 2, 3, 4}) {
    CAPTURE(variant);
    CaseOptions options = small_case(64, 3);
    DecodeOptions decode = token_options();
    if (variant == 0) options.shape.logit_softcap = 3.0f;
    if (variant == 1) decode.variance = VarianceModel::none;
    if (variant == 2) decode.target_error = 0.1f;
    if (variant == 3) options.index.cluster_size = 1;
    if (variant == 4) options.index.cluster_size = 140;
    const HostCase host(options);
    CodedCase coded(host, decode);
    coded.scan();
    for (int row = 0; row < coded.params().num_rows(); ++row) check_row(coded, row);
  }
}

TEST_CASE("cuda scan: equal keys leave residuals of zero, and every token its centroid's weight") {
  CaseOptions options = small_case(64, 2);
  options.spread = 0.0f;
  const HostCase host(options);
  CodedCase coded(host, token_options());
  coded.scan();
  for (int row = 0; row < coded.params().num_rows(); ++row) check_row(coded, row);
}

TEST_CASE("cuda scan: tiles share the clusters without a change in sums or buckets") {
  const HostCase host(small_case(64, 4));
  CodedCase few(host, token_options(), 1), many(host, token_options(), 40);
  REQUIRE(few.params().scan_tiles <= many.params().scan_tiles);
  few.scan();
  many.scan();
  CHECK(few.read(0).histogram == many.read(0).histogram);
  CHECK(few.read(0).cluster_key == many.read(0).cluster_key);
  const CodedRow a = few.read(0), b = many.read(0);
  for (size_t j = 0; j < a.cluster_key.size(); ++j)
    if (a.cluster_key[j] < cuda::kEntersOutside) CHECK(a.tail_weight[4 * j] == b.tail_weight[4 * j]);
}

// A warp that adds one value many times to a sum of 32 bits.
__global__ void overflow_kernel(unsigned long long* histogram, unsigned long long steps, int times) {
  QUORUM_SHARED(uint32_t[2 * kNumKeyBuckets], memory);
  for (int i = int(threadIdx.x); i < 2 * kNumKeyBuckets; i += 32) memory[i] = 0;
  __syncwarp();
  for (int i = 0; i < times; ++i) cuda::add_steps({memory}, histogram, 0, 5, steps);
  __syncwarp();
  if (threadIdx.x == 0) atomicAdd(histogram + 5, static_cast<unsigned long long>(memory[5]));
}

TEST_CASE("cuda scan: sums go on beyond 32 bits") {
  for (const unsigned long long steps : {1ull, 0xffffffffull, 0x123456789aull}) {
    const DeviceArray<unsigned long long> histogram(std::vector<unsigned long long>(2 * kNumKeyBuckets, 0));
    REQUIRE(cuda::launch({.threads = 32}, overflow_kernel, histogram.data(), steps, 5) == cudaSuccess);
    CHECK(histogram.values()[5] == 160 * steps);
  }
}

}  // namespace
}  // namespace quorum::test
