// The owning index of one sequence in one layer, through its whole life: build, append, erase, fork, save; its view goes to a decoder.
#pragma once

#include <set>

#include "quorum/cpu/erase_tokens.hpp"
#include "quorum/cpu/index_bytes.hpp"
#include "quorum/cpu/segment_job.hpp"

namespace quorum {

// Clustered index over the keys of every KV head. docs/engines.md tells how an engine keeps it in step with its cache.
//
// Tokens are numbers of rows in the KvCacheView; their order in time is that of the calls which named them as written. Every live token is
// in one cluster of each KV head, or always read: the first written (sinks), the newest (window), and those that wait to be clustered.
// Memory: owns its index, never the keys and values; see bytes(). Copies are forks: they share what neither changes.
// Caller: a row must not change unless overwrite() or invalidate() is told before the next decode; one writer at a time, any number of
// readers of view() while nobody writes this index; forks are independent. Determinism: same calls, same index, whatever the executor.
class ClusterIndex {
 public:
  // Errors: Error(invalid_argument) on a bad shape or option.
  ClusterIndex(const AttentionShape& shape, const IndexOptions& options)
      : shape_(shape), options_(options), ledger_(options.num_sink_tokens) {
    validate(shape, "ClusterIndex");
    validate(options, "ClusterIndex");
    refresh_segments();
  }
  // A fork. Cost: a few pointers a segment, and the list of waiting tokens. Clustering that has begun goes on in the original only.
  ClusterIndex(const ClusterIndex& other) { *this = other; }
  ClusterIndex& operator=(const ClusterIndex& other) {
    if (this == &other) return *this;
    shape_ = other.shape_;
    options_ = other.options_;
    metrics_ = other.metrics_;
    segments_ = other.segments_;
    ledger_ = other.ledger_;
    job_.reset();
    refresh_segments();
    return *this;
  }

  // Indexes the first kv.num_tokens tokens but sinks and window, replacing what was there.
  //
  // Method: algorithm.md eq. 3 and 4. Shapes: kv rows [num_kv_heads][head_dim]; prompt_queries (may be null) rows
  // [num_qo_heads][head_dim], a sample of the prompt's own queries after RoPE: every 32nd is plenty. Without them distances are plain L2.
  // A prompt that leaves nothing to index forgets its queries: build again once it is longer, or append() goes on with plain L2.
  // Errors: Error(invalid_argument); Error(cancelled) if progress returns false. Post: strong guarantee. Cost: see KMeans, once a
  // segment and KV head, and 2 * num_tokens * head_dim^2 multiplications per KV head. Memory: build_bytes() besides the index.
  void build(const KvCacheView& kv, const QueryView* prompt_queries, Executor& executor, const BuildProgress& progress = {}) {
    check(kv, "ClusterIndex::build");
    if (prompt_queries != nullptr && prompt_queries->num_rows > 0) {
      require(prompt_queries->data != nullptr, "ClusterIndex::build", "prompt_queries.data", "not null", "null");
      validate(*prompt_queries, shape_.head_dim, "ClusterIndex::build");
    }
    cpu::TokenLedger ledger(options_.num_sink_tokens);
    ledger.append(kv.num_tokens);
    build_first(kv, prompt_queries, ledger, executor, progress);
  }
  void build(const KvCacheView& kv, Executor& executor) { build(kv, nullptr, executor); }

  // The cache now holds kv.num_tokens tokens: those from num_tokens() on have been written. They wait, always read, until window_tokens +
  // recluster_every of them do; then all but the window are clustered, together with the newest small segment. Small segments become
  // larger ones (merge_tokens).
  //
  // Errors: Error(invalid_argument), also if the cache has shrunk; Error(cancelled) if progress returns false, then the index is as it was.
  // Cost: a few instructions a token until a segment is due, then as build() for it; with pieces_per_append a bounded part of that.
  // Without a build() before it, the first segment is built in one go, with plain L2 distances.
  void append(const KvCacheView& kv, Executor& executor, const BuildProgress& progress = {}) {
    check(kv, "ClusterIndex::append");
    require(kv.num_tokens >= ledger_.num_tokens(), "ClusterIndex::append", "kv.num_tokens",
            "at least the number of tokens already appended", kv.num_tokens);
    const int most_waiting = ledger_.num_waiting() + kv.num_tokens - ledger_.num_tokens();
    const bool due = most_waiting - options_.window_tokens >= options_.recluster_every;
    if (due && (metrics_ == nullptr || options_.pieces_per_append == 0)) {
      append_at_once(kv, executor, progress);
    } else {
      ledger_.append(kv.num_tokens);
      refresh_tokens();
    }
    work(kv, options_.pieces_per_append == 0 ? kMaxCount : options_.pieces_per_append, executor);
  }

