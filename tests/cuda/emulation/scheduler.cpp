#include "tests/cuda/emulation/scheduler.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "tests/cuda/emulation/async_copy.hpp"
#include "tests/cuda/emulation/sanitizers.hpp"
#include "tests/cuda/emulation/shared_memory.hpp"

// What kernels read. Constant for a thread, so that the headers may declare them const; the scheduler sets them before a thread goes on.
extern "C" {
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
}

namespace quorum::emulation {
namespace {

constexpr int kLanes = 32, kMaxThreads = 1024;

enum class State { ended, ready, waiting };

// What a thread waits in.
struct Wait {
  const char* operation = nullptr;
  unsigned mask = 0;
  void* payload = nullptr;
  Combine combine = nullptr;
  Meeting kind = Meeting::exchange;
  Site site;
};

struct Thread {
  Fiber fiber;
  uint3 index{};
  unsigned rank = 0;
  State state = State::ended;
  Wait wait;
  void* ordered_after = nullptr;  // what it acquires when its wait is over
  unsigned lane() const { return rank % kLanes; }
};

// Objects for the thread sanitizer. Allocated anew for each block: an object that lasted would order one block after another, and races
// between blocks would go unseen. Who arrives releases `arrived`; the last one passes that on through `passed`, so that a thread that
// is already on its way to the next meeting orders nothing for one that has yet to leave this one.
struct MeetingPoint {
  char arrived = 0;
  char passed[4] = {};
  unsigned count = 0;
};

struct MeetingPoints {
  MeetingPoint barrier, warps[kMaxThreads / kLanes];
};

struct Warp {
  unsigned alive = 0, waiting = 0;  // a bit per lane
};

Fiber scheduler;
std::vector<std::unique_ptr<Thread>> threads;
std::vector<unsigned> ready;  // ranks of the threads that can go on; those before first_ready have gone
size_t first_ready = 0;
Warp warps[kMaxThreads / kLanes];
std::vector<Thread*> at_barrier;
std::unique_ptr<MeetingPoints> points;
char launched, finished;  // objects for the thread sanitizer: the host before and after a launch
Thread* current = nullptr;
unsigned num_threads = 0, num_alive = 0;
const std::function<void()>* kernel_body = nullptr;
std::string failure;
// SplitMix64. The standard's generators would not do: instrumented test files compile them too, the linker keeps one copy, and the thread
// sanitizer takes the scheduler's use of it for the threads'.
struct Generator {
  using result_type = uint64_t;
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~uint64_t{0}; }

