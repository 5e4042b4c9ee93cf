// A segment of one head piece by piece: the same as at once, in pieces that are bounded.
#include "quorum/cpu/build_segment.hpp"

#include <doctest/doctest.h>

#include "tests/support/segment_setup.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

constexpr int kDim = test::SegmentSetup::kDim;

struct Setup : test::SegmentSetup {
  explicit Setup(int num_tokens) : SegmentSetup(num_tokens, ElementType::f16, test::Layout::hnd, 0.1f) {}
};

// Every second token, from the last to the first: tokens may come in any order.
std::vector<int32_t> scattered(int count) {
  std::vector<int32_t> tokens;
  for (int i = count - 1; i >= 0; --i) tokens.push_back(2 * i);
  return tokens;
}

template <class T>
bool same(const T* a, const T* b, int64_t count) {
  return (a == nullptr) == (b == nullptr) && (a == nullptr || std::memcmp(a, b, size_t(count) * sizeof(T)) == 0);
}

void check_same(const HeadSegment& a, const HeadSegment& b) {
  const SegmentView u = a.view();
  SegmentView v = b.view();
  HeadSegment names;
  REQUIRE(u.num_clusters == v.num_clusters);
  SegmentView other = u;
  std::vector<const void*> first, second;
  std::vector<int64_t> bytes;
  const SegmentSizes sizes = SegmentSizes::of(u, kDim);
  HeadSegment::for_each_array(
      names, other,
      [&](auto& array, auto pointer, int64_t count) {
        first.push_back(pointer);
        bytes.push_back(count * int64_t(sizeof(array[0])));
      },
      sizes);
  HeadSegment::for_each_array(names, v, [&](auto&, auto pointer, int64_t) { second.push_back(pointer); });
  for (size_t i = 0; i < first.size(); ++i) {
    CAPTURE(i);
    CHECK(same(static_cast<const char*>(first[i]), static_cast<const char*>(second[i]), bytes[i]));
  }
}

}  // namespace

TEST_CASE("a segment in pieces is the segment at once, with all storages and models") {
  for (const int count : {1, 31, kPieceTokens, kPieceTokens + 1, 3 * kPieceTokens - 5})
    for (const VarianceModel model : {VarianceModel::shared, VarianceModel::diagonal}) {
      CAPTURE(count);
      Setup setup(2 * count);
      setup.options.variance = model;
      setup.options.storage = model == VarianceModel::shared ? IndexStorage::int8 : IndexStorage::f32;
      const auto tokens = scattered(count);
      HeadSegment at_once, in_pieces;
      build_head_segment(setup.input(), setup.metric, 1, tokens, at_once);
      HeadSegmentBuild build(setup.input(), setup.metric, 1, tokens, in_pieces);
      int pieces = 1;
      for (; build.advance(setup.input()); ++pieces) {
      }
      check_same(at_once, in_pieces);
      CHECK(pieces >= count / kPieceTokens);  // keys alone
      CHECK(pieces <= 2 + 6 * count / kPieceTokens);
    }
}

TEST_CASE("finishing after a turn that changes nothing gives what a build without it gives") {
  Setup setup(600);
  setup.options.variance = VarianceModel::diagonal;
  const auto tokens = scattered(300);
  HeadSegment at_once, finished;
  build_head_segment(setup.input(), setup.metric, 0, tokens, at_once);
  HeadSegmentBuild build(setup.input(), setup.metric, 0, tokens, finished);
  while (build.advance_clusters(setup.input())) {
  }
  CHECK(finished.codes.empty());
  finish_head_segment(setup.input(), setup.metric, 0, build.centroids(), finished);
  check_same(at_once, finished);
}

TEST_CASE("number of clusters: whole blocks beyond the first") {
  IndexOptions options;
  options.cluster_size = 10;
  for (const auto& [tokens, clusters] :
       {std::pair(1, 1), {9, 1}, {20, 2}, {159, 15}, {169, 16}, {170, 32}, {239, 32}, {320, 32}, {329, 32}, {330, 48}})
    CHECK(num_clusters_for(tokens, options.cluster_size) == clusters);
}
