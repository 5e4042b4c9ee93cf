// How a call is cut into tasks and given to workers.
#include "quorum/cpu/head_task.hpp"

#include <doctest/doctest.h>

#include <mutex>
#include <vector>

#include "quorum/cpu/dense_attention.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using namespace quorum::cpu;

TEST_CASE("the task of an item: its sequence, KV head and query heads") {
  const AttentionShape shape{12, 3, 64, 0.0f};
  KvCacheView kv;
  kv.type = ElementType::bf16;
  const HeadTask task = group_task(shape, {}, kv, 3 * 5 + 2, {nullptr, 0, 1}, nullptr);
  CHECK(task.sequence == 5);
  CHECK(task.kv_head == 2);
  CHECK(task.first_qo_head == 8);
  CHECK(task.num_heads == 4);
  CHECK(task.kernels.num_heads == 4);
  CHECK(task.head_dim() == 64);
  CHECK(task.row_bytes() == 128);
}

TEST_CASE("queries are loaded scaled, in every type, for the task's heads alone") {
  for (const ElementType type : {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::q8_0, ElementType::fp8_e4m3}) {
    const int d = type == ElementType::q8_0 ? 96 : 72;
    const AttentionShape shape{6, 2, d, 0.5f};
    const test::TestQueries queries(type, 3, 6, d, test::gaussian_floats(3 * 6 * d, 4));
    StageScratch scratch({3, d, 0, 0, 0}, 1);
    const HeadTask task = group_task(shape, queries.view(), {}, 2 * 2 + 1, {nullptr, 0, 1}, scratch.workers());
    load_queries(task);
    int wrong = 0;
    for (int g = 0; g < 3; ++g) {
      const auto want = queries.get(2, 3 + g);
      for (int c = 0; c < d; ++c) wrong += double(task.own().queries.row(g)[c]) != 0.5 * want[size_t(c)];
      for (int c = d; c < padded_dim(d); ++c) wrong += task.own().queries.row(g)[c] != 0.0f;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("every item runs once; items that do not divide evenly are shared by all workers") {
  for (const int workers : {1, 2, 3, 4})
    for (const int items : {0, 1, 2, 3, 4, 7, 12, 13}) {
      CAPTURE(workers);
      CAPTURE(items);
      ThreadExecutor executor(workers);
      std::mutex mutex;
      std::vector<std::vector<int>> seen(size_t(items), std::vector<int>(size_t(workers), 0));  // calls by worker of the team
      int wrong = 0;
      run_items(executor, items, 0, [&](int item, int worker, Team team) {
        std::lock_guard lock(mutex);
        ++seen[size_t(item)][size_t(team.worker)];
        const int shared_from = items - items % workers;
        wrong += team.num_workers != (item < shared_from ? 1 : workers);
        wrong += worker < 0 || worker >= workers || worker < team.worker;
        if (team.num_workers > 1) wrong += worker != team.worker;
      });
      CHECK(wrong == 0);
      for (int i = 0; i < items; ++i)
        for (int w = 0; w < workers; ++w) CHECK(seen[size_t(i)][size_t(w)] == (w == 0 || i >= items - items % workers ? 1 : 0));
    }
}

TEST_CASE("workers of a shared item meet at its barrier, and finish it before the next") {
  ThreadExecutor executor(3);
  std::atomic<int> inside[2] = {0, 0}, wrong{0};
  run_items(executor, 2, 0, [&](int item, int, Team team) {
    inside[item].fetch_add(1);
    team.sync();
    wrong += inside[item].load() != 3;
    if (item == 1) wrong += inside[0].load() != 3;
    team.sync();
  });
  CHECK(wrong.load() == 0);
}
