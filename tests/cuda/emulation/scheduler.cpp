#include "tests/cuda/emulation/scheduler.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
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

constexpr unsigned kLanes = 32, kMaxWarps = kMaxThreads / kLanes;

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
  unsigned number = 0;           // in the team
  unsigned block = 0, rank = 0;  // its block in the team, its own rank in the block
  State state = State::ended;
  Wait wait;
  void* ordered_after = nullptr;  // what it acquires when its wait is over
  unsigned lane() const { return rank % kLanes; }
  unsigned warp() const { return block * kMaxWarps + rank / kLanes; }  // in the team
};

// Objects for the thread sanitizer. Allocated anew for each team: an object that lasted would order one block after another, and races
// between blocks would go unseen. Who arrives releases `arrived`; the last one passes that on through `passed`, so that a thread that
// is already on its way to the next meeting orders nothing for one that has yet to leave this one.
struct MeetingPoint {
  char arrived = 0;
  char passed[4] = {};
  unsigned count = 0;
};

struct MeetingPoints {
  MeetingPoint team, blocks[kMaxTeamBlocks], warps[kMaxTeamBlocks * kMaxWarps];
};

struct Warp {
  unsigned alive = 0, waiting = 0;  // a bit per lane
};

// Threads that meet at a barrier: a block's, or those of all blocks of a team.
struct Group {
  std::vector<Thread*> at_barrier;
  unsigned num_alive = 0;
};

Fiber scheduler;
std::vector<std::unique_ptr<Thread>> threads;
std::vector<unsigned> ready;  // numbers of the threads that can go on; those before first_ready have gone
size_t first_ready = 0;
Warp warps[kMaxTeamBlocks * kMaxWarps];
Group team, blocks[kMaxTeamBlocks];
uint3 block_index[kMaxTeamBlocks];
bool block_started[kMaxTeamBlocks];
std::unique_ptr<MeetingPoints> points;
char launched, finished;  // objects for the thread sanitizer: the host before and after a launch
Thread* current = nullptr;
unsigned num_blocks = 1, num_threads = 0;  // of the team, of a block
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

std::string name(const Thread& thread) {
  return "thread " + std::to_string(thread.rank) + (num_blocks > 1 ? " of block " + std::to_string(thread.block) : "");
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
  ready.push_back(thread.number);
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
  Warp& warp = warps[thread.warp()];
  const Wait wait = thread.wait;
  const unsigned lanes = wait.mask & warp.alive, first = thread.number - thread.lane();
  if ((warp.waiting & lanes) != lanes || (wait.kind == Meeting::matrix && lanes != wait.mask)) return false;
  void* payloads[kLanes] = {};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    const Thread& other = *threads[first + lane];
    if (!same_operation(other.wait, wait)) return false;
    payloads[lane] = other.wait.payload;
  }
  if (wait.combine != nullptr) wait.combine(payloads, kLanes);
  void* after = wait.kind == Meeting::barrier ? pass_on(points->warps[thread.warp()], by_last_to_come) : nullptr;
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

MeetingPoint& point_of(const Group& group) { return &group == &team ? points->team : points->blocks[&group - blocks]; }

void complete_barrier(Group& group, bool by_last_to_come) {
  const Thread& one = *group.at_barrier.front();
  for (const Thread* other : group.at_barrier) {
    if (same_place(one.wait.site, other->wait.site)) continue;
    failure = "divergent barrier: " + name(one) + " is in " + one.wait.operation + " at " + place(one.wait.site) + ", " + name(*other) +
              " in " + other->wait.operation + " at " + place(other->wait.site);
    return;
  }
  if (one.wait.combine != nullptr) {
    static void* payloads[kMaxThreads];
    std::fill_n(payloads, num_threads, nullptr);
    for (const Thread* thread : group.at_barrier) payloads[thread->rank] = thread->wait.payload;
    one.wait.combine(payloads, int(num_threads));
  }
  void* after = pass_on(point_of(group), by_last_to_come);
  for (Thread* thread : group.at_barrier) {
    thread->ordered_after = after;
    make_ready(*thread);
  }
  group.at_barrier.clear();
}

