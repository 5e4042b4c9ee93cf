// One piece of a call: the query heads that share one KV head of one sequence, and the team of workers on it.
#pragma once

#include "quorum/core/attention_output.hpp"
#include "quorum/core/decode_report.hpp"
#include "quorum/core/options.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cpu/executor.hpp"
#include "quorum/cpu/workspace.hpp"

namespace quorum::cpu {

struct HeadTask {
  const AttentionShape* shape = nullptr;
  KvCacheView kv;
  QueryView queries;
  int sequence = 0;
  int kv_head = 0;
  int first_qo_head = 0;
  int num_heads = 1;  // query heads from first_qo_head on
  RowKernels kernels;
  Team team;
  WorkerScratch* workers = nullptr;  // [team.num_workers]
  HeadScratch* shared = nullptr;

  WorkerScratch& own() const { return workers[team.worker]; }
  int head_dim() const { return shape->head_dim; }
  int row_bytes() const { return quorum::row_bytes(kv.type, shape->head_dim); }  // of a key, and of a value
};

// The task of all query heads of one KV head; item = sequence * num_kv_heads + kv_head. workers: scratch of the team's first worker.
inline HeadTask group_task(const AttentionShape& shape, const QueryView& queries, const KvCacheView& kv, int item, Team team,
                           WorkerScratch* workers) {
  const int group = shape.group_size(), kv_head = item % shape.num_kv_heads;
  return {&shape, kv,      queries, item / shape.num_kv_heads, kv_head, kv_head * group, group, row_kernels(kv.type, group),
          team,   workers, nullptr};
}

// The worker's own copy of the group's queries, scaled by sm_scale.
inline void load_queries(const HeadTask& task) {
  const float scale = task.shape->softmax_scale();
  for (int g = 0; g < task.num_heads; ++g)
    load_row(task.queries.row(task.sequence, task.first_qo_head + g), task.queries.type, task.head_dim(), scale, task.own().queries.row(g));
}

// Runs run_item(item, team) for all items in one parallel region. As many items as divide evenly go to single workers; the
// remaining ones are each shared by all workers, so that one long sequence with one KV head still uses every thread.
//
// Determinism: which items are shared depends on the number of items and workers alone.
template <class RunItem>
void run_items(Executor& executor, int num_items, RunItem&& run_item) {
  struct Context {
    Barrier barrier;
    std::atomic<int> next{0};
    int num_items = 0;
    std::remove_reference_t<RunItem>* run_item = nullptr;
  } context;
  context.num_items = num_items;
  context.run_item = &run_item;
  executor.run(
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
      &context);
}

}  // namespace quorum::cpu
