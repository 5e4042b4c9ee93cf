// Executors run every worker of a call at the same time, as often as asked.
#include "quorum/cpu/executor.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/error_message.hpp"

using namespace quorum;

namespace {

std::vector<std::unique_ptr<Executor>> all_executors() {
  std::vector<std::unique_ptr<Executor>> out;
  out.push_back(std::make_unique<SerialExecutor>());
  for (const int workers : {1, 2, 3, 5}) out.push_back(std::make_unique<ThreadExecutor>(workers));
  out.push_back(std::make_unique<ThreadExecutor>(3, LateWorkers::leave_out));
#if defined(_OPENMP)
  for (const int workers : {1, 2, 3}) out.push_back(std::make_unique<OpenMpExecutor>(workers));
#endif
  return out;
}

// Counts the calls of every worker; all workers of a call must meet twice before any may leave.
struct Meeting {
  std::vector<std::atomic<int>> calls = std::vector<std::atomic<int>>(16);
  std::atomic<int> num_workers{0}, disagreements{0};
  cpu::Barrier barrier;

  static void work(void* raw, int worker, int num_workers) {
    auto& self = *static_cast<Meeting*>(raw);
    self.calls[size_t(worker)].fetch_add(1);
    self.num_workers.store(num_workers);
    self.barrier.wait(num_workers);
    if (self.num_workers.load() != num_workers) self.disagreements.fetch_add(1);
    self.barrier.wait(num_workers);
  }
};

}  // namespace

TEST_CASE("every worker is called once a run, all together, many times over") {
  for (const auto& executor : all_executors()) {
    Meeting meeting;
    constexpr int kRuns = 50;
    for (int run = 0; run < kRuns; ++run) executor->run(Meeting::work, &meeting);
    const int workers = meeting.num_workers.load();
    CHECK(workers >= 1);
    CHECK(workers <= executor->num_workers());
    CHECK(meeting.disagreements.load() == 0);
    for (int i = 0; i < 16; ++i) CHECK(meeting.calls[size_t(i)].load() == (i < workers ? kRuns : 0));
  }
}

TEST_CASE("what workers wrote is seen after the run") {
  for (const auto& executor : all_executors()) {
    std::vector<int> written(16, 0);
    for (int run = 1; run <= 50; ++run) {
      executor->run([](void* raw, int worker, int) { ++(*static_cast<std::vector<int>*>(raw))[size_t(worker)]; }, &written);
      int sum = 0;
      for (const int n : written) sum += n;
      REQUIRE(sum % run == 0);
    }
  }
}

TEST_CASE("short work: who is late is left out, the others are a team, and the next call has everybody again") {
  using namespace std::chrono_literals;
  for (const int workers : {1, 2, 5}) {
    ThreadExecutor executor(workers, LateWorkers::leave_out);
    for (int run = 0; run < 500; ++run) {
      Meeting meeting;
      executor.run_short(Meeting::work, &meeting, 0ns);  // nobody is waited for
      const int team = meeting.num_workers.load();
      REQUIRE(team >= 1);
      REQUIRE(team <= workers);
      REQUIRE(meeting.disagreements.load() == 0);
      for (int i = 0; i < 16; ++i) REQUIRE(meeting.calls[size_t(i)].load() == (i < team ? 1 : 0));
    }
    for (const bool is_short : {false, true}) {
      Meeting meeting;
      if (is_short)
        executor.run_short(Meeting::work, &meeting, 1min);
      else
        executor.run(Meeting::work, &meeting);
      CHECK(meeting.num_workers.load() == workers);
    }
  }
}

TEST_CASE("short work: by default every worker is waited for") {
  for (const auto& executor : all_executors()) {
    Meeting all, brief;
    executor->run(Meeting::work, &all);
    for (int run = 0; run < 50; ++run) executor->run_short(Meeting::work, &brief, std::chrono::minutes(1));
    CHECK(brief.num_workers.load() == all.num_workers.load());
    CHECK(brief.disagreements.load() == 0);
  }
  ThreadExecutor executor(5);
  for (int run = 0; run < 50; ++run) {
    Meeting meeting;
    executor.run_short(Meeting::work, &meeting, std::chrono::nanoseconds(0));
    REQUIRE(meeting.num_workers.load() == 5);
  }
}

TEST_CASE("a barrier publishes what was written before it") {
  ThreadExecutor executor(4);
  struct Context {
    cpu::Barrier barrier;
    int values[4] = {};
    std::atomic<int> wrong{0};
  } context;
  executor.run(
      [](void* raw, int worker, int num_workers) {
        auto& c = *static_cast<Context*>(raw);
        for (int round = 1; round <= 200; ++round) {
          c.values[worker] = round * (worker + 1);
          c.barrier.wait(num_workers);
          for (int i = 0; i < num_workers; ++i) c.wrong += c.values[i] != round * (i + 1);
          c.barrier.wait(num_workers);
        }
      },
      &context);
  CHECK(context.wrong.load() == 0);
}

TEST_CASE("an executor may rest between runs") {
  ThreadExecutor executor(2);
  std::atomic<int> calls{0};
  for (int run = 0; run < 3; ++run) {
    executor.run([](void* raw, int, int) { ++*static_cast<std::atomic<int>*>(raw); }, &calls);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than workers spin: they sleep by then
  }
  CHECK(calls.load() == 6);
}

TEST_CASE("executors come and go without a run") {
  for (int i = 0; i < 20; ++i) ThreadExecutor executor(3);
}

TEST_CASE("errors name the argument, its rule and its value") {
  for (const int workers : {0, -1, 1025})
    CHECK(test::argument_error([&] { ThreadExecutor executor(workers); }) ==
          "ThreadExecutor: num_workers must be 1 to 1024, got " + std::to_string(workers));
#if defined(_OPENMP)
  CHECK(test::argument_error([] { OpenMpExecutor executor(0); }) == "OpenMpExecutor: num_workers must be 1 to 1024, got 0");
#endif
}

TEST_CASE("parts of a team cover everything once, in order, evenly") {
  for (const int workers : {1, 2, 3, 4, 7, 64})
    for (const int count : {0, 1, 2, 3, 15, 16, 17, 1000, 2'000'000'000}) {
      int next = 0, smallest = count, largest = 0;
      for (int w = 0; w < workers; ++w) {
        const cpu::Team team{nullptr, w, workers};
        REQUIRE(team.first(count) == next);
        next = team.last(count);
        smallest = std::min(smallest, next - team.first(count));
        largest = std::max(largest, next - team.first(count));
        CHECK(team.leads() == (w == 0));
      }
      CHECK(next == count);
      CHECK(largest - smallest <= 1);
    }
}

TEST_CASE("for_each_task runs every task once") {
  for (const auto& executor : all_executors())
    for (const int num_tasks : {0, 1, 3, 100}) {
      std::vector<std::atomic<int>> runs(100);
      for_each_task(*executor, num_tasks, [&](int i) { runs[size_t(i)].fetch_add(1); });
      int wrong = 0;
      for (int i = 0; i < 100; ++i) wrong += runs[size_t(i)].load() != (i < num_tasks ? 1 : 0);
      CHECK(wrong == 0);
    }
}
