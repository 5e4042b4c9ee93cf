// Attention over a given selection of tokens, wherever it came from.
#pragma once

#include "quorum/core/selection_view.hpp"
#include "quorum/cpu/dense_attention.hpp"

namespace quorum {

// Decode attention of one query per sequence over the selected tokens of each KV head.
//
// Method: online softmax over tiles of rows, algorithm.md eq. 1 and 2. Shapes: as dense_attention; selection rows per
// (sequence, KV head), tokens in [0, kv.num_tokens). Determinism: bit for bit for a given number of workers. Errors:
// Error(invalid_argument). An empty row gives output 0 and lse -inf. Caller: token ids are not checked.
// Cost: two rows a token, each once for all query heads of its group.
inline void sparse_attention(const AttentionShape& shape, const QueryView& queries, std::span<const KvCacheView> kv,
                             const SelectionView& selection, const AttentionOutput& out, Executor& executor) {
  cpu::check_stage(shape, queries, kv, out, "sparse_attention");
  require(selection.num_sequences == int(kv.size()), "sparse_attention", "selection.num_sequences", "the number of sequences",
          selection.num_sequences);
  require(selection.num_kv_heads == shape.num_kv_heads, "sparse_attention", "selection.num_kv_heads", "shape.num_kv_heads",
          selection.num_kv_heads);
  cpu::StageScratch scratch({shape.group_size(), shape.head_dim, 0, 0, 0}, executor.num_workers());
  int64_t bytes = 0;
  for (size_t i = 0; i < kv.size(); ++i)
    for (int h = 0; h < shape.num_kv_heads; ++h)
      bytes += StoredHead{shape.head_dim, kv[i].type}.dense_bytes(selection.num_tokens(int(i), h));
  cpu::run_items(executor, int(kv.size()) * shape.num_kv_heads, bytes, [&](int item, int worker, cpu::Team team) {
    const cpu::HeadTask task =
        cpu::group_task(shape, queries, kv[size_t(item / shape.num_kv_heads)], item, team, scratch.workers() + (worker - team.worker));
    const int32_t* tokens = selection.row(task.sequence, task.kv_head);
    cpu::attend_task(
        task, selection.num_tokens(task.sequence, task.kv_head), [tokens](int i) { return tokens[i]; }, out);
  });
}

}  // namespace quorum
