// The layout of scratch memory: counted and placed by the same code, aligned, without overlap.
#include "quorum/cpu/workspace.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "quorum/cpu/aligned_vector.hpp"
#include "quorum/cpu/decode.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

struct Range {
  const void* begin;
  int64_t bytes;
};

Range range(const HeadRows& rows, int num_heads, int64_t row) {
  CHECK(rows.stride >= row);
  return {rows.data, int64_t(num_heads) * rows.stride * 4};
}
template <class T>
Range range(const T* array, int64_t count) {
  return {array, count * int64_t(sizeof(T))};
}

// All arrays of a worker and of a head, with the sizes that their comments promise.
std::vector<Range> ranges(const ScratchLimits& limits, const WorkerScratch& worker, const HeadScratch& head) {
  const int heads = limits.num_heads, dim = padded_dim(limits.head_dim);
  const int64_t slots = round_up(limits.max_cluster_slots, kClusterBlock);
  const int64_t coded = limits.residual_codes ? 1 : 0, blocks = limits.max_scan_blocks();
  return {range(worker.queries, heads, dim),
          range(worker.rotated, heads, dim),
          range(worker.quantised, int64_t(heads) * dim),
          range(worker.code_tables, coded * heads * code_table_bytes(limits.head_dim)),
          range(worker.cluster_keys.weights, coded * (kNumKeyBuckets + 1) * bucket_row(heads)),
          range(worker.cluster_keys.counts, coded * (kNumKeyBuckets + 1)),
          range(worker.token_keys.weights, coded * (kNumKeyBuckets + 1) * bucket_row(heads)),
          range(worker.token_keys.counts, coded * (kNumKeyBuckets + 1)),
          range(worker.accumulated, heads, dim),
          range(worker.tile, heads, kTileRows),
          range(worker.gathered, int64_t(kTileRows) * kMaxGatheredBytes),
          range(worker.histogram, kNumOrderBuckets),
          range(worker.share_histogram, kNumShareBuckets),
          range(head.transformed, heads, dim),
          range(head.log_weight, slots * heads),
          range(head.estimate, slots * heads),
          range(head.visible_size, slots),
          range(head.bucket, slots),
          range(head.cluster, slots),
          range(head.size, slots),
          range(head.ordered, heads, slots),
          range(head.read_weight, heads, slots),
          range(head.first_token, slots + 1),
          range(head.share, slots),
          range(head.tokens, limits.max_tokens),
          range(head.weights, heads, limits.max_tokens),
          range(head.contributions, heads, limits.num_samples),
          range(head.first_block, coded * (slots + 1)),
          range(head.coded_mass, coded * slots * heads),
          range(head.token_bucket, blocks * kCodeBlock),
          range(head.token_share, blocks * heads * kCodeBlock)};
}

}  // namespace

TEST_CASE("an arena without a block only counts") {
  Arena counting;
  CHECK(counting.take<float>(10) == nullptr);
  CHECK(counting.used() == 64);
  CHECK(take_rows(counting, 3, 16).data == nullptr);
  CHECK(counting.used() == 64 + 192);
  CHECK(counting.take<int8_t>(0) == nullptr);
  CHECK(counting.used() == 256);
}

TEST_CASE("an arena hands out aligned arrays one after the other") {
  AlignedVector<std::byte> block(1024);
  Arena arena(block.data());
  const auto* first = arena.take<uint8_t>(1);
  const auto* second = arena.take<float>(16);
  const HeadRows rows = take_rows(arena, 2, 32);
  CHECK(reinterpret_cast<const std::byte*>(first) == block.data());
  CHECK(reinterpret_cast<const std::byte*>(second) == block.data() + 64);
  CHECK(reinterpret_cast<const std::byte*>(rows.data) == block.data() + 128);
  CHECK(rows.stride == 32);
  CHECK(rows.row(1) == rows.data + 32);
  CHECK(rows.from(1).row(0) == rows.row(1));
}