bool complete_without_the_ended(Group& group) {
  if (group.at_barrier.empty() || group.at_barrier.size() != group.num_alive) return false;
  complete_barrier(group, false);
  return true;
}

void meet(Group& group, const Wait& wait) {
  Thread& self = *current;
  self.wait = wait;
  self.state = State::waiting;
  release(&point_of(group).arrived);
  group.at_barrier.push_back(&self);
  if (group.at_barrier.size() == group.num_alive) complete_barrier(group, true);
  leave();
  acquire(self.ordered_after);
}

// Nobody can go on: threads that have ended may be all that the others wait for. False if they are not.
bool complete_without_the_ended() {
  for (unsigned block = 0; block < num_blocks; ++block)
    if (complete_without_the_ended(blocks[block])) return true;
  if (complete_without_the_ended(team)) return true;
  for (unsigned number = 0; number < num_blocks * num_threads; ++number) {
    Thread& thread = *threads[number];
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
  for (unsigned number = 0; number < num_blocks * num_threads; ++number) {
    const Thread& thread = *threads[number];
    if (thread.state != State::waiting || thread.wait.operation == nullptr) continue;
    const auto same = [&](const Thread* other) {
      return other->wait.operation == thread.wait.operation && other->wait.mask == thread.wait.mask &&
             same_place(other->wait.site, thread.wait.site);
    };
    if (std::any_of(shown.begin(), shown.end(), same)) continue;
    shown.push_back(&thread);
    char mask[32] = "";
    if (thread.wait.mask != 0) std::snprintf(mask, sizeof mask, " with mask %08x", thread.wait.mask);
    text += "\n  " + name(thread) + " (first of its kind) in " + thread.wait.operation + mask + " at " + place(thread.wait.site);
  }
  const unsigned all = num_blocks * num_threads;
  text += "\n  " + std::to_string(all - team.num_alive) + " of " + std::to_string(all) + " threads have ended";
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
  --team.num_alive;
  warps[self.warp()].alive &= ~(1u << self.lane());
  drop_async_copies(self.number);
  if (--blocks[self.block].num_alive == 0) give_back_shared_memory(self.block);
  scheduler.enter(self.fiber, true);
}

void prepare_team() {
  {
    IgnoreAccesses ignore;
    points = std::make_unique<MeetingPoints>();
  }
  ready.clear();
  first_ready = 0;
  team.at_barrier.clear();
  team.num_alive = num_blocks * num_threads;
  for (unsigned block = 0; block < num_blocks; ++block) {
    blocks[block].at_barrier.clear();
    blocks[block].num_alive = num_threads;
    block_started[block] = false;
  }
  std::fill_n(warps, num_blocks * kMaxWarps, Warp{});
  for (unsigned number = 0; number < team.num_alive; ++number) {
    Thread& thread = *threads[number];
    const unsigned rank = number % num_threads;
    thread.block = number / num_threads;
    thread.rank = rank;
    warps[thread.warp()].alive |= 1u << thread.lane();
    thread.index = {rank % blockDim.x, rank / blockDim.x % blockDim.y, rank / blockDim.x / blockDim.y};
    thread.fiber.prepare(thread_main, number);
    drop_async_copies(number);
    make_ready(thread);
  }
}

void run_team() {
  prepare_team();
  release(&launched);
  while (team.num_alive > 0 && failure.empty()) {
    Thread* next = take_ready();
    if (next == nullptr) {
      if (!complete_without_the_ended()) failure = describe_deadlock();
      continue;
    }
    current = next;
    threadIdx = next->index;
    blockIdx = block_index[next->block];
    block_started[next->block] = true;
    next->fiber.enter(scheduler);
  }
}

std::vector<unsigned> order_of_teams() {
  std::vector<unsigned> teams(size_t(gridDim.x) / num_blocks * gridDim.y * gridDim.z);
  std::iota(teams.begin(), teams.end(), 0);
  if (settings().order == ThreadOrder::reverse) std::reverse(teams.begin(), teams.end());
  if (settings().order == ThreadOrder::random) std::shuffle(teams.begin(), teams.end(), generator);
  return teams;
}

}  // namespace

