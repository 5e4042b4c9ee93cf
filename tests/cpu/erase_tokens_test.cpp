// Segments without some of their tokens: lists, sizes and codes of the others stay what they were.
#include "quorum/cpu/erase_tokens.hpp"

#include <doctest/doctest.h>

#include <map>

#include "quorum/cpu/build_index.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/random.hpp"
#include "tests/support/tokens.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

constexpr int kDim = 40;  // two lines of codes, the second not full

std::shared_ptr<const Segment> segment_of(int num_tokens, const IndexOptions& options, bool packed) {
  const AttentionShape shape{4, 2, kDim, 0.0f};
  const auto data = test::clustered_data({num_tokens + 7, 2, 4, kDim, 1, 71});
  const test::TestCache cache({num_tokens + 7, 2, kDim, ElementType::f16, test::Layout::nhd}, data.keys, data.values);
  const KvCacheView kv = cache.view();
  std::vector<QueryMetric> metrics(2);
  SerialExecutor executor;
  auto segments = build_first_segments({&kv, &shape, &options}, nullptr, test::token_run(7, 7 + num_tokens), metrics, executor, {});
  REQUIRE(segments.size() == 1);
  if (packed) {
    auto block = std::make_shared<AlignedVector<std::byte>>(size_t(segments[0]->heads[0].block_bytes()));
    segments[0]->block = block;
    segments[0]->heads[0].pack(block->data());
  }
  return segments[0];
}

// Cluster, code and scale of every token.
struct Stored {
  int cluster = 0;
  std::vector<uint8_t> code;
  uint16_t scale = 0;
  friend bool operator==(const Stored&, const Stored&) = default;
};
std::map<int, Stored> stored_tokens(const SegmentView& view) {
  std::map<int, Stored> out;
  for (int j = 0; j < view.num_clusters; ++j)
    for (int i = view.cluster_indptr[j]; i < view.cluster_indptr[j + 1]; ++i) {
      Stored stored;
      stored.cluster = j;
      if (view.codes != nullptr) {
        const int slot = view.code_indptr[j] * kCodeBlock + i - view.cluster_indptr[j];
        const uint8_t* block = view.codes + slot / kCodeBlock * code_block_bytes(kDim);
        for (int c = 0; c < kDim; ++c) {
          const CodeBit bit = code_bit(c, slot % kCodeBlock);
          stored.code.push_back(block[bit.byte] >> bit.shift & 1);
        }
        stored.scale = view.code_scale[slot].bits;
      }
      CHECK(out.emplace(view.cluster_tokens[i], stored).second);
    }
  return out;
}

}  // namespace

TEST_CASE("erasing: the other tokens keep cluster, code and scale; sizes and rows follow") {
  for (const bool codes : {true, false})
    for (const bool packed : {true, false}) {
      IndexOptions options;
      options.cluster_size = 20;
      options.residual_codes = codes;
      options.variance = codes ? VarianceModel::shared : VarianceModel::diagonal;
      const auto segment = segment_of(400, options, packed);
      for (const TokenRange range : {TokenRange{7, 8}, TokenRange{100, 333}, TokenRange{0, 406}, TokenRange{406, 500}}) {
        CAPTURE(range.begin);
        CAPTURE(range.end);
        const auto rest = erase_tokens(*segment, range, kDim);
        REQUIRE(rest != nullptr);
        for (size_t h = 0; h < 2; ++h) {
          auto want = stored_tokens(segment->heads[h].view());
          std::erase_if(want, [&](const auto& token) { return range.contains(token.first); });
          const SegmentView view = rest->heads[h].view();
          CHECK((stored_tokens(view) == want));
          CHECK(rest->num_tokens == int(want.size()));
          CHECK(rest->begin_token == want.begin()->first);
          CHECK(rest->end_token == want.rbegin()->first + 1);
          const SegmentSizes sizes = SegmentSizes::of(view, kDim);
          for (int j = 0; j < sizes.slots; ++j) {
            const int size = view.cluster_indptr[j + 1] - view.cluster_indptr[j];
            CHECK(view.size[j] == float(size));
            if (codes) CHECK(view.code_indptr[j + 1] - view.code_indptr[j] == num_code_blocks(size));
          }
          CHECK((view.residual_variance != nullptr) == !codes);
          const SegmentView before = segment->heads[h].view();
          CHECK(std::equal(view.centroids, view.centroids + sizes.slots * kDim, before.centroids));
          CHECK(std::equal(view.value_means, view.value_means + sizes.clusters * kDim, before.value_means));
          CHECK(rest->heads[h].moments.spread == segment->heads[h].moments.spread);
        }
        CHECK(rest->bytes() <= segment->bytes());
      }
      CHECK(erase_tokens(*segment, {0, 407}, kDim) == nullptr);
    }
}

TEST_CASE("erasing: slots beyond the last token of a cluster have no scale") {
  const auto segment = segment_of(100, IndexOptions{}, false);
  const auto rest = erase_tokens(*segment, {20, 60}, kDim);
  const SegmentView view = rest->heads[1].view();
  int beyond = 0;
  for (int j = 0; j < view.num_clusters; ++j)
    for (int slot = view.code_indptr[j] * kCodeBlock + int(view.size[j]); slot < view.code_indptr[j + 1] * kCodeBlock; ++slot, ++beyond)
      CHECK(view.code_scale[slot].bits == 0);
  CHECK(beyond > 0);
}
