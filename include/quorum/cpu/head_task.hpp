// One piece of a call: the query heads, of one or more rows, that share one KV head of one sequence, and the team of workers on it.
#pragma once

#include "quorum/core/attention_output.hpp"
#include "quorum/core/decode_report.hpp"
#include "quorum/core/options.hpp"
#include "quorum/core/sequence_view.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/core/step_bytes.hpp"
#include "quorum/cpu/executor.hpp"
#include "quorum/cpu/simd/soft_cap.hpp"
#include "quorum/cpu/workspace.hpp"

namespace quorum::cpu {

struct HeadTask {
  const AttentionShape* shape = nullptr;
  KvCacheView kv;
  QueryView queries;
  int sequence = 0;
  int kv_head = 0;
  int first_qo_head = 0;
  int num_heads = 1;  // heads handled together: query heads from first_qo_head on, of one row after the other
  RowKernels kernels;
  Team team;
  WorkerScratch* workers = nullptr;  // [team.num_workers]
  HeadScratch* shared = nullptr;

  int first_row = 0;  // query row of the first head
  int heads_per_row = 1;
  int row_step = 0;               // how far the ends of two neighbouring rows lie apart
  TokenFilter filter{};           // tokens that one of the rows sees
  int num_visible = 0;            // so many
  bool filters_clusters = false;  // clusters may hold tokens that no row sees
  bool filters_always = false;    // so may the list of what is always read
  bool rows_differ = false;       // rows do not all see the same

  WorkerScratch& own() const { return workers[team.worker]; }
  int head_dim() const { return shape->head_dim; }
  int row_bytes() const { return quorum::row_bytes(kv.type, shape->head_dim); }  // of a key, and of a value
  float key_scale() const { return kv.key_scale(kv_head); }
  float value_scale() const { return kv.value_scale(kv_head); }
  int num_rows() const { return num_heads / heads_per_row; }

  // Query row and query head of the g-th head; whether its row sees a token that passes the filter.
  int query_row(int g) const { return first_row + g / heads_per_row; }
  int qo_head(int g) const { return first_qo_head + g % heads_per_row; }
  int row_end(int g) const { return filter.end - (num_rows() - 1 - g / heads_per_row) * row_step; }
  bool sees(int g, int token) const { return token < row_end(g) && token >= SequenceView::window_begin(row_end(g), shape->sliding_window); }
};

// The task of heads_per_row query heads from first_qo_head on, of all rows of a span. workers: scratch of the team's first worker.
inline HeadTask row_task(const AttentionShape& shape, const QueryView& queries, const SequenceView& sequence, const RowSpan& rows,
                         int first_qo_head, int heads_per_row, Team team, WorkerScratch* workers) {
  const int num_heads = rows.num_rows * heads_per_row;
  HeadTask task{&shape,
                sequence.kv,
                queries,
                rows.sequence,
                shape.kv_head_of(first_qo_head),
                first_qo_head,
                num_heads,
                row_kernels(sequence.kv.type, num_heads),
                team,
                workers,
                nullptr};
  task.first_row = rows.query_row;
  task.heads_per_row = heads_per_row;
  task.row_step = sequence.row_step();
  task.filter = sequence.filter(rows.first_row, rows.num_rows, shape.sliding_window);
  task.num_visible = task.filter.count();
  task.rows_differ = rows.num_rows > 1 && task.row_step > 0;
  const bool cut = task.filter.mask != nullptr || task.filter.begin > 0;
  if (sequence.index != nullptr) {
    task.filters_clusters = cut || task.filter.end < sequence.index->indexed_end;
    task.filters_always = cut || task.filter.end < sequence.index->always.num_known;
  }
  return task;
}

// The task of all query heads of one KV head and one row a sequence; item = sequence * num_kv_heads + kv_head.
inline HeadTask group_task(const AttentionShape& shape, const QueryView& queries, const KvCacheView& kv, int item, Team team,
                           WorkerScratch* workers) {
  const int group = shape.group_size(), sequence = item / shape.num_kv_heads, kv_head = item % shape.num_kv_heads;
  return row_task(shape, queries, {kv}, {sequence, sequence, 0, 1}, kv_head * group, group, team, workers);
}

// The worker's own copy of the heads' queries, scaled by sm_scale.
inline void load_queries(const HeadTask& task) {
  const float scale = task.shape->softmax_scale();
  for (int g = 0; g < task.num_heads; ++g)
    load_row(task.queries.row(task.query_row(g), task.qo_head(g)), task.queries.type, task.head_dim(), scale, task.own().queries.row(g));
}

// What becomes of the scores of `count` tokens, all heads, before they are weighed: soft-capping, and -inf where a head's row does not see
// a token that another one's does. token_at(i): the i-th of them.
template <class TokenAt>
QUORUM_ALWAYS_INLINE void adjust_scores(const HeadTask& task, HeadRows scores, int count, TokenAt&& token_at) {
  if (task.shape->logit_softcap > 0.0f)
    for (int g = 0; g < task.num_heads; ++g) simd::soft_cap_scores(scores.row(g), count, task.shape->logit_softcap);
  if (!task.rows_differ) return;
  for (int i = 0; i < count; ++i) {
    const int token = token_at(i);
    if (task.sees(0, token) && task.sees(task.num_heads - 1, token)) continue;  // so do the rows between
    for (int g = 0; g < task.num_heads; ++g)
      if (!task.sees(g, token)) scores.row(g)[i] = -kInfinity;
  }
}

// Bytes of all keys and values of a cache.
inline int64_t cache_bytes(const AttentionShape& shape, const KvCacheView& kv) {
  return shape.num_kv_heads * StoredHead{shape.head_dim, kv.type}.dense_bytes(kv.num_tokens);
}

// About how long one worker takes to read so much.
inline std::chrono::nanoseconds reading_time(int64_t bytes) {
  constexpr int64_t kBytesInNanosecond = 10;
  return std::chrono::nanoseconds(bytes / kBytesInNanosecond);
}

// Runs run_item(item, team) for all items in one parallel region, which reads about so many bytes. As many items as divide evenly go to
// single workers; the remaining ones are each shared by all workers, so that one long sequence with one KV head still uses every thread.
//
// Determinism: which items are shared depends on the number of items and workers alone.
template <class RunItem>
void run_items(Executor& executor, int num_items, int64_t bytes, RunItem&& run_item) {
  struct Context {
    Barrier barrier;
    std::atomic<int> next{0};
    int num_items = 0;
    std::remove_reference_t<RunItem>* run_item = nullptr;
  } context;
  context.num_items = num_items;
  context.run_item = &run_item;
  executor.run_short(
      [](void* raw, int worker, int num_workers) {
        auto& shared = *static_cast<Context*>(raw);
        const int alone = shared.num_items - shared.num_items % num_workers;
        for (int i = shared.next.fetch_add(1); i < alone; i = shared.next.fetch_add(1)) {
          Barrier unused;
          (*shared.run_item)(i, worker, Team{&unused, 0, 1});
        }
        const Team team{&shared.barrier, worker, num_workers};
        for (int i = alone; i < shared.num_items; ++i) {
          team.sync();  // scratch memory is shared from here on
          (*shared.run_item)(i, worker, team);
        }
      },
      &context, reading_time(bytes));
}

}  // namespace quorum::cpu
