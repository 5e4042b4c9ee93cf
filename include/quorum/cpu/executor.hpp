// Threads are the caller's: an executor runs a function on several workers at once. Serial, std::thread and OpenMP are built in.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "quorum/core/config.hpp"
#include "quorum/core/error.hpp"

namespace quorum {

// A function for each worker of a call: work(context, worker, num_workers).
using WorkerFunction = void (*)(void* context, int worker, int num_workers);

// Runs one function on several workers that exist at the same time.
//
// Contract of run(): calls work(context, i, n) once for every i in [0, n), n between 1 and num_workers(), and returns when all have
// returned. All n calls must be running together: workers wait for one another at barriers, so a queue that starts the second
// call only after the first has returned would hang.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int num_workers() const noexcept = 0;
  virtual void run(WorkerFunction work, void* context) noexcept = 0;
  // The same for work that would take one worker alone about `duration`: an executor may begin without workers that are late. By default it
  // does not. Decode steps are run like this.
  virtual void run_short(WorkerFunction work, void* context, std::chrono::nanoseconds duration) noexcept {
    static_cast<void>(duration);
    run(work, context);
  }
};

// The calling thread alone.
class SerialExecutor final : public Executor {
 public:
  int num_workers() const noexcept override { return 1; }
  void run(WorkerFunction work, void* context) noexcept override { work(context, 0, 1); }
};

namespace cpu {

// Tells a core that it is spinning.
inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins this often before giving the core away: about 20 microseconds, longer than any imbalance inside a step.
inline constexpr int kSpinsBeforeYield = 2000;

// Waits until ready() is true: spins briefly, then yields, so that more workers than cores still make progress. It does not sleep: beside a
// foreign thread on one of two virtual processors, a futex made steps of 60 us take 400 to 1000 us where yielding took 240 to 930.
template <class Ready>
void spin_until(Ready ready) {
  for (int spins = 0; !ready(); ++spins) {
    if (spins < kSpinsBeforeYield)
      spin_pause();
    else
      std::this_thread::yield();
  }
}

// Meeting point of all workers of a call. Cost: well under a microsecond when all arrive together.
class Barrier {
 public:
  void wait(int num_workers) {
    if (num_workers == 1) return;
    const int generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_workers - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
    } else {
      spin_until([&] { return generation_.load(std::memory_order_acquire) != generation; });
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// One worker's place among those that share a piece of work.
struct Team {
  Barrier* barrier = nullptr;
  int worker = 0;
  int num_workers = 1;

  void sync() const { barrier->wait(num_workers); }
  bool leads() const { return worker == 0; }
  // This worker's part [first, last) of `count` things.
  int first(int count) const { return int(int64_t(count) * worker / num_workers); }
  int last(int count) const { return int(int64_t(count) * (worker + 1) / num_workers); }
};

}  // namespace cpu

// What a decode step does about workers that other work keeps from their processors.
enum class LateWorkers : uint8_t {
  await,      // the same workers in every step, hence the same result to the last bit
  leave_out,  // a step waits for them half as long as it would take alone, then goes without: a busy processor costs its share, no more
};

// Its own threads, kept for its lifetime; between calls they spin for a fraction of a millisecond and then sleep. Waking a sleeping thread
// takes as long as a whole sparse step on a virtual machine, so the spin should outlast what an engine does between two layers.
//
// Errors: Error(invalid_argument) unless 1 <= num_workers <= 1024. Caller: one run() at a time.
class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int num_workers, LateWorkers late = LateWorkers::await) : num_workers_(num_workers), late_(late) {
    require(num_workers >= 1 && num_workers <= 1024, "ThreadExecutor", "num_workers", "1 to 1024", num_workers);
    for (int i = 1; i < num_workers; ++i) threads_.emplace_back([this, i] { serve(i); });
  }
  ~ThreadExecutor() override {
    begin(nullptr, nullptr, num_workers_);
    for (auto& thread : threads_) thread.join();
  }
  ThreadExecutor(const ThreadExecutor&) = delete;
  ThreadExecutor& operator=(const ThreadExecutor&) = delete;

  int num_workers() const noexcept override { return num_workers_; }
  void run(WorkerFunction work, void* context) noexcept override {
    begin(work, context, num_workers_);
    finish(num_workers_);
  }
  void run_short(WorkerFunction work, void* context, std::chrono::nanoseconds duration) noexcept override {
    if (late_ == LateWorkers::await || num_workers_ == 1) return run(work, context);
    begin(work, context, 0);
    const auto last_moment = std::chrono::steady_clock::now() + duration / 2;
    while (int(gate_.load(std::memory_order_relaxed) & kCount) < num_workers_ - 1 && std::chrono::steady_clock::now() < last_moment)
      cpu::spin_pause();
    const int team = int(gate_.fetch_or(kClosed, std::memory_order_acq_rel) & kCount) + 1;
    team_.store(team, std::memory_order_release);
    finish(team);
  }