  void seed(uint64_t value) { state = value; }
  uint64_t operator()() {
    uint64_t bits = state += 0x9e3779b97f4a7c15ull;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
    return bits ^ (bits >> 31);
  }
  uint64_t state = 0;
};
Generator generator;

Settings settings_of_environment() {
  Settings result;
  const auto value = [](const char* name) { return std::string(std::getenv(name) != nullptr ? std::getenv(name) : ""); };
  const std::string order = value("QUORUM_EMULATION_ORDER"), copies = value("QUORUM_EMULATION_ASYNC"),
                    seed = value("QUORUM_EMULATION_SEED");
  if (order == "reverse") result = {ThreadOrder::reverse, AsyncCopyTime::at_issue};
  if (order == "random") result = {ThreadOrder::random, AsyncCopyTime::random};
  if (!order.empty() && order != "forward" && order != "reverse" && order != "random") {
    throw std::runtime_error("QUORUM_EMULATION_ORDER must be forward, reverse or random, got " + order);
  }
  if (copies == "wait") result.async_copies = AsyncCopyTime::at_wait;
  if (copies == "issue") result.async_copies = AsyncCopyTime::at_issue;
  if (copies == "random") result.async_copies = AsyncCopyTime::random;
  if (!seed.empty()) result.seed = std::stoull(seed);
  return result;
}

std::string place(Site site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }
bool same_place(Site a, Site b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void make_ready(Thread& thread) {
  thread.state = State::ready;
  thread.wait.operation = nullptr;
  if (ready.size() == ready.capacity()) {
    // Growing would copy through functions that the thread sanitizer watches, and be taken for a race of the fibers.
    size_t size = 0;
    for (; first_ready < ready.size(); ++first_ready) {
      ready[size++] = ready[first_ready];
      asm volatile("" ::: "memory");  // or the compiler makes this loop such a function
    }
    ready.resize(size);
    first_ready = 0;
  }
  ready.push_back(thread.rank);
}

// The thread to go on, or null.
Thread* take_ready() {
  const size_t count = ready.size() - first_ready;
  if (count == 0) return nullptr;
  if (settings().order == ThreadOrder::forward) {
    Thread* thread = threads[ready[first_ready++]].get();
    if (count == 1) {
      ready.clear();
      first_ready = 0;
    }
    return thread;
  }
  const size_t place = settings().order == ThreadOrder::reverse ? ready.size() - 1 : first_ready + generator() % count;
  Thread* thread = threads[ready[place]].get();
  ready[place] = ready.back();
  ready.pop_back();
  return thread;
}

// Goes back to the scheduler; returns when the scheduler enters this thread again.
void leave() { scheduler.enter(current->fiber); }

void wait_here() {
  current->state = State::waiting;
  leave();
}

// `after`: what those who met acquire. The last to come has run on without leaving, so it passes on for all; the scheduler, which
// completes meetings when threads end, must not take part in the order of the kernel's accesses: then everyone takes what has arrived.
void* pass_on(MeetingPoint& point, bool by_last_to_come) {
  if (!by_last_to_come) return &point.arrived;
  void* after = &point.passed[point.count++ % 4];
  acquire(&point.arrived);
  release(after);
  return after;
}

bool same_operation(const Wait& a, const Wait& b) {
  if (a.operation != b.operation && std::strcmp(a.operation, b.operation) != 0) return false;
  return a.mask == b.mask && a.combine == b.combine && (a.kind == Meeting::barrier || same_place(a.site, b.site));
}

// Completes what `thread` waits in when all its lanes have come.
bool complete_warp(Thread& thread, bool by_last_to_come) {
  Warp& warp = warps[thread.rank / kLanes];
  const Wait wait = thread.wait;
  const unsigned lanes = wait.mask & warp.alive, first = thread.rank - thread.lane();
  if ((warp.waiting & lanes) != lanes || (wait.kind == Meeting::matrix && lanes != wait.mask)) return false;
  void* payloads[kLanes] = {};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    const Thread& other = *threads[first + lane];
    if (!same_operation(other.wait, wait)) return false;
    payloads[lane] = other.wait.payload;
  }
  if (wait.combine != nullptr) wait.combine(payloads, kLanes);
  void* after = wait.kind == Meeting::barrier ? pass_on(points->warps[thread.rank / kLanes], by_last_to_come) : nullptr;
  warp.waiting &= ~lanes;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    Thread& other = *threads[first + lane];
    other.ordered_after = after;
    if (by_last_to_come && &other == current) continue;
    make_ready(other);
  }
  return true;
}

void complete_barrier(bool by_last_to_come) {
  const Thread& one = *at_barrier.front();
  for (const Thread* other : at_barrier) {
    if (same_place(one.wait.site, other->wait.site)) continue;
    failure = "divergent barrier: thread " + std::to_string(one.rank) + " is in " + one.wait.operation + " at " + place(one.wait.site) +
              ", thread " + std::to_string(other->rank) + " in " + other->wait.operation + " at " + place(other->wait.site);
    return;
  }
  if (one.wait.combine != nullptr) {
    static void* payloads[kMaxThreads];
    std::fill_n(payloads, num_threads, nullptr);
    for (const Thread* thread : at_barrier) payloads[thread->rank] = thread->wait.payload;
    one.wait.combine(payloads, int(num_threads));
  }
  void* after = pass_on(points->barrier, by_last_to_come);
  for (Thread* thread : at_barrier) {
    thread->ordered_after = after;
    make_ready(*thread);
  }
  at_barrier.clear();
}

// Nobody can go on: threads that have ended may be all that the others wait for. False if they are not.
bool complete_without_the_ended() {
  if (!at_barrier.empty() && at_barrier.size() == num_alive) {
    complete_barrier(false);
    return true;
  }
  for (unsigned rank = 0; rank < num_threads; ++rank) {
    Thread& thread = *threads[rank];
    if (thread.state == State::waiting && thread.wait.operation != nullptr && thread.wait.mask != 0 && complete_warp(thread, false)) {
      return true;
    }
  }
  return false;
}

// One line for each place where threads wait.
std::string describe_deadlock() {
  std::string text = "threads wait for ever:";
  std::vector<const Thread*> shown;
  for (unsigned rank = 0; rank < num_threads; ++rank) {
    const Thread& thread = *threads[rank];
    if (thread.state != State::waiting || thread.wait.operation == nullptr) continue;
    const auto same = [&](const Thread* other) {
      return other->wait.operation == thread.wait.operation && other->wait.mask == thread.wait.mask &&
             same_place(other->wait.site, thread.wait.site);
    };
    if (std::any_of(shown.begin(), shown.end(), same)) continue;
    shown.push_back(&thread);
    char mask[32] = "";
    if (thread.wait.mask != 0) std::snprintf(mask, sizeof mask, " with mask %08x", thread.wait.mask);
    text +=
        "\n  thread " + std::to_string(rank) + " (first of its kind) in " + thread.wait.operation + mask + " at " + place(thread.wait.site);
  }
  text += "\n  " + std::to_string(num_threads - num_alive) + " of " + std::to_string(num_threads) + " threads have ended";
  return text;
}

