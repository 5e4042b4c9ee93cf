// Keeps the index of one layer and stream in step with an engine's cache, by looking at the cache alone. Knows nothing of ggml.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"

namespace quorum_ggml {

// A sample of a prompt's queries: what the index needs to know which directions matter. Memory: kRows rows of f16.
class QuerySample {
 public:
  static constexpr int kRows = 256;
  static constexpr int kEvery = 8;  // rows of a prompt that one of the sample stands for

  QuerySample(int num_qo_heads, int head_dim) : num_qo_heads_(num_qo_heads), head_dim_(head_dim) {}

  // Takes every kEvery-th row; once the sample is full, the newest take the place of the oldest.
  void add(const quorum::QueryView& queries) {
    for (int row = 0; row < queries.num_rows; row += kEvery) {
      if (num_rows_ < kRows) rows_.resize(size_t(++num_rows_) * size_t(num_qo_heads_) * size_t(head_dim_));
      quorum::f16* out = rows_.data() + size_t(next_) * size_t(num_qo_heads_) * size_t(head_dim_);
      for (int head = 0; head < num_qo_heads_; ++head, out += head_dim_) {
        const auto* in = reinterpret_cast<const float*>(queries.row(row, head));
        for (int i = 0; i < head_dim_; ++i) out[i] = quorum::from_float<quorum::f16>(in[i]);
      }
      next_ = (next_ + 1) % kRows;
    }
  }
  quorum::QueryView view() const { return quorum::QueryView::contiguous(rows_.data(), num_rows_, num_qo_heads_, head_dim_); }

 private:
  int num_qo_heads_, head_dim_;
  int num_rows_ = 0, next_ = 0;
  std::vector<quorum::f16> rows_;  // [num_rows][num_qo_heads][head_dim]
};

// How much of the cache is compared with what it held before.
enum class Check : uint8_t {
  some,  // the newest cells and a part of the others, another one each time
  all,
};

// A token is a cell: its number is the row of the cache. The engine says neither which cells it writes nor when it frees, rotates or
// restores some; but a key that changes changes its bits. So eight bytes of every key are remembered and compared.
//
// Protocol of a step: compare(), then follow() unless the cache is to be attended densely, then view(). What compare() finds changed leaves
// the index before it is read; what is new waits, always read. Masks are the caller's: a cell that no row sees may be in a cluster.
// Cost: compare() with Check::all reads a cache line a cell, 5 ns each; with Check::some a sixteenth of that.
class CacheFollower {
 public:
  // Errors: quorum::Error(invalid_argument) as ClusterIndex.
  CacheFollower(const quorum::AttentionShape& shape, const quorum::IndexOptions& options)
      : shape_(shape), options_(options), sample_(shape.num_qo_heads, shape.head_dim) {
    drop();
  }

  // Brings the books in line with the cache. kv: the rows the engine shows; extent: cells beyond it are seen by nobody, 0 to kv.num_tokens.
  // Returns whether cells that were known have changed.
  bool compare(const quorum::KvCacheView& kv, int extent, Check check) {
    forget_beyond(kv.num_tokens, extent);
    changed_.clear();
    if (check == Check::some && !differs(kv)) return false;
    for (int t = 0; t < int(prints_.size()); ++t)
      if (print(kv, t) != prints_[size_t(t)]) changed_.push_back(t);
    if (!changed_.empty()) rewrite(kv);
    return !changed_.empty();
  }

  // Tells the index of the cells up to `extent`. pieces: at most so many pieces of clustering; build: whether a first index may be built,
  // which takes as long as clustering everything. Errors: those of ClusterIndex.
  void follow(const quorum::KvCacheView& kv, int extent, int pieces, bool build, quorum::Executor& executor) {
    for (int t = int(prints_.size()); t < extent; ++t) prints_.push_back(print(kv, t));
    if (extent < kLeastIndexed || (!built_ && !build)) return;
    if (built_) {
      index_->set_pieces_per_append(pieces);
      index_->append(kv.first(int(prints_.size())), executor);
    } else {
      const quorum::QueryView sample = sample_.view();
      index_->build(kv.first(std::min(extent, kFirstBuild)), &sample, executor);
      built_ = true;
      if (extent > kFirstBuild) follow(kv, extent, pieces, false, executor);
    }
  }