  // Tokens from num_tokens on are no more: rejected speculation, a turn taken back. They may be appended again.
  // Errors: Error(invalid_argument) unless num_tokens is 0 to num_tokens(). Cost: a copy of the segments that lose tokens.
  void truncate(int num_tokens) {
    require(num_tokens >= 0 && num_tokens <= ledger_.num_tokens(), "ClusterIndex::truncate", "num_tokens", "0 to num_tokens()", num_tokens);
    remove_from_clusters({num_tokens, ledger_.num_tokens()}, false);
    ledger_.truncate(num_tokens);
    refresh_segments();
  }
  // Tokens [begin, end) are no more: evicted, or another sequence's. Their rows are not read until overwrite() names them.
  // Errors: Error(invalid_argument) unless 0 <= begin <= end <= num_tokens(). Cost: as truncate().
  void erase(int begin, int end) {
    check_range(begin, end, "ClusterIndex::erase");
    remove_from_clusters({begin, end}, false);
    ledger_.erase({begin, end});
    refresh_segments();
  }
  // Rows [begin, end) hold other tokens now, the newest; rows that had been erased live again. Errors and cost: as erase().
  void overwrite(int begin, int end) {
    check_range(begin, end, "ClusterIndex::overwrite");
    remove_from_clusters({begin, end}, false);
    ledger_.overwrite({begin, end});
    refresh_segments();
  }
  // Rows [begin, end) hold the same tokens with other keys or values: a shift of positions rotates keys anew. They wait, as the oldest,
  // until append() clusters them again; the coordinates stay. Errors and cost: as erase().
  void invalidate(int begin, int end) {
    check_range(begin, end, "ClusterIndex::invalidate");
    remove_from_clusters({begin, end}, true);
    refresh_segments();
  }

  // The index as bytes that load() takes on any machine of the same byte order: versioned, with a checksum, without pointers.
  std::vector<std::byte> save() const { return cpu::write_index({shape_, options_, metrics_, segments_, ledger_}); }
  // Errors: Error(invalid_file) saying what is wrong with the bytes, another shape included.
  static ClusterIndex load(const AttentionShape& shape, std::span<const std::byte> bytes) {
    validate(shape, "ClusterIndex::load");
    cpu::IndexParts parts = cpu::read_index(shape, bytes);
    ClusterIndex index(shape, parts.options);
    index.metrics_ = std::move(parts.metrics);
    index.segments_ = std::move(parts.segments);
    index.ledger_ = std::move(parts.ledger);
    index.refresh_segments();
    return index;
  }

  // Most memory that build() of num_tokens tokens holds at a time besides the index, in bytes. Errors: Error(invalid_argument).
  static int64_t build_bytes(const AttentionShape& shape, const IndexOptions& options, int64_t num_tokens, int num_workers) {
    validate(shape, "ClusterIndex::build_bytes");
    validate(options, "ClusterIndex::build_bytes");
    return cpu::build_bytes(shape, options, num_tokens, num_workers);
  }

  // What a decoder reads. Valid until the next call that is not const, or destruction.
  const ClusterIndexView& view() const noexcept { return view_; }

  // Tokens that the index has been told of, erased ones included, and how many of them live.
  int num_tokens() const noexcept { return ledger_.num_tokens(); }
  int num_live_tokens() const noexcept { return ledger_.num_live(); }
  const AttentionShape& shape() const noexcept { return shape_; }
  const IndexOptions& options() const noexcept { return options_; }
  // Another bound for the appends to come: none while a prompt is read, a small one between the steps that follow.
  // Errors: Error(invalid_argument) as IndexOptions::pieces_per_append.
  void set_pieces_per_append(int pieces) {
    IndexOptions options = options_;
    options.pieces_per_append = pieces;
    validate(options, "ClusterIndex::set_pieces_per_append");
    options_ = options;
  }
  // Clusters of one KV head, padding included: what DecodeLimits::max_clusters must cover.
  int num_cluster_slots() const noexcept { return head_views_[0].num_cluster_slots(); }

  // Bytes of segments and query metrics that this index keeps allocated; lists and tables come on top.
  int64_t bytes() const {
    const ClusterIndex* self = this;
    return total_bytes({&self, 1});
  }
  // The same of several indexes, what they share counted once.
  static int64_t total_bytes(std::span<const ClusterIndex* const> indexes) {
    std::set<const void*> counted;
    int64_t total = 0;
    for (const ClusterIndex* index : indexes) {
      if (index->metrics_ != nullptr && counted.insert(index->metrics_.get()).second)
        for (const auto& metric : *index->metrics_) total += metric.bytes();
      for (const auto& segment : index->segments_) {
        if (segment->block != nullptr && counted.insert(segment->block.get()).second) total += cpu::content_bytes(*segment->block);
        if (segment->block == nullptr && counted.insert(segment.get()).second) total += segment->bytes();
      }
    }
    return total;
  }

