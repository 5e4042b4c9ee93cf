// Empties the processor's caches between measurements: decoding meets keys, values and index that were last read a step ago.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "quorum/cpu/executor.hpp"

namespace quorum::bench {

// Reads more memory than the caches hold, on every worker.
class ColdCaches {
 public:
  ColdCaches() {
    int64_t last_level = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    last_level = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    block_.assign(static_cast<size_t>(std::clamp<int64_t>(2 * last_level, 64 << 20, 512 << 20)), 1);
  }
  // Post: the workers are awake, as they are in an engine that just ran another operator on them.
  void clean(Executor& executor) {
    clean_once(executor);
    executor.run([](void*, int, int) {}, nullptr);
  }

 private:
  void clean_once(Executor& executor) {
    executor.run(
        [](void* context, int worker, int num_workers) {
          auto& self = *static_cast<ColdCaches*>(context);
          const size_t part = self.block_.size() / static_cast<size_t>(num_workers), first = part * static_cast<size_t>(worker);
          unsigned sum = 0;
          for (size_t i = first; i < first + part; i += 64) sum += self.block_[i];
          self.sum_.fetch_add(sum);
        },
        this);
  }

  std::vector<unsigned char> block_;
  std::atomic<unsigned> sum_{0};
};

}  // namespace quorum::bench
