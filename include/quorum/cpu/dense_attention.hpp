// Attention over every token: the baseline, the path for short sequences, and the fallback.
#pragma once

#include <span>

#include "quorum/cpu/aligned_vector.hpp"
#include "quorum/cpu/attend_rows.hpp"
#include "quorum/cpu/head_task.hpp"

namespace quorum {

namespace cpu {

// Output and lse of a task's heads from its team's states, the sinks included. One barrier.
inline void finish_states(const HeadTask& task, const AttentionOutput& out) {
  task.team.sync();
  const int first = task.team.first(task.head_dim()), last = task.team.last(task.head_dim());
  const float* sinks = task.shape->sink_logits;
  for (int g = 0; g < task.num_heads; ++g) {
    const AttentionState all = merge_states(task.workers, task.team.num_workers, g);
    const SinkShare share =
        sinks == nullptr ? SinkShare{1.0, double(all.lse())} : add_sink(double(all.lse()), double(sinks[task.qo_head(g)]));
    merge_columns(task.workers, task.team.num_workers, g, all, first, last, out.row(*task.shape, task.query_row(g), task.qo_head(g)),
                  float(share.factor));
    if (task.team.leads()) out.set_lse(*task.shape, task.query_row(g), task.qo_head(g), float(share.lse));
  }
}

// Adds tokens token_at(i), i in [first, last), to the worker's states.
template <class TokenAt>
void add_tokens(const HeadTask& task, int first, int last, TokenAt&& token_at) {
  add_rows(task.kernels, task.kv, task.kv_head, task.head_dim(), first, last, token_at, task.own(),
           [&](int begin, int count) { adjust_scores(task, task.own().tile, count, [&](int i) { return token_at(begin + i); }); });
}

// Attention of one task over tokens token_at(0..count), shared by its team; writes output and lse of its heads.
template <class TokenAt>
void attend_task(const HeadTask& task, int count, TokenAt&& token_at, const AttentionOutput& out) {
  load_queries(task);
  clear_states(task.own(), task.num_heads, task.head_dim());
  add_tokens(task, task.team.first(count), task.team.last(count), token_at);
  finish_states(task, out);
}

// Attention of one task over all tokens that its rows see.
inline void attend_densely(const HeadTask& task, const AttentionOutput& out) {
  const int begin = task.filter.begin, count = task.num_visible;
  if (task.filter.is_range())
    return attend_task(
        task, count, [begin](int i) { return begin + i; }, out);
  load_queries(task);
  clear_states(task.own(), task.num_heads, task.head_dim());
  int32_t tokens[512];
  int left = task.team.last(count) - task.team.first(count);
  for (int token = task.filter.nth(task.team.first(count)); left > 0;) {
    const int listed = task.filter.list(token, std::min(left, int(std::size(tokens))), tokens);
    add_tokens(task, 0, listed, [&tokens](int i) { return tokens[i]; });
    left -= listed;
  }
  finish_states(task, out);
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
inline void check_stage(const AttentionShape& shape, const QueryView& queries, int num_rows, const char* rows_rule,
                        const AttentionOutput& out, const char* function) {
  validate(shape, function);
  require(queries.num_rows == num_rows, function, "queries.num_rows", rows_rule, queries.num_rows);
  require(num_rows == 0 || queries.data != nullptr, function, "queries.data", "not null", "null");
  validate(queries, shape.head_dim, function);
  require(num_rows == 0 || out.output != nullptr, function, "out.output", "not null", "null");
}
inline void check_cache(const AttentionShape& shape, const KvCacheView& kv, const char* function) {
  require(kv.num_tokens >= 0, function, "kv.num_tokens", "at least 0", kv.num_tokens);
  require(kv.num_tokens == 0 || (kv.keys != nullptr && kv.values != nullptr), function, "kv.keys and kv.values", "not null", "null");
  validate(kv, shape.head_dim, function);
}
inline void check_stage(const AttentionShape& shape, const QueryView& queries, std::span<const KvCacheView> kv, const AttentionOutput& out,
                        const char* function) {
  check_stage(shape, queries, int(kv.size()), "the number of sequences", out, function);
  for (const KvCacheView& cache : kv) check_cache(shape, cache, function);
}

// Appends the spans of a sequence's rows, the first of which is query row `query_row`. Memory: at most num_rows more.
inline void append_spans(const SequenceView& view, int sequence, int query_row, int most_rows, int sliding_window, bool dense,
                         std::vector<RowSpan>& spans) {
  for (int row = 0; row < view.num_rows;) {
    const int count = view.shared_rows(row, most_rows, sliding_window, dense);
    spans.push_back({sequence, query_row + row, row, count});
    row += count;
  }
}

}  // namespace cpu

// Attention of every query row over all tokens that it sees: masks, several rows a sequence, erased tokens of the index.
//
// Method: online softmax over tiles of 32 rows, algorithm.md eq. 1 and 2. Shapes: queries [sum of num_rows] rows; outputs see
// AttentionOutput. Determinism: bit for bit for a given number of workers. Errors: Error(invalid_argument). A row that sees nothing gives
// output 0 and lse -inf. Cost: every visible key and value once for all query heads of its group and all rows that share (16 heads
// together); allocates scratch memory of a few rows per worker.
inline void dense_attention(const AttentionShape& shape, const QueryView& queries, std::span<const SequenceView> sequences,
                            const AttentionOutput& out, Executor& executor) {
  int num_rows = 0, most_rows = 1;
  for (const SequenceView& sequence : sequences) {
    require(sequence.num_rows >= 1, "dense_attention", "sequence.num_rows", "at least 1", sequence.num_rows);
    num_rows += sequence.num_rows;
    most_rows = std::max(most_rows, sequence.num_rows);
  }
  cpu::check_stage(shape, queries, num_rows, "the number of the sequences' rows", out, "dense_attention");
  const int group = shape.group_size();
  most_rows = max_shared_rows(RowSets::shared, group, most_rows);
  std::vector<RowSpan> spans;
  num_rows = 0;
  int64_t bytes = 0;
  for (const SequenceView& sequence : sequences) {
    cpu::check_cache(shape, sequence.kv, "dense_attention");
    bytes += cpu::cache_bytes(shape, sequence.kv);
    cpu::append_spans(sequence, int(&sequence - sequences.data()), num_rows, most_rows, shape.sliding_window, true, spans);
    num_rows += sequence.num_rows;
  }
  cpu::StageScratch scratch({group * most_rows, shape.head_dim, 0, 0, 0}, executor.num_workers());
  cpu::run_items(executor, int(spans.size()) * shape.num_kv_heads, bytes, [&](int item, int worker, cpu::Team team) {
    const RowSpan& rows = spans[size_t(item / shape.num_kv_heads)];
    cpu::attend_densely(cpu::row_task(shape, queries, sequences[size_t(rows.sequence)], rows, item % shape.num_kv_heads * group, group,
                                      team, scratch.workers() + (worker - team.worker)),
                        out);
  });
}
// The same for one query a sequence that sees every token. Shapes: queries [num_sequences] rows; kv [num_sequences].
inline void dense_attention(const AttentionShape& shape, const QueryView& queries, std::span<const KvCacheView> kv,
                            const AttentionOutput& out, Executor& executor) {
  cpu::check_stage(shape, queries, kv, out, "dense_attention");
  std::vector<SequenceView> sequences;
  for (const KvCacheView& cache : kv) sequences.push_back({cache});
  dense_attention(shape, queries, sequences, out, executor);
}

}  // namespace quorum
