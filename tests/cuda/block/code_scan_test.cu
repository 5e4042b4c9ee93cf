#include "quorum/cuda/block/code_scan.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/coded_case.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

constexpr int kMaxPlaces = 600;

struct PlaceOfBlock {
  int32_t cluster, block;
};

__global__ void places_kernel(const __grid_constant__ SegmentView clusters, const uint16_t* keys, int unit_number, int last_key,
                              PlaceOfBlock* places, int32_t* total) {
  cuda::ScanUnit unit;
  unit.load(clusters, keys, unit_number, last_key);
  if (threadIdx.x == 0) *total = unit.total;
  for (int i = 0; i < unit.total; ++i) {
    const cuda::ScanUnit::Place place = unit.place_of(i);
    const int block = unit.block_of(place), cluster = __shfl_sync(cuda::kFullMask, unit.cluster, place.lane);
    if (threadIdx.x == 0) places[i] = {cluster, block};
  }
}

TEST_CASE("code scan: a unit's blocks are those of its wanted clusters, one after the other; empty and short units") {
  const std::vector<int> sizes{1, 16, 17, 0, 500, 3, 40, 2, 0, 0, 0, 0, 0, 0, 0, 0, 33, 5, 1};
  std::vector<int32_t> indptr{0};
  for (const int n : sizes) indptr.push_back(indptr.back() + num_code_blocks(n));
  const DeviceArray<float> size(std::vector<float>(sizes.begin(), sizes.end()));
  const DeviceArray<int32_t> code_indptr(indptr), total(1);
  const DeviceArray<PlaceOfBlock> output(kMaxPlaces);
  const DeviceArray<uint16_t> keys(
      std::vector<uint16_t>{0, 3, 9, 0xffff, 4, 0xfffe, 5, 0, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 2, 7, 0});
  SegmentView clusters;
  clusters.num_clusters = int(sizes.size());
  clusters.size = size.data();
  clusters.code_indptr = code_indptr.data();
  for (int unit = 0; unit < 3; ++unit)
    for (const int last_key : {-1, 4, 575}) {
      CAPTURE(unit);
      CAPTURE(last_key);
      REQUIRE(cuda::launch({.threads = 32}, places_kernel, clusters, static_cast<const uint16_t*>(keys.data()), unit, last_key,
                           output.data(), total.data()) == cudaSuccess);
      const std::vector<PlaceOfBlock> places = output.values();
      const std::vector<uint16_t> key = keys.values();
      int count = 0, wrong = 0;
      for (int j = unit * 8; j < std::min(unit * 8 + 8, int(sizes.size())); ++j) {
        if (int(key[size_t(j)]) > last_key) continue;
        for (int b = 0; b < num_code_blocks(sizes[size_t(j)]); ++b, ++count)
          wrong += places[size_t(count)].cluster == j && places[size_t(count)].block == indptr[size_t(j)] + b ? 0 : 1;
      }
      CHECK(total.values()[0] == count);
      CHECK(wrong == 0);
    }
}

// Shares and keys of one cluster's tokens.
template <int kHeadDim, int kHeadTiles>
__global__ void weigh_kernel(const __grid_constant__ cuda::StepParams p, int row, int cluster, float* shares, float* keys) {
  const cuda::CodeScan<kHeadDim, kHeadTiles> scan(p, row);
  typename cuda::CodeScan<kHeadDim, kHeadTiles>::Centroid centroid;
  scan.enter(cluster, centroid);
  const int size = int(scan.head.clusters.size[cluster]), lane = int(threadIdx.x);
  for (int first = 0; first < size; first += kCodeBlock) {
    cuda::CodeFragment<kHeadDim> codes;
    codes.load(scan.head.clusters, scan.head.clusters.code_indptr[cluster] + first / kCodeBlock);
    float share[kHeadTiles][4], key[2];
    scan.weigh(codes, centroid, size - first, share, key);
    for (int i = 0; i < 2; ++i) {
      const int token = first + lane / 4 + 8 * i;
      if (lane % 4 == 0) keys[token] = key[i];
      for (int t = 0; t < kHeadTiles; ++t)
        for (int j = 0; j < 2; ++j) shares[token * kMaxGroupSize + scan.column_of(t, j)] = share[t][2 * i + j];
    }
  }
}

template <int kHeadDim, int kHeadTiles>
void check_weights(int group, float softcap) {
  CAPTURE(kHeadDim);
  CAPTURE(group);
  CaseOptions options;
  options.shape = {group, 1, kHeadDim, 0.0f};
  options.shape.logit_softcap = softcap;
  options.num_tokens = {200};
  DecodeOptions decode;
  decode.dense_below = 0;
  const HostCase host(options);
  CodedCase coded(host, decode);
  coded.scan();
  const CodedRow r = coded.read(0);
  int checked = 0, wrong = 0;
  for (int j = 0; j < coded.num_clusters(0) && checked < 60; ++j) {
    const int size = cluster_at(coded.head(0), j).size();
    if (size == 0) continue;
    const size_t places = size_t(round_up(size, kCodeBlock));
    const DeviceArray<float> shares(places * kMaxGroupSize), keys(places);
    REQUIRE(cuda::launch({.threads = 32}, weigh_kernel<kHeadDim, kHeadTiles>, coded.params(), 0, j, shares.data(), keys.data()) ==
            cudaSuccess);
    const std::vector<float> got = shares.values(), got_keys = keys.values();
    for (size_t i = 0; i < places; ++i) {
      double key = 0.0;
      for (int g = 0; g < 8 * kHeadTiles; ++g) {
        const bool there = i < size_t(size) && g < group;
        const double share = there ? coded.share(0, r, j, int(i), g) : 0.0;
        key = std::max(key, share);
        wrong += std::fabs(double(got[i * kMaxGroupSize + size_t(g)]) - share) <= 2e-3 * share ? 0 : 1;
        checked += there ? 1 : 0;
      }
      wrong += std::fabs(double(got_keys[i]) - key) <= 2e-3 * key ? 0 : 1;
    }
  }
  CHECK(checked > 0);
  CHECK(wrong == 0);
}

TEST_CASE("code scan: shares of all tokens and columns, none for columns and tokens that are not there") {
  check_weights<64, 1>(1, 0.0f);
  check_weights<64, 1>(8, 0.0f);
  check_weights<96, 1>(3, 0.0f);
  check_weights<128, 2>(9, 0.0f);
  check_weights<256, 2>(16, 0.0f);
  check_weights<64, 1>(5, 2.5f);
}

}  // namespace
}  // namespace quorum::test
