#include "quorum/cuda/build_layout.cuh"

#include <doctest/doctest.h>

#include <vector>

namespace quorum::cuda {
namespace {

BuildParams small_plan(bool codes) {
  IndexOptions options;
  options.segment_tokens = 300;
  options.cluster_size = 11;
  options.iterations = 3;
  options.residual_codes = codes;
  return plan_build({4, 2, 96, 0.0f}, options, 1000);
}

struct Array {
  const void* begin;
  int64_t size;  // bytes that kernels may write
};

// Arrays lie one after another, each in room of its own.
void check_rooms(const std::byte* base, const std::vector<Array>& arrays, int64_t bytes) {
  int64_t end = 0;
  for (const Array& array : arrays) {
    const int64_t begin = static_cast<const std::byte*>(array.begin) - base;
    CHECK(begin >= end);
    CHECK(begin % 256 == 0);
    end = begin + array.size;
  }
  CHECK(end <= bytes);
  CHECK(bytes - end < 256);
}

TEST_CASE("build layout: every array of the index has its own room, and the size is known without memory") {
  for (const bool codes : {true, false}) {
    BuildParams p = small_plan(codes);
    const int64_t bytes = lay_out_index(nullptr, p);
    CHECK(p.index.heads == nullptr);
    std::vector<std::byte> memory(static_cast<size_t>(bytes));
    CHECK(lay_out_index(memory.data(), p) == bytes);
    CHECK(static_cast<void*>(p.index.heads) == memory.data());
    const IndexArrays& a = p.index;
    const int64_t d = 96, slots = 2 * p.num_slots, blocks = 2 * p.max_code_blocks;
    std::vector<Array> arrays{{a.heads, 2 * int64_t(sizeof(FlatHeadView))},
                              {a.always, 4 * 4},
                              {a.inverse, 2 * d * d * 2},
                              {a.signs, 2 * d * 4},
                              {a.eigenvalues, 2 * d * 4},
                              {a.mean_key, 2 * d * 4},
                              {a.centroids, slots * d},
                              {a.centroid_scale, slots * 4},
                              {a.spread, slots * 4},
                              {a.size, slots * 4},
                              {a.cluster_indptr, (slots + 2) * 4},
                              {a.cluster_tokens, 2 * 996 * 4},
                              {a.value_means, slots * d},
                              {a.value_mean_scale, slots * 4}};
    if (codes) arrays.insert(arrays.end(), {{a.codes, blocks * 192}, {a.code_scale, blocks * 32}, {a.code_indptr, (slots + 2) * 4}});
    check_rooms(memory.data(), arrays, bytes);
  }
}

TEST_CASE("build layout: every array of the workspace too") {
  for (const bool codes : {true, false}) {
    BuildParams p = small_plan(codes);
    const int64_t bytes = lay_out_build(nullptr, p);
    std::vector<std::byte> memory(static_cast<size_t>(bytes));
    CHECK(lay_out_build(memory.data(), p) == bytes);
    const BuildWorkspace& w = p.workspace;
    const int64_t d = 96, slots = 2 * p.num_slots, square = 2 * d * d * 4, rows = 2 * (996 + kRowPadding), tiles = 2 * p.key_tiles();
    std::vector<Array> arrays{{w.key_sums, tiles * d * 4}, {w.key_flags, tiles * 4},  {w.forward, square},
                              {w.inverse, square},         {w.rows, rows * d},        {w.constants, rows * 16},
                              {w.assignment, 2 * 996 * 4}, {w.distance, 2 * 996 * 4}, {w.half_norm, slots * 4},
                              {w.empty_rank, slots * 4},   {w.num_empty, 2 * 4 * 4},  {w.changed, 2 * 4 * 4 * 4},
                              {w.means, slots * d * 4},    {w.moment, square},        {w.turn, square},
                              {w.turned, square},          {w.to_index, square},      {w.value_flags, slots * 4}};
    if (codes) arrays.insert(arrays.end(), {{w.value_sums, slots * 8}, {w.code_squares, 2 * int64_t(p.max_code_blocks) * 4}});
    check_rooms(memory.data(), arrays, bytes);
  }
}

TEST_CASE("build plan: segments, slots and code blocks; nothing indexed takes no workspace") {
  const BuildParams p = small_plan(true);
  CHECK(p.tokens.first == 4);
  CHECK(p.tokens.count == 996);
  CHECK(p.num_segments == 4);
  CHECK(p.slots_per_segment == 32);
  CHECK(p.num_slots == 3 * 32 + 16);
  CHECK(p.max_code_blocks == p.num_slots + 996 / 16);
  CHECK_FALSE(small_plan(false).residual_codes());
  BuildParams nothing = plan_build({4, 2, 96, 0.0f}, {}, 3);
  CHECK(nothing.num_slots == 0);
  CHECK(lay_out_build(nullptr, nothing) == 0);
  CHECK(lay_out_index(nullptr, nothing) > 0);
}

}  // namespace
}  // namespace quorum::cuda
