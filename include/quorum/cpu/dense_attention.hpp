// Attention over every token: the baseline, the path for short sequences, and the fallback.
#pragma once

#include <span>

#include "quorum/cpu/aligned_vector.hpp"
#include "quorum/cpu/attend_rows.hpp"
#include "quorum/cpu/head_task.hpp"

namespace quorum {

namespace cpu {

// Attention of one task over tokens token_at(0..count), shared by its team; writes output and lse of its heads.
template <class TokenAt>
void attend_task(const HeadTask& task, int count, TokenAt&& token_at, const AttentionOutput& out) {
  load_queries(task);
  attend_rows(task.kernels, task.kv, task.kv_head, task.head_dim(), task.team.first(count), task.team.last(count), token_at, task.own());
  task.team.sync();
  for (int g = 0; g < task.num_heads; ++g) {
    const int qo_head = task.first_qo_head + g;
    const AttentionState all = merge_states(task.workers, task.team.num_workers, g);
    merge_columns(task.workers, task.team.num_workers, g, all, task.team.first(task.head_dim()), task.team.last(task.head_dim()),
                  out.row(*task.shape, task.sequence, qo_head));
    if (task.team.leads()) out.set_lse(*task.shape, task.sequence, qo_head, all.lse());
  }
}

inline void attend_densely(const HeadTask& task, const AttentionOutput& out) {
  attend_task(
      task, task.kv.num_tokens, [](int i) { return i; }, out);
}

// Scratch memory of a stage that is called on its own: per worker, allocated for the call.
class StageScratch {
 public:
  StageScratch(const ScratchLimits& limits, int num_workers) : workers_(size_t(num_workers)) {
    lay_out_all(Arena(), limits);
    block_.resize(size_t(bytes_));
    lay_out_all(Arena(block_.data()), limits);
  }
  WorkerScratch* workers() { return workers_.data(); }

 private:
  void lay_out_all(Arena arena, const ScratchLimits& limits) {
    for (WorkerScratch& worker : workers_) lay_out(arena, limits, worker);
    bytes_ = arena.used();
  }
  std::vector<WorkerScratch> workers_;
  AlignedVector<std::byte> block_;
  int64_t bytes_ = 0;
};

// Errors: Error(invalid_argument) unless every array that a stage reads or writes is there and the batch fits together.
inline void check_stage(const AttentionShape& shape, const QueryView& queries, std::span<const KvCacheView> kv, const AttentionOutput& out,
                        const char* function) {
  validate(shape, function);
  require(queries.num_rows == int(kv.size()), function, "queries.num_rows", "the number of sequences", queries.num_rows);
  require(kv.empty() || queries.data != nullptr, function, "queries.data", "not null", "null");
  validate(queries, shape.head_dim, function);
  require(kv.empty() || out.output != nullptr, function, "out.output", "not null", "null");
  for (const KvCacheView& cache : kv) {
    require(cache.num_tokens >= 0, function, "kv.num_tokens", "at least 0", cache.num_tokens);
    require(cache.num_tokens == 0 || (cache.keys != nullptr && cache.values != nullptr), function, "kv.keys and kv.values", "not null",
            "null");
    validate(cache, shape.head_dim, function);
  }
}

}  // namespace cpu

// Decode attention of one query per sequence over all of its tokens.
//
// Method: online softmax over tiles of 32 rows, algorithm.md eq. 1 and 2. Shapes: queries [num_sequences] rows; kv [num_sequences];
// outputs see AttentionOutput. Determinism: bit for bit for a given number of workers. Errors: Error(invalid_argument).
// A sequence without tokens gives output 0 and lse -inf. Cost: every key and value once, for all query heads of its group together;
// allocates scratch memory of a few rows per worker.
inline void dense_attention(const AttentionShape& shape, const QueryView& queries, std::span<const KvCacheView> kv,
                            const AttentionOutput& out, Executor& executor) {
  cpu::check_stage(shape, queries, kv, out, "dense_attention");
  const int num_workers = executor.num_workers();
  cpu::StageScratch scratch({shape.group_size(), shape.head_dim, 0, 0, 0}, num_workers);
  cpu::run_items(executor, int(kv.size()) * shape.num_kv_heads, [&](int item, int worker, cpu::Team team) {
    cpu::attend_densely(
        cpu::group_task(shape, queries, kv[size_t(item / shape.num_kv_heads)], item, team, scratch.workers() + (worker - team.worker)),
        out);
  });
}

}  // namespace quorum
