#include "tests/cuda/emulation/shared_memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "tests/cuda/emulation/sanitizers.hpp"
#include "tests/cuda/emulation/scheduler.hpp"

namespace quorum::emulation {
namespace {

struct Variable {
  const void* key;  // null: the dynamic memory, which comes first
  void* memory;
  size_t bytes, alignment;
};
std::vector<Variable> variables[kMaxTeamBlocks];

void* allocate_poisoned(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return memory;
}

void* variable_of(unsigned block, const void* key, size_t bytes, size_t alignment) {
  for (const Variable& variable : variables[block]) {
    if (variable.key == key) return variable.memory;
  }
  IgnoreAccesses ignore;
  variables[block].push_back({key, allocate_poisoned(bytes, alignment), bytes, alignment});
  return variables[block].back().memory;
}

}  // namespace

void take_shared_memory(unsigned block, size_t dynamic_bytes) {
  IgnoreAccesses ignore;
  variables[block].push_back({nullptr, allocate_poisoned(dynamic_bytes, 128), dynamic_bytes, 128});
}

void give_back_shared_memory(unsigned block) {
  IgnoreAccesses ignore;
  for (const Variable& variable : variables[block]) std::free(variable.memory);
  variables[block].clear();
}

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  return variable_of(block_rank(), key, bytes, alignment < sizeof(void*) ? sizeof(void*) : alignment);
}

void* dynamic_shared() { return variables[block_rank()].front().memory; }

void* shared_of_block(void* own, unsigned block, std::source_location site) {
  check_neighbour(block, site);
  for (const Variable& variable : variables[block_rank()]) {
    const std::ptrdiff_t offset = static_cast<char*>(own) - static_cast<char*>(variable.memory);
    if (offset < 0 || offset >= std::ptrdiff_t(variable.bytes)) continue;
    return static_cast<char*>(variable_of(block, variable.key, variable.bytes, variable.alignment)) + offset;
  }
  fail("an address that is not in the block's shared memory", site);
}

}  // namespace quorum::emulation