 private:
  using SharedSegments = std::vector<std::shared_ptr<const cpu::Segment>>;

  cpu::BuildInput input(const KvCacheView& kv) const { return {&kv, &shape_, &options_}; }

  void check(const KvCacheView& kv, const char* function) const {
    require(kv.num_tokens >= 0, function, "kv.num_tokens", "at least 0", kv.num_tokens);
    if (kv.num_tokens == 0) return;
    require(kv.keys != nullptr, function, "kv.keys", "not null", "null");
    require(kv.values != nullptr, function, "kv.values", "not null", "null");
    validate(kv, shape_.head_dim, function);
  }
  void check_range(int begin, int end, const char* function) const {
    require(begin >= 0 && begin <= ledger_.num_tokens(), function, "begin", "0 to num_tokens()", begin);
    require(end >= begin && end <= ledger_.num_tokens(), function, "end", "begin to num_tokens()", end);
  }

  // The coordinates, and segments of all waiting tokens but the window.
  void build_first(const KvCacheView& kv, const QueryView* prompt_queries, cpu::TokenLedger& ledger, Executor& executor,
                   const BuildProgress& progress) {
    std::shared_ptr<cpu::Metrics> metrics;
    SharedSegments segments;
    if (const int count = ledger.num_waiting() - options_.window_tokens; count > 0) {
      const auto tokens = ledger.oldest_waiting(count);
      metrics = std::make_shared<cpu::Metrics>(size_t(shape_.num_kv_heads));
      const auto built = cpu::build_first_segments(input(kv), prompt_queries, tokens, *metrics, executor, progress);
      cpu::pack_segments(built);
      segments.assign(built.begin(), built.end());
      ledger.take(tokens);
    }
    metrics_ = std::move(metrics);
    segments_ = std::move(segments);
    ledger_ = std::move(ledger);
    job_.reset();
    refresh_segments();
  }

  // New tokens, and segments of all that are due, or neither.
  void append_at_once(const KvCacheView& kv, Executor& executor, const BuildProgress& progress) {
    cpu::TokenLedger ledger = ledger_;
    ledger.append(kv.num_tokens);
    const int due = ledger.num_waiting() - options_.window_tokens;
    if (due >= options_.recluster_every) {
      if (metrics_ == nullptr) return build_first(kv, nullptr, ledger, executor, progress);
      const SharedSegments tail = tail_for(due);
      const auto tokens = tokens_of(tail, ledger.oldest_waiting(due));
      const auto built = cpu::build_segments(input(kv), tokens, *metrics_, executor, progress);
      cpu::pack_segments(built);
      replace(tail, built);
      ledger.take(tokens);
    }
    ledger_ = std::move(ledger);
    refresh_segments();
  }

  // Does at most `pieces` pieces of the clustering that is due.
  void work(const KvCacheView& kv, int pieces, Executor& executor) {
    while (pieces > 0) {
      if (!job_ && !begin_job(kv)) return;
      pieces -= job_->advance(input(kv), pieces, executor);
      if (job_->done()) finish_job();
    }
  }
  bool begin_job(const KvCacheView& kv) {
    if (metrics_ == nullptr) return false;
    const int due = ledger_.num_waiting() - options_.window_tokens;
    std::vector<int32_t> waiting;
    if (due >= options_.recluster_every) waiting = ledger_.oldest_waiting(std::min(due, options_.segment_tokens));
    SharedSegments replaces = waiting.empty() ? small_segments() : tail_for(int(waiting.size()));
    std::vector<int32_t> tokens = tokens_of(replaces, std::move(waiting));
    if (tokens.empty()) return false;
    job_ = std::make_unique<cpu::SegmentJob>(input(kv), metrics_, std::move(tokens), std::move(replaces));
    return true;
  }
  void finish_job() {
    const auto job = std::move(job_);
    cpu::pack_segments({job->segment()});
    replace(job->replaces(), {job->segment()});
    ledger_.take(job->tokens());
    refresh_segments();
  }
  void replace(const SharedSegments& old, const std::vector<std::shared_ptr<cpu::Segment>>& built) {
    std::erase_if(segments_, [&](const auto& segment) { return std::find(old.begin(), old.end(), segment) != old.end(); });
    segments_.insert(segments_.end(), built.begin(), built.end());
  }
  // The oldest small segments that hold merge_tokens together, if they do. Small: less than half as many.
  SharedSegments small_segments() const {
    const int whole = std::min(options_.merge_tokens, options_.segment_tokens);
    int tokens = 0;
    SharedSegments small;
    for (const auto& segment : segments_) {
      if (segment->num_tokens >= whole / 2) continue;
      small.push_back(segment);
      tokens += segment->num_tokens;
      if (tokens >= whole) return small;
    }
    return {};
  }
  // The newest segment, if `count` more tokens fit into it.
  SharedSegments tail_for(int count) const {
    const int most = std::min(options_.merge_tokens, options_.segment_tokens) / 4;
    if (segments_.empty() || segments_.back()->num_tokens + count > most) return {};
    return {segments_.back()};
  }
  // Tokens of segments and others, ascending.
  static std::vector<int32_t> tokens_of(const SharedSegments& segments, std::vector<int32_t> tokens) {
    for (const auto& segment : segments) tokens.insert(tokens.end(), segment->tokens().begin(), segment->tokens().end());
    std::sort(tokens.begin(), tokens.end());
    return tokens;
  }

