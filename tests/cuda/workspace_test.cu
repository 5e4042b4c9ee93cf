#include "quorum/cuda/workspace.cuh"

#include <doctest/doctest.h>

#include <vector>

namespace quorum::cuda {
namespace {

StepParams small_step(int group) {
  StepParams p;
  p.shape = {2 * group, 2, 64, 0.125f};
  p.deal_query_rows(1, true, RowSets::shared);
  p.num_sequences = 3;
  p.max_tokens = 100;
  p.max_slots = 32;
  p.num_draws = 8;
  p.attend_blocks = 4;
  p.num_rounds = 2;
  p.by_tokens = true;
  p.options.certificate.enabled = true;
  return p;
}

TEST_CASE("arena: counts without memory what it deals with it, at multiples of 256 bytes") {
  Arena counting(nullptr, kDeviceAlignment);
  CHECK(counting.take<int32_t>(3) == nullptr);
  CHECK(counting.used() == 256);
  counting.take<float>(0);
  CHECK(counting.used() == 256);
  counting.take<double>(33);
  CHECK(counting.used() == 768);
  std::vector<std::byte> memory(768);
  Arena arena(memory.data(), kDeviceAlignment);
  CHECK(static_cast<void*>(arena.take<int32_t>(3)) == memory.data());
  CHECK(static_cast<void*>(arena.take<char>(1)) == memory.data() + 256);
  CHECK(static_cast<void*>(arena.take<char>(1)) == memory.data() + 512);
}

TEST_CASE("workspace: every array has its own room, and the size is known without memory") {
  for (const int group : {1, 4, 16}) {
    StepParams p = small_step(group);
    const DeviceTuning device{2, true};
    const int64_t bytes = lay_out(nullptr, device, p);
    CHECK(p.workspace.plan == nullptr);
    std::vector<std::byte> memory(size_t(bytes) + 256);
    std::byte* base = memory.data();
    CHECK(lay_out(base, device, p) == bytes);
    const StepWorkspace& w = p.workspace;
    const int64_t rows = 6, partials = 2 * (4 + 18), score_blocks = device.max_score_blocks(6);
    const int64_t scan_blocks = device.max_scan_blocks(6), code_blocks = 100 / 16 + 32;
    // Begin of each array and the bytes that the kernels may write there.
    const struct {
      const void* begin;
      int64_t size;
    } arrays[] = {{w.quantised, rows * 16 * 64},
                  {w.constants, rows * 16 * int64_t(sizeof(QueryConstants))},
                  {w.scaled_queries, rows * 16 * 64 * 4},
                  {w.log_weight, rows * 32 * group * 4},
                  {w.cluster_weight, score_blocks * group * 8},
                  {w.always_weight, score_blocks * group * 8},
                  {w.plan, rows * int64_t(sizeof(RowPlan))},
                  {w.tokens, rows * 100 * 4},
                  {w.tail_clusters, rows * 32 * 4},
                  {w.draws, rows * 8 * 8},
                  {w.counts, rows * 3 * 4},
                  {w.cluster_key, rows * 32 * 2},
                  {w.tail_weight, rows * 32 * group * 4},
                  {w.token_bucket, rows * code_blocks * 16 * 2},
                  {w.token_histogram, rows * (group + 1) * kNumKeyBuckets * 8},
                  {w.tile_counts, scan_blocks * kNumKeyBuckets * 4},
                  {w.tile_start, scan_blocks * 4},
                  {w.unread_weight, scan_blocks * group * 4},
                  {w.unread_share, rows * 32 * 4},
                  {w.unread_tokens, rows * 32 * 4},
                  {w.draw_weight, rows * 8 * group * 4},
                  {w.tile_indptr, 2 * (3 * rows + 1) * 4},
                  {w.partial_state, partials * group * 8},
                  {w.partial_output, partials * group * 64 * 4}};
    int64_t end = 0;
    for (const auto& array : arrays) {
      const int64_t begin = static_cast<const std::byte*>(array.begin) - base;
      CHECK(begin >= end);
      CHECK(begin % 256 == 0);
      end = begin + array.size;
    }
    CHECK(end <= bytes);
    CHECK(bytes - end < 256);
  }
}

TEST_CASE("workspace: fewer sequences, no draws, one round, whole clusters take no more") {
  const DeviceTuning device{2, true};
  StepParams p = small_step(4), fewer = p, no_draws = p, one_round = p, clusters = p;
  const int64_t bytes = lay_out(nullptr, device, p);
  fewer.num_sequences = 1;
  no_draws.num_draws = 0;
  one_round.num_rounds = 1;
  clusters.by_tokens = false;
  CHECK(clusters.max_code_blocks() == 0);
  CHECK(lay_out(nullptr, device, clusters) + 6 * 38 * 32 < bytes);
  CHECK(lay_out(nullptr, device, fewer) < bytes);
  CHECK(lay_out(nullptr, device, no_draws) < bytes);
  CHECK(lay_out(nullptr, device, one_round) < bytes);
}

}  // namespace
}  // namespace quorum::cuda
