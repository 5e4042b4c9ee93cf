#include "tests/cuda/emulation/async_copy.hpp"

#include <cstdint>
#include <vector>

#include "tests/cuda/emulation/sanitizers.hpp"
#include "tests/cuda/emulation/scheduler.hpp"

namespace quorum::emulation {
namespace {

// What one thread has under way.
struct Queue {
  std::vector<AsyncCopy> copies;
  std::vector<size_t> group_ends;  // how many of `copies` the committed groups hold, first group first
  size_t done = 0;                 // of `copies`
  void clear() {
    copies.clear();
    group_ends.clear();
    done = 0;
  }
};
std::vector<Queue> queues(kMaxTeamThreads);

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool issue_async_copy(const AsyncCopy& copy, std::source_location site) {
  if (!aligned(copy.shared) || (copy.valid && !aligned(copy.global))) fail("cp.async: an address is not a multiple of 16", site);
  const AsyncCopyTime time = settings().async_copies;
  if (time == AsyncCopyTime::at_issue || (time == AsyncCopyTime::random && random_number() % 2 == 0)) return true;
  IgnoreAccesses ignore;
  queues[thread_number()].copies.push_back(copy);
  return false;
}

void commit_async_copies() {
  IgnoreAccesses ignore;
  Queue& queue = queues[thread_number()];
  queue.group_ends.push_back(queue.copies.size());
}

bool take_due_async_copy(int pending, AsyncCopy& copy) {
  Queue& queue = queues[thread_number()];
  if (queue.group_ends.size() <= size_t(pending)) return false;
  const size_t due = queue.group_ends[queue.group_ends.size() - 1 - size_t(pending)];
  if (queue.done < due) {
    copy = queue.copies[queue.done++];
    return true;
  }
  if (pending == 0 && queue.done == queue.copies.size()) queue.clear();  // or the queue would grow with the length of the loop
  return false;
}

void drop_async_copies(unsigned thread) { queues[thread].clear(); }

}  // namespace quorum::emulation
