#include "tests/cuda/emulation/block.hpp"

#include "tests/cuda/emulation/sanitizers.hpp"

namespace quorum::emulation {
namespace {

char fenced;  // object for the thread sanitizer

void add_up(void** payloads, int count) {
  int sum = 0;
  for (int thread = 0; thread < count; ++thread) {
    if (payloads[thread] != nullptr) sum += *static_cast<const int*>(payloads[thread]);
  }
  for (int thread = 0; thread < count; ++thread) {
    if (payloads[thread] != nullptr) *static_cast<int*>(payloads[thread]) = sum;
  }
}

}  // namespace

int count_at_barrier(const char* operation, int predicate, Site site) {
  meet_block(operation, &predicate, add_up, site);
  return predicate;
}

void fence() {
  release(&fenced);
  acquire(&fenced);
}

}  // namespace quorum::emulation