TEST_CASE("counted size is placed size; arrays are aligned, inside the block and disjoint") {
  for (const ScratchLimits limits : {ScratchLimits{4, 72, 1000, 100, 64}, ScratchLimits{1, 8, 1, 16, 2}, ScratchLimits{16, 512, 31, 1, 256},
                                     ScratchLimits{3, 80, 4097, 517, 33}, ScratchLimits{4, 72, 1000, 100, 64, true},
                                     ScratchLimits{1, 8, 1, 16, 2, true}, ScratchLimits{16, 512, 31, 1, 256, true}}) {
    WorkerScratch worker;
    HeadScratch head;
    Arena counting;
    lay_out(counting, limits, worker);
    lay_out(counting, limits, head);
    AlignedVector<std::byte> block(size_t(counting.used()));
    Arena arena(block.data());
    lay_out(arena, limits, worker);
    lay_out(arena, limits, head);
    CHECK(arena.used() == counting.used());
    auto arrays = ranges(limits, worker, head);
    std::sort(arrays.begin(), arrays.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    const auto* free = reinterpret_cast<const void*>(block.data());
    for (const Range& array : arrays) {
      CHECK(reinterpret_cast<uintptr_t>(array.begin) % 64 == 0);
      CHECK(array.begin >= free);
      free = static_cast<const std::byte*>(array.begin) + array.bytes;
    }
    CHECK(free <= block.data() + block.size());
  }
}

TEST_CASE("scan blocks: one for every 16 tokens and one for every cluster; none without codes") {
  CHECK(ScratchLimits{4, 64, 1000, 96, 64, true}.max_scan_blocks() == 62 + 96);
  CHECK(ScratchLimits{4, 64, 1000, 96, 64, false}.max_scan_blocks() == 0);
  // Clusters of one token are the worst case: as many blocks as tokens.
  CHECK(ScratchLimits{1, 64, 15, 16, 2, true}.max_scan_blocks() >= 15);
}

TEST_CASE("weights have room for a whole tile after the last token") {
  HeadScratch head;
  Arena arena;
  lay_out(arena, {2, 64, 1000, 100, 64}, head);
  CHECK(head.weights.stride >= 1000 + kTileRows);
  CHECK(head.contributions.stride >= 64);
}

// The formula of a decoder's scratch memory, written down a second time, with the constants as numbers: tiles of 32 rows, 256
// bytes of a copied row, 1024 buckets, blocks of 16 clusters, rows of floats padded to 16; with residual codes 16 sums for every four
// coordinates of lines of 32, two histograms of 577 buckets, and a block of 16 tokens for every 16 tokens and every cluster.
TEST_CASE("workspace_bytes: the closed formula, but for rounding each array to cache lines") {
  const auto up = [](int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; };
  for (const AttentionShape shape : {AttentionShape{8, 2, 128, 0.0f}, AttentionShape{5, 5, 72, 0.0f}, AttentionShape{16, 1, 512, 0.0f}})
    for (const DecodeLimits limits :
         {DecodeLimits{1, 1, 0, 1}, DecodeLimits{4, 1000, 0, 3}, DecodeLimits{2, 100001, 0, 8}, DecodeLimits{1, 4097, 517, 2}})
      for (const bool by_group : {true, false})
        for (const int certified : {0, 33, 100}) {
          DecodeOptions options;
          options.unit = certified == 33 ? ReadUnit::automatic : certified == 100 ? ReadUnit::tokens : ReadUnit::clusters;
          options.scope = by_group ? SelectionScope::group : SelectionScope::head;
          options.num_samples = 40;
          options.certificate.enabled = certified > 0;
          if (certified > 0) options.certificate.num_samples = certified;
          const int64_t heads = by_group ? shape.num_qo_heads / shape.num_kv_heads : 1;
          const int64_t dim = up(shape.head_dim, 16), tokens = up(limits.max_tokens, 32);
          const int64_t clusters = up(limits.max_clusters > 0 ? limits.max_clusters : limits.max_tokens / 4 + 16, 16);
          const int64_t worker = heads * dim * (4 + 4 + 1 + 4) + heads * 32 * 4 + 2 * 1024 * 4 + 32 * 256;
          const int64_t lists = clusters * 4 * 6 + 4 + tokens * 4;  // visible size, bucket, cluster, size, first token, share; tokens
          const int64_t rows = dim + 2 * clusters + 2 * (clusters + 16) + (tokens + 32) + up(std::max(40, certified), 32);
          const int64_t tables = heads * (up(shape.head_dim, 32) / 4 * 16), histograms = 2 * 577 * (up(heads, 4) + 1) * 4;
          const int64_t blocks = limits.max_tokens / 16 + clusters;
          const int64_t codes = tables + histograms + (clusters + 1) * 4 + clusters * heads * 4 + blocks * 16 * 2 * (1 + heads);
          const int64_t with_codes = options.unit == ReadUnit::clusters ? 0 : codes;
          const int64_t want = limits.num_workers * (worker + lists + heads * rows * 4 + with_codes);
          const int64_t got = Decoder::workspace_bytes(shape, options, limits);
          CAPTURE(want);
          CHECK(got >= want);
          CHECK(got <= want + limits.num_workers * 30 * 63);  // 30 arrays a worker
        }
}