void thread_main() {
  acquire(&launched);
  try {
    (*kernel_body)();
  } catch (const std::exception& exception) {
    failure = std::string("a thread threw: ") + exception.what();
  }
  release(&finished);
  Thread& self = *current;
  self.state = State::ended;
  --num_alive;
  warps[self.rank / kLanes].alive &= ~(1u << self.lane());
  drop_async_copies(self.rank);
  scheduler.enter(self.fiber, true);
}

void prepare_block() {
  {
    IgnoreAccesses ignore;
    points = std::make_unique<MeetingPoints>();
  }
  ready.clear();
  first_ready = 0;
  at_barrier.clear();
  num_alive = num_threads;
  for (unsigned rank = 0; rank < num_threads; ++rank) {
    Thread& thread = *threads[rank];
    Warp& warp = warps[rank / kLanes];
    if (thread.lane() == 0) warp.alive = warp.waiting = 0;
    warp.alive |= 1u << thread.lane();
    thread.index = {rank % blockDim.x, rank / blockDim.x % blockDim.y, rank / blockDim.x / blockDim.y};
    thread.fiber.prepare(thread_main, rank);
    drop_async_copies(rank);
    make_ready(thread);
  }
}

void run_block() {
  prepare_block();
  release(&launched);
  while (num_alive > 0 && failure.empty()) {
    Thread* next = take_ready();
    if (next == nullptr) {
      if (!complete_without_the_ended()) failure = describe_deadlock();
      continue;
    }
    current = next;
    threadIdx = next->index;
    next->fiber.enter(scheduler);
  }
}

std::vector<unsigned> order_of_blocks() {
  std::vector<unsigned> blocks(size_t(gridDim.x) * gridDim.y * gridDim.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (settings().order == ThreadOrder::reverse) std::reverse(blocks.begin(), blocks.end());
  if (settings().order == ThreadOrder::random) std::shuffle(blocks.begin(), blocks.end(), generator);
  return blocks;
}

}  // namespace

Settings& settings() {
  static Settings result = settings_of_environment();
  return result;
}

void run_grid(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = block;
  num_threads = block.x * block.y * block.z;
  kernel_body = &body;
  generator.seed(settings().seed);
  failure.clear();
  scheduler.adopt_caller();
  ready.reserve(2 * kMaxThreads);
  at_barrier.reserve(kMaxThreads);
  while (threads.size() < num_threads) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->rank = unsigned(threads.size() - 1);
  }
  for (const unsigned number : order_of_blocks()) {
    blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    take_shared_memory(dynamic_shared_bytes);
    run_block();
    give_back_shared_memory();
    if (!failure.empty()) throw Failure("block " + std::to_string(number) + ": " + failure);
  }
  acquire(&finished);
}

void meet_warp(const char* operation, unsigned mask, void* payload, Combine combine, Meeting kind, Site site) {
  Thread& self = *current;
  if ((mask >> self.lane() & 1) == 0) fail(std::string(operation) + ": the calling lane is not in its mask", site);
  self.wait = {operation, mask, payload, combine, kind, site};
  if (kind == Meeting::barrier) release(&points->warps[self.rank / kLanes].arrived);
  warps[self.rank / kLanes].waiting |= 1u << self.lane();
  if (!complete_warp(self, true)) {
    wait_here();
  } else if (settings().order != ThreadOrder::forward) {
    make_ready(self);  // or the last to come would always be the first to go on
    leave();
  }
  if (kind == Meeting::barrier) acquire(self.ordered_after);
}

void meet_block(const char* operation, void* payload, Combine combine, Site site) {
  Thread& self = *current;
  self.wait = {operation, 0, payload, combine, Meeting::barrier, site};
  self.state = State::waiting;
  release(&points->barrier.arrived);
  at_barrier.push_back(&self);
  if (at_barrier.size() == num_alive) complete_barrier(true);
  leave();
  acquire(self.ordered_after);
}

void maybe_let_others_run() {
  if (current == nullptr || settings().order != ThreadOrder::random || generator() % 8 != 0) return;
  make_ready(*current);
  leave();
}

unsigned lane_id() { return current->lane(); }
unsigned thread_rank() { return current->rank; }
uint64_t random_number() { return generator(); }

void fail(const std::string& what, Site site) {
  IgnoreAccesses ignore;
  if (failure.empty()) failure = what + ", thread " + std::to_string(current->rank) + " at " + place(site);
  current->wait.operation = nullptr;
  wait_here();
  std::abort();  // a launch that failed is not gone on with
}

}  // namespace quorum::emulation
