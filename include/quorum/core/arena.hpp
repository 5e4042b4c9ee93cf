// Arrays out of one block of memory, on whichever side it lies.
#pragma once

#include "quorum/core/config.hpp"

namespace quorum {

// Hands out aligned arrays from one block. Without a block it only counts, so that layout and size come from the same code.
class Arena {
 public:
  // alignment: of every array, if the block has it: a cache line on the host, 256 bytes on a GPU.
  explicit Arena(std::byte* block = nullptr, int64_t alignment = 64) : block_(block), alignment_(alignment) {}

  template <class T>
  T* take(int64_t count) {
    T* pointer = block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + used_);
    used_ += round_up(count * int64_t(sizeof(T)), alignment_);
    return pointer;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* block_;
  int64_t alignment_;
  int64_t used_ = 0;
};

}  // namespace quorum