 private:
  // The gate of a call: its number, whether it is closed, and how many workers besides the caller have come in.
  static constexpr uint64_t kCount = 0xffff, kClosed = 1u << 16, kCall = uint64_t(1) << 32;
  static constexpr int kSpinsBeforeSleep = 10 * cpu::kSpinsBeforeYield;

  // team: number of workers, 0: not known until the gate is closed.
  void begin(WorkerFunction work, void* context, int team) noexcept {
    {
      std::lock_guard lock(mutex_);
      work_ = work;
      context_ = context;
      team_.store(team, std::memory_order_relaxed);
      finished_.store(0, std::memory_order_relaxed);
      gate_.store(call_of(gate_.load(std::memory_order_relaxed)) + kCall, std::memory_order_release);
    }
    wake_.notify_all();
  }
  void finish(int team) noexcept {
    work_(context_, 0, team);
    cpu::spin_until([&] { return finished_.load(std::memory_order_acquire) == team - 1; });
  }
  static uint64_t call_of(uint64_t gate) { return gate / kCall * kCall; }

  // Goes into the next call whose gate is open. Returns how many have gone in, this one included, where gates are closed at all.
  int enter(uint64_t& seen) {
    const auto is_new = [&] { return call_of(gate_.load(std::memory_order_acquire)) != seen; };
    while (true) {
      // A spinning thread takes no lock: what run() wrote is visible once the gate has changed, and the lock is still held by then.
      for (int spins = 0; spins < kSpinsBeforeSleep && !is_new(); ++spins) cpu::spin_pause();
      if (!is_new()) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, is_new);
      }
      uint64_t gate = gate_.load(std::memory_order_acquire);
      if (late_ == LateWorkers::await) {
        seen = call_of(gate);
        return 0;
      }
      while ((gate & kClosed) == 0)
        if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
          seen = call_of(gate);
          return int(gate & kCount) + 1;
        }
      seen = call_of(gate);
    }
  }
  // worker: this thread's number where all take part, so that its scratch memory stays in its caches.
  void serve(int worker) {
    for (uint64_t seen = 0;;) {
      const int place = enter(seen);
      if (work_ == nullptr) return;
      cpu::spin_until([&] { return team_.load(std::memory_order_acquire) != 0; });
      const int team = team_.load(std::memory_order_relaxed);
      work_(context_, team == num_workers_ ? worker : place, team);
      finished_.fetch_add(1, std::memory_order_release);
    }
  }

  const int num_workers_;
  const LateWorkers late_;
  std::mutex mutex_;
  std::condition_variable wake_;
  WorkerFunction work_ = nullptr;
  void* context_ = nullptr;
  std::atomic<uint64_t> gate_{0};
  std::atomic<int> team_{0}, finished_{0};
  std::vector<std::thread> threads_;
};

#if defined(_OPENMP)
// The threads of an OpenMP parallel region. Needs -fopenmp.
class OpenMpExecutor final : public Executor {
 public:
  explicit OpenMpExecutor(int num_workers) : num_workers_(num_workers) {
    require(num_workers >= 1 && num_workers <= 1024, "OpenMpExecutor", "num_workers", "1 to 1024", num_workers);
  }
  int num_workers() const noexcept override { return num_workers_; }
  void run(WorkerFunction work, void* context) noexcept override {
    // The runtime may grant fewer threads than asked for; workers are numbered by who arrives, so no <omp.h> is needed.
    std::atomic<int> arrived{0};
    int granted = 0;
#pragma omp parallel num_threads(num_workers_)
    {
#pragma omp atomic update
      granted += 1;
#pragma omp barrier
      work(context, arrived.fetch_add(1), granted);
    }
  }

 private:
  const int num_workers_;
};
#endif

// Runs task(i) for every i in [0, num_tasks) on the executor's workers, each once, in no particular order.
template <class Task>
void for_each_task(Executor& executor, int num_tasks, Task&& task) {
  struct Context {
    std::atomic<int> next{0};
    int num_tasks;
    Task* task;
  } context{{0}, num_tasks, &task};
  executor.run(
      [](void* raw, int, int) {
        auto& shared = *static_cast<Context*>(raw);
        for (int i = shared.next.fetch_add(1); i < shared.num_tasks; i = shared.next.fetch_add(1)) (*shared.task)(i);
      },
      &context);
}

}  // namespace quorum