Settings& settings() {
  static Settings result = settings_of_environment();
  return result;
}

void run_grid(dim3 grid, dim3 block, unsigned team_blocks, size_t dynamic_shared_bytes, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = block;
  num_blocks = team_blocks;
  num_threads = block.x * block.y * block.z;
  kernel_body = &body;
  generator.seed(settings().seed);
  failure.clear();
  scheduler.adopt_caller();
  ready.reserve(2 * num_blocks * kMaxThreads);
  team.at_barrier.reserve(num_blocks * kMaxThreads);
  for (Group& group : blocks) group.at_barrier.reserve(kMaxThreads);
  while (threads.size() < num_blocks * num_threads) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->number = unsigned(threads.size() - 1);
  }
  for (const unsigned first : order_of_teams()) {
    for (unsigned i = 0; i < num_blocks; ++i) {
      const unsigned number = first * num_blocks + i;
      block_index[i] = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
      take_shared_memory(i, dynamic_shared_bytes);
    }
    run_team();
    if (failure.empty()) continue;
    for (unsigned i = 0; i < num_blocks; ++i)
      if (blocks[i].num_alive > 0) give_back_shared_memory(i);
    throw Failure("block " + std::to_string(first * num_blocks) + ": " + failure);
  }
  acquire(&finished);
}

void meet_warp(const char* operation, unsigned mask, void* payload, Combine combine, Meeting kind, Site site) {
  Thread& self = *current;
  if ((mask >> self.lane() & 1) == 0) fail(std::string(operation) + ": the calling lane is not in its mask", site);
  self.wait = {operation, mask, payload, combine, kind, site};
  if (kind == Meeting::barrier) release(&points->warps[self.warp()].arrived);
  warps[self.warp()].waiting |= 1u << self.lane();
  if (!complete_warp(self, true)) {
    wait_here();
  } else if (settings().order != ThreadOrder::forward) {
    make_ready(self);  // or the last to come would always be the first to go on
    leave();
  }
  if (kind == Meeting::barrier) acquire(self.ordered_after);
}

void meet_block(const char* operation, void* payload, Combine combine, Site site) {
  meet(blocks[current->block], {operation, 0, payload, combine, Meeting::barrier, site});
}

void meet_team(const char* operation, Site site) { meet(team, {operation, 0, nullptr, nullptr, Meeting::barrier, site}); }

void maybe_let_others_run() {
  if (current == nullptr || settings().order != ThreadOrder::random || generator() % 8 != 0) return;
  make_ready(*current);
  leave();
}

unsigned lane_id() { return current->lane(); }
unsigned thread_number() { return current->number; }
unsigned block_rank() { return current->block; }
unsigned team_blocks() { return num_blocks; }

void check_neighbour(unsigned rank, Site site) {
  if (rank >= num_blocks) fail("the team has no block " + std::to_string(rank), site);
  if (!block_started[rank]) fail("block " + std::to_string(rank) + " of the team may not have started", site);
  if (blocks[rank].num_alive == 0) fail("block " + std::to_string(rank) + " of the team has ended", site);
}

uint64_t random_number() { return generator(); }

void fail(std::string what, Site site) {
  IgnoreAccesses ignore;
  if (failure.empty()) failure = std::move(what) + ", " + name(*current) + " at " + place(site);
  current->wait.operation = nullptr;
  wait_here();   // for good: what lives on this stack is not destroyed
  std::abort();  // a launch that failed is not gone on with
}

}  // namespace quorum::emulation
