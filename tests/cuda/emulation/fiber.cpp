#include "tests/cuda/emulation/fiber.hpp"

#include <sys/mman.h>

#include <deque>
#include <new>

#include "tests/cuda/emulation/sanitizers.hpp"

#if defined(__x86_64__)
// Pushes what a callee must preserve, changes stacks, pops it: ten times faster than swapcontext, which asks the kernel for signal masks.
extern "C" void quorum_emulation_switch(void** saved_stack_pointer, void* stack_pointer);
asm(R"(
.text
.globl quorum_emulation_switch
.type quorum_emulation_switch,@function
quorum_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size quorum_emulation_switch, .-quorum_emulation_switch
)");
#else
#include <ucontext.h>
#endif

namespace quorum::emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 64 << 10;

Fiber* entered = nullptr;  // what was entered last; start() finds its function there

#if defined(__SANITIZE_ADDRESS__)
// The stack of the OS thread: fibers are entered from it and leave to it, never to one another.
const void* caller_stack = nullptr;
size_t caller_stack_bytes = 0;
#endif

#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
// The sanitizer gives the number of a thread that is gone to a new one, and then takes what the old one did for ordered before whoever
// meets the new one. So threads stay for a while, a few blocks long: within these it sees the races between blocks.
void retire(void* thread) {
  constexpr size_t kMostRetired = 512;
  static std::deque<void*> retired;
  retired.push_back(thread);
  if (retired.size() <= kMostRetired) return;
  __tsan_destroy_fiber(retired.front());
  retired.pop_front();
}
#endif

char* map_stack(void* at, size_t bytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at != nullptr ? MAP_FIXED : 0);
  void* memory = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

}  // namespace

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_ - kGuardBytes, kStackBytes + kGuardBytes);
}

void Fiber::adopt_caller() {
#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
  thread_ = __tsan_get_current_fiber();
#endif
#if !defined(__x86_64__)
  if (stack_pointer_ == nullptr) stack_pointer_ = new ucontext_t;
#endif
}

void Fiber::prepare(void (*function)(), unsigned number) {
  function_ = function;
  if (stack_ == nullptr) {
    char* memory = map_stack(nullptr, kStackBytes + kGuardBytes);
    mprotect(memory, kGuardBytes, PROT_NONE);
    stack_ = memory + kGuardBytes;
  } else if (kThreadSanitizer) {
    map_stack(stack_, kStackBytes);  // forgets who wrote what on this stack: the next thread on it is not ordered after the last
  }
#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
  if (thread_ != nullptr) retire(thread_);
  thread_ = __tsan_create_fiber(0);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
  fake_stack_ = nullptr;
#endif
  const size_t top = kStackBytes - number * 320 % 8192 / 64 * 64;
#if defined(__x86_64__)
  void** frame = reinterpret_cast<void**>(stack_ + top);
  *--frame = nullptr;  // where start() would return to
  *--frame = reinterpret_cast<void*>(&Fiber::start);
  for (int preserved = 0; preserved < 6; ++preserved) *--frame = nullptr;
  stack_pointer_ = frame;
#else
  if (stack_pointer_ == nullptr) stack_pointer_ = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(stack_pointer_);
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = top;
  context->uc_link = nullptr;
  makecontext(context, &Fiber::start, 0);
#endif
}

void Fiber::enter(Fiber& from, [[maybe_unused]] bool from_ends) {
  entered = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack_, stack_ != nullptr ? stack_ : caller_stack,
                                 stack_ != nullptr ? kStackBytes : caller_stack_bytes);
#endif
#if defined(QUORUM_EMULATION_THREAD_SANITIZER)
  __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  quorum_emulation_switch(&from.stack_pointer_, stack_pointer_);
#else
  swapcontext(static_cast<ucontext_t*>(from.stack_pointer_), static_cast<ucontext_t*>(stack_pointer_));
#endif
#if defined(__SANITIZE_ADDRESS__)
  const bool came_from_caller = from.stack_ != nullptr;
  __sanitizer_finish_switch_fiber(from.fake_stack_, came_from_caller ? &caller_stack : nullptr,
                                  came_from_caller ? &caller_stack_bytes : nullptr);
#endif
}

void Fiber::start() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &caller_stack, &caller_stack_bytes);
#endif
  entered->function_();
}

}  // namespace quorum::emulation
