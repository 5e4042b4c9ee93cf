// Memory for caches that are timed: on huge pages and touched, as an engine holds them; never the pages of a mapped file.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/shape.hpp"
#include "quorum/cpu/aligned_vector.hpp"

namespace quorum::bench {

// Zeroed memory on huge pages where the system grants them, touched before use: a first touch costs more than a read.
class HugeBlock {
 public:
  explicit HugeBlock(size_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    advise_huge_pages(data_, bytes);
    std::memset(data_, 0, bytes);
  }
  ~HugeBlock() { munmap(data_, bytes_); }
  HugeBlock(const HugeBlock&) = delete;
  HugeBlock& operator=(const HugeBlock&) = delete;

  template <class T>
  T* as() {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  size_t bytes_;
};

// The same contiguous keys and values in other memory, which `owner` keeps.
inline KvCacheView copy_cache(KvCacheView kv, const AttentionShape& shape, std::vector<std::shared_ptr<void>>& owner) {
  const size_t bytes = size_t(kv.num_tokens) * size_t(shape.num_kv_heads * row_bytes(kv.type, shape.head_dim));
  for (const std::byte** side : {&kv.keys, &kv.values}) {
    auto block = std::make_shared<HugeBlock>(bytes);
    std::memcpy(block->as<std::byte>(), *side, bytes);
    *side = block->as<std::byte>();
    owner.push_back(block);
  }
  return kv;
}

}  // namespace quorum::bench
