// Caches of a batch copied into pages that lie in no order, with NaN in every row that no table names.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "quorum/core/paged_kv_view.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/random.hpp"

namespace quorum::test {

struct PoolSpec {
  int page_size = 16;
  Layout layout = Layout::nhd;  // within a page; interleaved: its keys, then its values
  bool by_table = false;        // rows of pages_per_sequence as in vLLM; otherwise compressed rows with last_page_len as in FlashInfer
  int shared_tokens = 0;        // sequences with more tokens than these share the pages that they fill
};

class PagedPool {
 public:
  // caches: of one element type, with the same scales. Caller: sequences that share pages have the same rows there.
  PagedPool(const PoolSpec& spec, int num_kv_heads, int head_dim, std::span<const KvCacheView> caches)
      : spec_(spec), num_kv_heads_(num_kv_heads), first_(caches[0]), row_bytes_(row_bytes(caches[0].type, head_dim)) {
    deal_pages(caches);
    keys_.assign(size_t(pages_.size()) * size_t(page_bytes()), std::byte(0xff));
    values_ = keys_;
    for (size_t s = 0; s < caches.size(); ++s)
      for (int t = 0; t < caches[s].num_tokens; ++t)
        for (int h = 0; h < num_kv_heads; ++h) {
          const auto place = view().place(int(s), t);
          std::memcpy(const_cast<std::byte*>(view().key_row(place, h)), caches[s].key_row(t, h), size_t(row_bytes_));
          std::memcpy(const_cast<std::byte*>(view().value_row(place, h)), caches[s].value_row(t, h), size_t(row_bytes_));
        }
  }

  PagedKvView view() const {
    const bool by_token = spec_.layout != Layout::hnd, together = spec_.layout == Layout::interleaved;
    PagedKvView view;
    view.keys = keys_.data();
    view.values = together ? keys_.data() + page_bytes() / 2 : values_.data();
    view.type = first_.type;
    view.key_scales = first_.key_scales;
    view.value_scales = first_.value_scales;
    view.key_page_stride = view.value_page_stride = page_bytes();
    view.key_token_stride = view.value_token_stride = int64_t(row_bytes_) * (by_token ? num_kv_heads_ : 1);
    view.key_head_stride = view.value_head_stride = int64_t(row_bytes_) * (by_token ? 1 : spec_.page_size);
    view.num_tokens = num_tokens_.data();
    view.page_indices = indices_.data();
    view.page_indptr = spec_.by_table ? nullptr : indptr_.data();
    view.pages_per_sequence = spec_.by_table ? pages_per_sequence_ : 0;
    view.page_size = spec_.page_size;
    return view;
  }
  std::vector<KvCacheView> sequences() const {
    std::vector<KvCacheView> out;
    for (size_t s = 0; s < num_tokens_.size(); ++s) out.push_back(view().sequence(int(s)));
    return out;
  }

 private:
  int64_t page_bytes() const {
    return int64_t(spec_.page_size) * num_kv_heads_ * row_bytes_ * (spec_.layout == Layout::interleaved ? 2 : 1);
  }

  void deal_pages(std::span<const KvCacheView> caches) {
    const auto pages_of = [&](int tokens) { return int(ceil_div(tokens, spec_.page_size)); };
    int total = 0;
    for (const KvCacheView& cache : caches) {
      total += pages_of(cache.num_tokens);
      pages_per_sequence_ = std::max(pages_per_sequence_, pages_of(cache.num_tokens));
    }
    pages_.resize(size_t(2 * total + 1));  // every other one is not used
    std::iota(pages_.begin(), pages_.end(), 0);
    Random random(uint64_t(spec_.page_size));
    for (size_t i = pages_.size() - 1; i > 0; --i) std::swap(pages_[i], pages_[size_t(random.below(int(i) + 1))]);
    const int shared = spec_.shared_tokens / spec_.page_size;
    int next = shared;
    std::vector<int32_t> last_page_len;
    for (const KvCacheView& cache : caches) {
      const int count = pages_of(cache.num_tokens);
      for (int i = 0; i < count; ++i)
        indices_.push_back(cache.num_tokens > spec_.shared_tokens && i < shared ? pages_[size_t(i)] : pages_[size_t(next++)]);
      if (spec_.by_table) indices_.resize(indices_.size() + size_t(pages_per_sequence_ - count), -1);
      indptr_.push_back(indptr_.back() + count);
      last_page_len.push_back(cache.num_tokens - std::max(0, count - 1) * spec_.page_size);
      num_tokens_.push_back(cache.num_tokens);
    }
    if (!spec_.by_table) count_tokens(indptr_.data(), last_page_len.data(), spec_.page_size, int(caches.size()), num_tokens_.data());
  }

  PoolSpec spec_;
  int num_kv_heads_;
  KvCacheView first_;  // whose type and scales all have
  int row_bytes_;
  int pages_per_sequence_ = 0;
  std::vector<int32_t> pages_, indices_, indptr_ = {0}, num_tokens_;
  std::vector<std::byte> keys_, values_;
};

}  // namespace quorum::test
