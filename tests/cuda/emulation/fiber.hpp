// A stack of its own that can be left and entered again: what a CUDA thread runs on.
#pragma once

#include <cstddef>

namespace quorum::emulation {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes this the fiber of the calling OS thread, which already has a stack.
  void adopt_caller();
  // The next enter() calls function() on a clean stack. The function leaves for good through enter(..., true) of another fiber.
  // `number` shifts the top of the stack, so that the tops of a thousand stacks do not share one set of the first-level cache.
  void prepare(void (*function)(), unsigned number);
  // Leaves `from`, which is running, and goes on here. Returns when `from` is entered again.
  void enter(Fiber& from, bool from_ends = false);

 private:
  static void start();

  void* stack_pointer_ = nullptr;  // where it was left
  char* stack_ = nullptr;
  void* fake_stack_ = nullptr;  // of the address sanitizer
  void* thread_ = nullptr;      // of the thread sanitizer
  void (*function_)() = nullptr;
};

}  // namespace quorum::emulation