  // Takes the tokens of a range out of all clusters; with `wait` they wait again. So do the other tokens of a segment that holds NaN or
  // Inf, to find out whether it still does.
  void remove_from_clusters(cpu::TokenRange range, bool wait) {
    SharedSegments kept;
    std::vector<int32_t> waiting;
    for (const auto& segment : segments_) {
      const auto tokens = segment->tokens();
      if (!range.overlaps({segment->begin_token, segment->end_token}) ||
          std::none_of(tokens.begin(), tokens.end(), [&](int32_t t) { return range.contains(t); })) {
        kept.push_back(segment);
        continue;
      }
      const bool dissolves = std::any_of(segment->heads.begin(), segment->heads.end(), [](const auto& head) { return head.non_finite; });
      for (const int32_t t : tokens)
        if (range.contains(t) ? wait : dissolves) waiting.push_back(t);
      const auto rest = dissolves ? nullptr : cpu::erase_tokens(*segment, range, shape_.head_dim);
      if (rest != nullptr) kept.push_back(rest);
    }
    if (job_ && std::any_of(job_->tokens().begin(), job_->tokens().end(), [&](int32_t t) { return range.contains(t); })) job_.reset();
    ledger_.put_back(waiting);
    segments_ = std::move(kept);
  }

  // Rebuilds what view() hands out. All heads have the same cluster counts, so the id tables serve all.
  void refresh_segments() {
    segment_first_.assign(1, 0);
    block_segment_.clear();
    int num_indexed = 0, indexed_end = 0;
    for (size_t s = 0; s < segments_.size(); ++s) {
      const int blocks = int(ceil_div(segments_[s]->heads[0].num_clusters, kClusterBlock));
      segment_first_.push_back(segment_first_.back() + blocks * kClusterBlock);
      block_segment_.insert(block_segment_.end(), size_t(blocks), int32_t(s));
      num_indexed += segments_[s]->num_tokens;
      indexed_end = std::max(indexed_end, segments_[s]->end_token);
    }
    const size_t num_segments = segments_.size(), num_heads = size_t(shape_.num_kv_heads);
    segment_views_.resize(num_segments * num_heads);
    head_views_.assign(num_heads, {});
    for (size_t h = 0; h < num_heads; ++h) {
      ClusterHeadView& head = head_views_[h];
      for (size_t s = 0; s < num_segments; ++s) {
        const cpu::HeadSegment& segment = segments_[s]->heads[h];
        segment_views_[h * num_segments + s] = segment.view();
        head.non_finite = head.non_finite || segment.non_finite;
        add_moments(segment.moments, float(segments_[s]->num_tokens) / float(num_indexed), head.moments);
      }
      if (num_segments > 0) head.metric = (*metrics_)[h].view();
      head.segments = segment_views_.data() + h * num_segments;
      head.segment_first = segment_first_.data();
      head.block_segment = block_segment_.data();
      head.num_segments = int(num_segments);
    }
    view_ = {head_views_.data(), shape_.num_kv_heads, shape_.head_dim,  num_indexed,       indexed_end,
             ledger_.always(),   ledger_.live(),      options_.storage, options_.variance, options_.residual_codes};
  }

  void refresh_tokens() {
    view_.always = ledger_.always();
    view_.live = ledger_.live();
  }

  // Adds a segment's means to those of a head, by its share of all indexed tokens.
  static void add_moments(const ValueMoments& segment, float share, ValueMoments& head) {
    head.spread += share * segment.spread;
    head.mean_square += share * segment.mean_square;
    head.code_scale += share * segment.code_scale;
  }

  AttentionShape shape_;
  IndexOptions options_;
  std::shared_ptr<const cpu::Metrics> metrics_;  // null before the first segment
  SharedSegments segments_;
  cpu::TokenLedger ledger_;
  std::unique_ptr<cpu::SegmentJob> job_;  // clustering that has begun
  std::vector<int32_t> segment_first_, block_segment_;
  std::vector<SegmentView> segment_views_;  // [num_kv_heads][segments]
  std::vector<ClusterHeadView> head_views_;
  ClusterIndexView view_;
};

}  // namespace quorum
