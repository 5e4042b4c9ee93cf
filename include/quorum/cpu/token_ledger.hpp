// Which tokens of a sequence live, and which of them no cluster holds, in the order in which they were written.
#pragma once

#include <algorithm>
#include <vector>

#include "quorum/core/cluster_index_view.hpp"

namespace quorum::cpu {

// Tokens [begin, end).
struct TokenRange {
  int begin = 0, end = 0;
  bool contains(int token) const { return token >= begin && token < end; }
  bool overlaps(TokenRange other) const { return begin < other.end && other.begin < end; }
};

// The books of an index. A live token is listed here or in a cluster; which cluster, the segments know.
//
// Sinks are the first tokens that were written: a token becomes one while nothing but sinks lives and there are fewer than max_sinks.
class TokenLedger {
 public:
  explicit TokenLedger(int max_sinks = 0) : max_sinks_(max_sinks) {}

  int num_tokens() const { return num_tokens_; }
  int num_live() const { return num_live_; }
  int num_sinks() const { return num_sinks_; }
  int num_waiting() const { return int(listed_.size()) - num_sinks_; }
  bool lives(int token) const { return live_.empty() || (live_[size_t(token) / 64] >> (token % 64) & 1) != 0; }
  AlwaysRead always() const { return {listed_.data(), int(listed_.size()), num_tokens_}; }
  // See ClusterIndexView::live.
  const uint64_t* live() const { return live_.empty() ? nullptr : live_.data(); }

  // The `count` tokens that have waited longest, ascending.
  std::vector<int32_t> oldest_waiting(int count) const {
    std::vector<int32_t> tokens(listed_.begin() + num_sinks_, listed_.begin() + num_sinks_ + count);
    std::sort(tokens.begin(), tokens.end());
    return tokens;
  }

  // Tokens [num_tokens, end) have been written.
  void append(int end) {
    const int begin = num_tokens_;
    num_tokens_ = end;
    if (!live_.empty()) live_.resize(num_words());
    for (int t = begin; t < end; ++t) list_written(t);
  }
  // Tokens of the range have been written again, or for the first time since they were erased. Clusters must not hold them.
  void overwrite(TokenRange range) {
    unlist(range);
    for (int t = range.begin; t < range.end; ++t) num_live_ -= lives(t) ? 1 : 0;
    for (int t = range.begin; t < range.end; ++t) list_written(t);
    drop_full_map();
  }
  // Tokens of the range are no more. Clusters must not hold them.
  void erase(TokenRange range) {
    if (range.begin >= range.end) return;
    unlist(range);
    if (live_.empty()) {
      live_.assign(num_words(), ~uint64_t{0});
      if (num_tokens_ % 64 != 0) live_.back() = (uint64_t{1} << (num_tokens_ % 64)) - 1;
    }
    for (int t = range.begin; t < range.end; ++t) {
      num_live_ -= lives(t) ? 1 : 0;
      live_[size_t(t) / 64] &= ~(uint64_t{1} << (t % 64));
    }
  }
  // Tokens from `end` on are no more, and their numbers are free again.
  void truncate(int end) {
    erase({end, num_tokens_});
    num_tokens_ = end;
    if (!live_.empty()) live_.erase(live_.begin() + std::ptrdiff_t(num_words()), live_.end());
    drop_full_map();
  }
  // Waiting tokens that clusters hold from now on, ascending.
  void take(const std::vector<int32_t>& tokens) {
    std::erase_if(listed_, [&](int32_t t) { return std::binary_search(tokens.begin(), tokens.end(), t); });
  }
  // The reverse: they wait again, as the oldest.
  void put_back(const std::vector<int32_t>& tokens) {
    listed_.insert(listed_.begin() + num_sinks_, tokens.begin(), tokens.end());
    std::sort(listed_.begin() + num_sinks_, listed_.begin() + num_sinks_ + std::ptrdiff_t(tokens.size()));
  }
  // As it was saved. listed: live tokens. live: empty, or a bit for each token.
  void restore(int num_tokens, int num_sinks, std::vector<int32_t> listed, std::vector<uint64_t> live) {
    num_tokens_ = num_tokens;
    num_sinks_ = num_sinks;
    listed_ = std::move(listed);
    live_ = std::move(live);
    num_live_ = 0;
    for (int t = 0; t < num_tokens; ++t) num_live_ += lives(t) ? 1 : 0;
  }

 private:
  size_t num_words() const { return size_t(ceil_div(num_tokens_, 64)); }

  void list_written(int token) {
    if (num_live_ == num_sinks_ && num_sinks_ < max_sinks_) {
      listed_.insert(listed_.begin() + num_sinks_++, token);
    } else {
      listed_.push_back(token);
    }
    ++num_live_;
    if (!live_.empty()) live_[size_t(token) / 64] |= uint64_t{1} << (token % 64);
  }
  void unlist(TokenRange range) {
    num_sinks_ -= int(std::count_if(listed_.begin(), listed_.begin() + num_sinks_, [&](int32_t t) { return range.contains(t); }));
    std::erase_if(listed_, [&](int32_t t) { return range.contains(t); });
  }
  // Without a hole there is nothing to look up.
  void drop_full_map() {
    if (num_live_ == num_tokens_) live_ = {};
  }

  int max_sinks_;
  int num_tokens_ = 0, num_live_ = 0, num_sinks_ = 0;
  std::vector<int32_t> listed_;  // sinks, then those that wait, each in the order of writing
  std::vector<uint64_t> live_;   // empty while all tokens live
};

}  // namespace quorum::cpu
