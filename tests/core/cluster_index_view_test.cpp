// Finding clusters by id, and what scoring them costs.
#include "quorum/core/cluster_index_view.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace quorum;

namespace {

// Two segments: 18 clusters (two blocks), then 3 clusters (one block); cluster j of segment s holds j % 3 tokens.
struct TwoSegments {
  std::vector<int32_t> indptr[2], tokens[2], segment_first{0, 32, 48}, block_segment{0, 0, 1};
  std::vector<float> size[2];
  SegmentView segments[2];
  ClusterHeadView head;

  TwoSegments() {
    const int num_clusters[2] = {18, 3};
    for (int s = 0; s < 2; ++s) {
      indptr[s].push_back(0);
      for (int j = 0; j < segment_first[size_t(s) + 1] - segment_first[size_t(s)]; ++j) {
        for (int i = 0; i < (j < num_clusters[s] ? j % 3 : 0); ++i) tokens[s].push_back(s * 1000 + j * 10 + i);
        indptr[s].push_back(int32_t(tokens[s].size()));
        size[s].push_back(float(j < num_clusters[s] ? j % 3 : 0));
      }
      segments[s].num_clusters = num_clusters[s];
      segments[s].cluster_indptr = indptr[s].data();
      segments[s].cluster_tokens = tokens[s].data();
      segments[s].size = size[s].data();
    }
    head.segments = segments;
    head.segment_first = segment_first.data();
    head.block_segment = block_segment.data();
    head.num_segments = 2;
  }
};

}  // namespace

TEST_CASE("cluster ids count through all segments, each at a multiple of 16") {
  const TwoSegments index;
  CHECK(index.head.num_cluster_slots() == 48);
  CHECK(index.head.num_blocks() == 3);
  const ClusterRef fifth = cluster_at(index.head, 5);
  CHECK(fifth.segment == &index.segments[0]);
  CHECK(fifth.num_tokens() == 2);
  CHECK(fifth.tokens()[0] == 50);
  CHECK(fifth.tokens()[1] == 51);
  const ClusterRef second_of_second = cluster_at(index.head, 32 + 2);
  CHECK(second_of_second.segment == &index.segments[1]);
  CHECK(second_of_second.local == 2);
  CHECK(second_of_second.num_tokens() == 2);
  CHECK(second_of_second.tokens()[0] == 1020);
}

TEST_CASE("empty and padding clusters hold no tokens") {
  const TwoSegments index;
  for (const int cluster : {0, 3, 18, 31, 32, 35, 47}) CHECK(cluster_at(index.head, cluster).num_tokens() == 0);
}

TEST_CASE("a cluster's size is its number of tokens, without a look at the list of them") {
  TwoSegments index;
  for (int cluster = 0; cluster < 48; ++cluster) {
    CAPTURE(cluster);
    CHECK(cluster_at(index.head, cluster).size() == cluster_at(index.head, cluster).num_tokens());
  }
  CHECK(cluster_at(index.head, 5).size() == 2);
  CHECK(cluster_at(index.head, 32 + 1).size() == 1);
  for (SegmentView& segment : index.segments) segment.cluster_indptr = segment.cluster_tokens = nullptr;
  CHECK(cluster_at(index.head, 5).size() == 2);
  CHECK(cluster_at(index.head, 32 + 2).size() == 2);
  CHECK(cluster_at(index.head, 47).size() == 0);
}

TEST_CASE("nothing is coded unless an index says so") {
  CHECK_FALSE(ClusterIndexView{}.residual_codes);
  const SegmentView segment;
  CHECK(segment.codes == nullptr);
  CHECK(segment.code_scale == nullptr);
  CHECK(segment.code_indptr == nullptr);
}

TEST_CASE("an index without segments has no clusters") {
  CHECK(ClusterHeadView{}.num_cluster_slots() == 0);
  CHECK(ClusterHeadView{}.num_blocks() == 0);
}

TEST_CASE("an index view is empty unless it covers a token") {
  ClusterIndexView view;
  CHECK(view.empty());
  view.num_indexed = 1;
  CHECK_FALSE(view.empty());
}

TEST_CASE("always-read tokens: the list, then what the index has not been told of") {
  const int32_t listed[] = {0, 1, 7, 5};
  const AlwaysRead always{listed, 4, 10};
  CHECK(always.count(10) == 4);
  CHECK(always.count(12) == 6);
  CHECK(always.token(3) == 5);
  CHECK(always.token(4) == 10);
  CHECK(always.token(5) == 11);
  CHECK(AlwaysRead{}.count(3) == 3);
  CHECK(AlwaysRead{}.token(2) == 2);
}

TEST_CASE("bytes of scoring") {
  CHECK(score_bytes_per_cluster(64, IndexStorage::int8, VarianceModel::none) == 64 + 4 + 4);
  CHECK(score_bytes_per_cluster(64, IndexStorage::int8, VarianceModel::shared) == 64 + 4 + 4 + 4);
  CHECK(score_bytes_per_cluster(64, IndexStorage::int8, VarianceModel::diagonal) == 64 + 4 + 4 + 68);
  CHECK(score_bytes_per_cluster(256, IndexStorage::f32, VarianceModel::shared) == 1024 + 4 + 4);
}