  void sample_queries(const quorum::QueryView& queries) { sample_.add(queries); }

  // Forgets everything: the next compare() finds a cache it knows nothing of.
  void drop() {
    index_ = std::make_unique<quorum::ClusterIndex>(shape_, options_);
    prints_.clear();
    built_ = false;
  }

  // Null while there is no index: attend densely.
  const quorum::ClusterIndexView* view() const { return built_ ? &index_->view() : nullptr; }
  // Cells that the index has been told of: a view of the cache must hold at least as many.
  int num_tokens() const { return built_ ? index_->num_tokens() : 0; }
  bool built() const { return built_; }
  const quorum::AttentionShape& shape() const { return shape_; }
  int64_t bytes() const { return index_->bytes() + int64_t(prints_.size() * sizeof(uint64_t)); }

 private:
  static constexpr int kLeastIndexed = 512;  // fewer cells are not worth an index
  static constexpr int kFirstBuild = 2048;   // the first build takes so many cells, the rest goes in pieces
  static constexpr int kNewest = 32;         // cells at the end that are always compared
  static constexpr int kParts = 16;          // calls that compare all others once

  static uint64_t print(const quorum::KvCacheView& kv, int token) {
    uint64_t bits;
    std::memcpy(&bits, kv.key_row(token, 0), sizeof(bits));
    return bits;
  }

  // Cells that the engine does not show any more are free. Those that it shows but nobody sees are kept if a cluster holds one of them:
  // they may be another sequence's.
  void forget_beyond(int shown, int extent) {
    const int known = int(prints_.size());
    int end = std::min(known, shown);
    if (extent < end && (!built_ || index_->view().indexed_end <= extent)) end = extent;
    if (end == known) return;
    prints_.resize(size_t(end));
    if (!built_) return;
    if (end < kLeastIndexed) return drop_index();
    if (end < index_->num_tokens()) index_->truncate(end);
  }

  bool differs(const quorum::KvCacheView& kv) {
    const int known = int(prints_.size());
    part_ = (part_ + 1) % kParts;
    const auto same = [&](int begin, int end) {
      for (int t = begin; t < end; ++t)
        if (print(kv, t) != prints_[size_t(t)]) return false;
      return true;
    };
    return !same(std::max(0, known - kNewest), known) ||
           !same(int(int64_t(known) * part_ / kParts), int(int64_t(known) * (part_ + 1) / kParts));
  }

  // Changed cells are written anew. If they are most of the cache, it is another cache.
  void rewrite(const quorum::KvCacheView& kv) {
    for (const int t : changed_) prints_[size_t(t)] = print(kv, t);
    if (!built_) return;
    if (2 * changed_.size() > prints_.size()) return drop_index();
    for (size_t i = 0; i < changed_.size();) {
      const int begin = changed_[i];
      int end = begin;
      while (i < changed_.size() && changed_[i] == end) ++i, ++end;
      if (begin < index_->num_tokens()) index_->overwrite(begin, std::min(end, index_->num_tokens()));
    }
  }

  void drop_index() {
    index_ = std::make_unique<quorum::ClusterIndex>(shape_, options_);
    built_ = false;
  }

  quorum::AttentionShape shape_;
  quorum::IndexOptions options_;
  QuerySample sample_;
  std::unique_ptr<quorum::ClusterIndex> index_;
  bool built_ = false;
  std::vector<uint64_t> prints_;  // [cells known]: the first bytes of each key
  std::vector<int32_t> changed_;  // of the last compare()
  int part_ = 0;
};

}  // namespace quorum_ggml
