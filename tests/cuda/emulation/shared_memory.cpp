#include "tests/cuda/emulation/shared_memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "tests/cuda/emulation/sanitizers.hpp"

namespace quorum::emulation {
namespace {

struct Variable {
  const void* key;
  void* memory;
};
std::vector<Variable> variables;
void* dynamic_memory = nullptr;

void* allocate_poisoned(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return memory;
}

}  // namespace

void take_shared_memory(size_t dynamic_bytes) {
  IgnoreAccesses ignore;
  dynamic_memory = allocate_poisoned(dynamic_bytes, 128);
}

void give_back_shared_memory() {
  IgnoreAccesses ignore;
  for (const Variable& variable : variables) std::free(variable.memory);
  variables.clear();
  std::free(dynamic_memory);
}

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  for (const Variable& variable : variables) {
    if (variable.key == key) return variable.memory;
  }
  IgnoreAccesses ignore;
  variables.push_back({key, allocate_poisoned(bytes, alignment < sizeof(void*) ? sizeof(void*) : alignment)});
  return variables.back().memory;
}

void* dynamic_shared() { return dynamic_memory; }

}  // namespace quorum::emulation
