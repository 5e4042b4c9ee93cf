#include "quorum/cuda/cluster_index.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "tests/cuda/support/device_case.cuh"

namespace quorum::test {
namespace {

// Segment s of an array on the device against the host's: `count` elements.
template <class T>
bool same(const T* device, const T* host, int64_t count) {
  const std::vector<T> values = download(device, size_t(count));
  return count == 0 || std::memcmp(values.data(), host, size_t(count) * sizeof(T)) == 0;
}

CaseOptions three_segments(int head_dim, bool codes) {
  CaseOptions options;
  options.shape = {4, 2, head_dim, 0.0f};
  options.num_tokens = {700};
  options.index.segment_tokens = 250;  // more clusters in one than in another, none a multiple of 16
  options.index.cluster_size = 7;
  options.index.residual_codes = codes;
  options.index.window_tokens = 11;
  return options;
}

void check_head(const ClusterIndexView& index, int kv_head, const FlatHeadView& flat) {
  const ClusterHeadView& head = index.heads[kv_head];
  const int64_t d = index.head_dim, padded = padded_dim(index.head_dim), slots = head.num_cluster_slots();
  CHECK(flat.num_indexed == index.num_indexed);
  CHECK(flat.always.num_listed == index.always.num_listed);
  CHECK(flat.always.num_known == index.always.num_known);
  CHECK(same(flat.always.listed, index.always.listed, index.always.num_listed));
  CHECK(flat.residual_codes == index.residual_codes);
  CHECK(flat.non_finite == head.non_finite);
  CHECK(flat.clusters.num_clusters == slots);
  CHECK(slots % kClusterBlock == 0);
  CHECK(same(flat.metric.inverse, head.metric.inverse, padded * d));
  CHECK(same(flat.metric.signs, head.metric.signs, d));
  CHECK(same(flat.metric.eigenvalues, head.metric.eigenvalues, padded));
  CHECK(same(flat.metric.mean_key, head.metric.mean_key, padded));
  const SegmentView& all = flat.clusters;
  const std::vector<int32_t> indptr = download(all.cluster_indptr, size_t(slots) + 1);
  const std::vector<int32_t> code_indptr = index.residual_codes ? download(all.code_indptr, size_t(slots) + 1) : std::vector<int32_t>();
  CHECK(indptr.front() == 0);
  CHECK(indptr.back() == index.num_indexed);
  CHECK(std::is_sorted(indptr.begin(), indptr.end()));
  CHECK(std::is_sorted(code_indptr.begin(), code_indptr.end()));
  CHECK((all.codes != nullptr) == index.residual_codes);
  int32_t tokens = 0, blocks = 0;
  for (int s = 0; s < head.num_segments; ++s) {
    const SegmentView& segment = head.segments[s];
    const int64_t first = head.segment_first[s], count = head.segment_first[s + 1] - first;
    CHECK(same(all.centroids + first * d, segment.centroids, count * d));
    CHECK(same(all.centroid_scale + first, segment.centroid_scale, count));
    CHECK(same(all.spread + first, segment.spread, count));
    CHECK(same(all.size + first, segment.size, count));
    CHECK(same(all.value_means + first * d, segment.value_means, segment.num_clusters * d));
    CHECK(same(all.value_mean_scale + first, segment.value_mean_scale, count));
    CHECK(same(all.cluster_tokens + tokens, segment.cluster_tokens, segment.cluster_indptr[count]));
    for (int64_t i = 0; i <= count; ++i) CHECK(indptr[size_t(first + i)] == tokens + segment.cluster_indptr[i]);
    tokens += segment.cluster_indptr[count];
    if (!index.residual_codes) continue;
    for (int64_t i = 0; i <= count; ++i) CHECK(code_indptr[size_t(first + i)] == blocks + segment.code_indptr[i]);
    const int32_t own = segment.code_indptr[count];
    CHECK(same(all.codes + blocks * code_block_bytes(int(d)), segment.codes, own * code_block_bytes(int(d))));
    CHECK(same(all.code_scale + blocks * kCodeBlock, segment.code_scale, int64_t(own) * kCodeBlock));
    blocks += own;
  }
}

TEST_CASE("cuda index: segments are joined, every array is there") {
  for (const int head_dim : {64, 96})
    for (const bool codes : {true, false}) {
      CAPTURE(head_dim);
      CAPTURE(codes);
      const HostCase host(three_segments(head_dim, codes));
      const ClusterIndexView& index = host.index(0);
      REQUIRE(index.heads[0].num_segments >= 2);
      const cuda::ClusterIndex device(index);
      CHECK(device.bytes() > 0);
      const std::vector<FlatHeadView> heads = download(device.heads(), 2);
      for (int h = 0; h < 2; ++h) check_head(index, h, heads[size_t(h)]);
    }
}

TEST_CASE("cuda index: one that holds nothing, and one that was moved") {
  CaseOptions options = three_segments(64, true);
  options.num_tokens = {0};
  const HostCase nothing(options);
  const cuda::ClusterIndex empty(nothing.index(0));
  for (const FlatHeadView& head : download(empty.heads(), 2)) {
    CHECK(head.empty());
    CHECK(head.clusters.num_clusters == 0);
    CHECK(head.num_always(5) == 5);
  }
  CHECK(cuda::ClusterIndex().heads() == nullptr);
  CHECK(cuda::ClusterIndex().bytes() == 0);
  options.num_tokens = {200};
  const HostCase host(options);
  cuda::ClusterIndex index(host.index(0));
  const FlatHeadView* before = index.heads();
  const cuda::ClusterIndex moved(std::move(index));
  CHECK(moved.heads() == before);
  check_head(host.index(0), 1, download(moved.heads(), 2)[1]);
}

template <class Make>
std::string message_of(Make&& make) {
  try {
    make();
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::invalid_argument);
    return error.what();
  }
  return "no error";
}

TEST_CASE("cuda index: what it cannot hold is refused") {
  CaseOptions options = three_segments(64, false);
  options.index.storage = IndexStorage::f32;
  const HostCase f32(options);
  CHECK(message_of([&] { cuda::ClusterIndex index(f32.index(0)); }) == "cuda::ClusterIndex: index.storage must be int8, got f32");
  const float size[kClusterBlock] = {1.0f, 65536.0f};
  SegmentView segment;
  segment.num_clusters = 2;
  segment.size = size;
  const int32_t first[] = {0, kClusterBlock};
  ClusterHeadView head;
  head.segments = &segment;
  head.segment_first = first;
  head.num_segments = 1;
  ClusterIndexView view;
  view.heads = &head;
  view.num_kv_heads = 1;
  view.head_dim = 64;
  CHECK(message_of([&] { cuda::ClusterIndex index(view); }) ==
        "cuda::ClusterIndex: clusters of the index must be at most 65535 tokens, got 65536");
}

}  // namespace
}  // namespace quorum::test
