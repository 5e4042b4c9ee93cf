// A segment's view and bytes.
#include "quorum/cpu/segment.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

using namespace quorum;
using namespace quorum::cpu;

TEST_CASE("the view of a segment points to its arrays; what is not stored is null") {
  HeadSegment segment;
  segment.num_clusters = 3;
  segment.centroids.resize(16 * 64);
  segment.centroid_scale.resize(16);
  segment.spread.resize(16);
  segment.size.resize(16);
  segment.cluster_indptr.resize(17);
  segment.cluster_tokens.resize(40);
  segment.value_means.resize(3 * 64);
  segment.value_mean_scale.resize(16);
  const SegmentView view = segment.view();
  CHECK(view.num_clusters == 3);
  CHECK(view.centroids == segment.centroids.data());
  CHECK(view.centroid_scale == segment.centroid_scale.data());
  CHECK(view.centroids_f32 == nullptr);
  CHECK(view.spread == segment.spread.data());
  CHECK(view.size == segment.size.data());
  CHECK(view.cluster_indptr == segment.cluster_indptr.data());
  CHECK(view.cluster_tokens == segment.cluster_tokens.data());
  CHECK(view.value_means == segment.value_means.data());
  CHECK(view.value_mean_scale == segment.value_mean_scale.data());
  CHECK(view.value_means_f32 == nullptr);
  CHECK(view.residual_variance == nullptr);
  CHECK(view.variance_scale == nullptr);
  CHECK(view.codes == nullptr);
  CHECK(view.code_scale == nullptr);
  CHECK(view.code_indptr == nullptr);
}

TEST_CASE("all further arrays are in the view as well") {
  HeadSegment segment;
  segment.centroids_f32.resize(8);
  segment.value_means_f32.resize(8);
  segment.residual_variance.resize(8);
  segment.variance_scale.resize(16);
  segment.codes.resize(5 * 128);
  segment.code_scale.resize(5 * 16);
  segment.code_indptr.resize(17);
  const SegmentView view = segment.view();
  CHECK(view.centroids_f32 == segment.centroids_f32.data());
  CHECK(view.value_means_f32 == segment.value_means_f32.data());
  CHECK(view.residual_variance == segment.residual_variance.data());
  CHECK(view.variance_scale == segment.variance_scale.data());
  CHECK(view.codes == segment.codes.data());
  CHECK(view.code_scale == segment.code_scale.data());
  CHECK(view.code_indptr == segment.code_indptr.data());
}

TEST_CASE("bytes are those of all arrays of all heads") {
  Segment segment;
  CHECK(segment.bytes() == 0);
  segment.heads.resize(2);
  int64_t want = 0;
  for (HeadSegment& head : segment.heads) {
    head.centroids.resize(100);
    head.centroid_scale.resize(1);
    head.centroids_f32.resize(2);
    head.spread.resize(3);
    head.size.resize(4);
    head.cluster_indptr.resize(5);
    head.cluster_tokens.resize(6);
    head.value_means.resize(7);
    head.value_mean_scale.resize(8);
    head.value_means_f32.resize(9);
    head.residual_variance.resize(10);
    head.variance_scale.resize(11);
    head.codes.resize(1000);
    head.code_scale.resize(12);
    head.code_indptr.resize(13);
    want += 100 + 4 * (1 + 2 + 3 + 4 + 5 + 6 + 8 + 9 + 11 + 13) + 7 + 10 + 1000 + 2 * 12;
  }
  CHECK(segment.bytes() == want);
}

namespace {

std::shared_ptr<Segment> filled_segment(size_t centroid_bytes) {
  auto segment = std::make_shared<Segment>();
  segment->heads.resize(2);
  for (size_t h = 0; h < 2; ++h) {
    HeadSegment& head = segment->heads[h];
    head.num_clusters = 3 + int(h);
    for (size_t i = 0; i < centroid_bytes; ++i) head.centroids.push_back(uint8_t(i + h));
    head.spread = {0.5f, 1.5f, float(h)};
    head.code_indptr.assign(17, int32_t(h));
  }
  return segment;
}

}  // namespace

TEST_CASE("packing segments: views and bytes as before, in one block on a huge page") {
  const size_t count = kHugePage / 4;
  const std::vector<std::shared_ptr<Segment>> segments = {filled_segment(count), filled_segment(count + 1)};
  const int64_t bytes = segments[0]->bytes();
  pack_segments(segments);
  CHECK(segments[0]->bytes() == bytes);
  CHECK(segments[0]->block == segments[1]->block);
  CHECK(reinterpret_cast<uintptr_t>(segments[0]->block->data()) % kHugePage == 0);
  for (size_t s = 0; s < 2; ++s)
    for (size_t h = 0; h < 2; ++h) {
      const auto untouched = filled_segment(count + s);
      const HeadSegment& want = untouched->heads[h];
      const SegmentView view = segments[s]->heads[h].view();
      CHECK(view.num_clusters == 3 + int(h));
      CHECK(std::equal(want.centroids.begin(), want.centroids.end(), view.centroids));
      CHECK(std::equal(want.spread.begin(), want.spread.end(), view.spread));
      CHECK(std::equal(want.code_indptr.begin(), want.code_indptr.end(), view.code_indptr));
      CHECK(reinterpret_cast<uintptr_t>(view.spread) % kCacheLine == 0);
      CHECK(view.codes == nullptr);
      CHECK(segments[s]->heads[h].centroids.empty());
    }
}

TEST_CASE("packing little leaves it as it is") {
  const std::vector<std::shared_ptr<Segment>> segments = {filled_segment(100)};
  pack_segments(segments);
  pack_segments({});
  CHECK(segments[0]->block == nullptr);
  CHECK(segments[0]->heads[0].view().centroids == segments[0]->heads[0].centroids.data());
}
