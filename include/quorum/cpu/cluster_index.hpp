// The owning index of one sequence in one layer: build it from the prompt, append as the cache grows, hand its view to a decoder.
#pragma once

#include "quorum/cpu/build_index.hpp"

namespace quorum {

// Clustered index over the keys of every KV head.
//
// Memory: owns its index, never the keys and values; see bytes(). Copies share their segments.
// Caller: the cache's rows must not change between build/append and decode; one writer at a time, any number of readers of view()
// while nobody writes. Determinism: same tokens and options, same index, whatever the executor.
class ClusterIndex {
 public:
  // Errors: Error(invalid_argument) on a bad shape or option.
  ClusterIndex(const AttentionShape& shape, const IndexOptions& options) : shape_(shape), options_(options) {
    validate(shape, "ClusterIndex");
    validate(options, "ClusterIndex");
    refresh_view();
  }
  ClusterIndex(const ClusterIndex& other) { *this = other; }
  ClusterIndex& operator=(const ClusterIndex& other) {
    if (this == &other) return *this;
    shape_ = other.shape_;
    options_ = other.options_;
    metrics_ = other.metrics_;
    segments_ = other.segments_;
    num_tokens_ = other.num_tokens_;
    refresh_view();
    return *this;
  }

  // Indexes the first kv.num_tokens tokens but sinks and window, replacing what was there.
  //
  // Method: algorithm.md eq. 3 and 4. Shapes: kv rows [num_kv_heads][head_dim]; prompt_queries (may be null) rows
  // [num_qo_heads][head_dim], a sample of the prompt's own queries after RoPE: every 32nd is plenty. Without them distances are plain L2.
  // A prompt that leaves nothing to index forgets its queries: build again once it is longer, or append() goes on with plain L2.
  // Errors: Error(invalid_argument); Error(cancelled) if progress returns false. Post: strong guarantee. Cost: see kmeans(), once a
  // segment and KV head, and 2 * num_tokens * head_dim^2 multiplications per KV head. Memory: build_bytes() besides the index.
  void build(const KvCacheView& kv, const QueryView* prompt_queries, Executor& executor, const BuildProgress& progress = {}) {
    check(kv, "ClusterIndex::build");
    if (prompt_queries != nullptr && prompt_queries->num_rows > 0) {
      require(prompt_queries->data != nullptr, "ClusterIndex::build", "prompt_queries.data", "not null", "null");
      validate(*prompt_queries, shape_.head_dim, "ClusterIndex::build");
    }
    const int begin = options_.num_sink_tokens, end = kv.num_tokens - options_.window_tokens;
    std::vector<cpu::QueryMetric> metrics;
    std::vector<std::shared_ptr<const cpu::Segment>> segments;
    if (begin < end) {
      metrics.resize(size_t(shape_.num_kv_heads));
      const auto built = cpu::build_first_segments(input(kv), prompt_queries, begin, end, metrics, executor, progress);
      cpu::pack_segments(built);
      segments.assign(built.begin(), built.end());
    }
    metrics_ = std::move(metrics);
    segments_ = std::move(segments);
    num_tokens_ = kv.num_tokens;
    refresh_view();
  }
  void build(const KvCacheView& kv, Executor& executor) { build(kv, nullptr, executor); }

  // Takes note that the cache now holds kv.num_tokens tokens. New ones wait in the window, where they are always read, until
  // window_tokens + recluster_every of them do; then they become a segment. Old segments are never touched.
  //
  // Errors: Error(invalid_argument), also if the cache has shrunk; Error(cancelled) if progress returns false, then the tokens wait on.
  // Cost: nothing until a segment is due, then as build() for it.
  void append(const KvCacheView& kv, Executor& executor, const BuildProgress& progress = {}) {
    check(kv, "ClusterIndex::append");
    require(kv.num_tokens >= num_tokens_, "ClusterIndex::append", "kv.num_tokens", "at least the number of tokens already appended",
            kv.num_tokens);
    const int begin = end_token(), end = kv.num_tokens - options_.window_tokens;
    if (end - begin >= options_.recluster_every) {
      if (metrics_.empty()) return build(kv, nullptr, executor, progress);
      const auto built = cpu::build_segments(input(kv), begin, end, metrics_, executor, progress);
      cpu::pack_segments(built);
      segments_.insert(segments_.end(), built.begin(), built.end());
      refresh_view();
    }
    num_tokens_ = kv.num_tokens;
  }

  // Most memory that build() of num_tokens tokens holds at a time besides the index, in bytes. Errors: Error(invalid_argument).
  static int64_t build_bytes(const AttentionShape& shape, const IndexOptions& options, int64_t num_tokens, int num_workers) {
    validate(shape, "ClusterIndex::build_bytes");
    validate(options, "ClusterIndex::build_bytes");
    return cpu::build_bytes(shape, options, num_tokens, num_workers);
  }

  // What a decoder reads. Valid until the next build, append, assignment or destruction.
  const ClusterIndexView& view() const noexcept { return view_; }

  int num_tokens() const noexcept { return num_tokens_; }
  const AttentionShape& shape() const noexcept { return shape_; }
  const IndexOptions& options() const noexcept { return options_; }
  // Clusters of one KV head, padding included: what DecodeLimits::max_clusters must cover.
  int num_cluster_slots() const noexcept { return view_.num_kv_heads == 0 ? 0 : head_views_[0].num_cluster_slots(); }

  // Bytes of segments and query metrics; a shared segment counts in every copy.
  int64_t bytes() const {
    int64_t total = 0;
    for (const auto& segment : segments_) total += segment->bytes();
    for (const auto& metric : metrics_) total += metric.bytes();
    return total;
  }

 private:
  cpu::BuildInput input(const KvCacheView& kv) const { return {&kv, &shape_, &options_}; }
  int end_token() const { return segments_.empty() ? options_.num_sink_tokens : segments_.back()->end_token; }

  void check(const KvCacheView& kv, const char* function) const {
    require(kv.num_tokens >= 0, function, "kv.num_tokens", "at least 0", kv.num_tokens);
    if (kv.num_tokens == 0) return;
    require(kv.keys != nullptr, function, "kv.keys", "not null", "null");
    require(kv.values != nullptr, function, "kv.values", "not null", "null");
    validate(kv, shape_.head_dim, function);
  }

  // Rebuilds the pointer tables that view() hands out. All heads have the same cluster counts, so the id tables serve all.
  void refresh_view() {
    segment_first_.assign(1, 0);
    block_segment_.clear();
    for (size_t s = 0; s < segments_.size(); ++s) {
      const int blocks = int(ceil_div(segments_[s]->heads[0].num_clusters, kClusterBlock));
      segment_first_.push_back(segment_first_.back() + blocks * kClusterBlock);
      block_segment_.insert(block_segment_.end(), size_t(blocks), int32_t(s));
    }
    const size_t num_segments = segments_.size(), num_heads = size_t(shape_.num_kv_heads);
    segment_views_.resize(num_segments * num_heads);
    head_views_.assign(num_heads, {});
    for (size_t h = 0; h < num_heads; ++h) {
      ClusterHeadView& head = head_views_[h];
      for (size_t s = 0; s < num_segments; ++s) {
        segment_views_[h * num_segments + s] = segments_[s]->heads[h].view();
        head.non_finite = head.non_finite || segments_[s]->heads[h].non_finite;
        add_moments(segments_[s]->heads[h].moments, float(segments_[s]->num_tokens()), head.moments);
      }
      if (num_segments > 0) head.metric = metrics_[h].view();
      head.segments = segment_views_.data() + h * num_segments;
      head.segment_first = segment_first_.data();
      head.block_segment = block_segment_.data();
      head.num_segments = int(num_segments);
    }
    view_ = {head_views_.data(),
             shape_.num_kv_heads,
             shape_.head_dim,
             options_.num_sink_tokens,
             num_segments == 0 ? options_.num_sink_tokens : segments_.back()->end_token,
             options_.storage,
             options_.variance,
             options_.residual_codes};
  }

  // Adds a segment's means to those of a head, by its share of all indexed tokens.
  void add_moments(const ValueMoments& segment, float num_tokens, ValueMoments& head) const {
    const float share = num_tokens / float(end_token() - options_.num_sink_tokens);
    head.spread += share * segment.spread;
    head.mean_square += share * segment.mean_square;
    head.code_scale += share * segment.code_scale;
  }

  AttentionShape shape_;
  IndexOptions options_;
  int num_tokens_ = 0;
  std::vector<cpu::QueryMetric> metrics_;                      // [num_kv_heads], empty before the first segment
  std::vector<std::shared_ptr<const cpu::Segment>> segments_;  // ascending runs of tokens without gaps
  std::vector<int32_t> segment_first_, block_segment_;
  std::vector<SegmentView> segment_views_;  // [num_kv_heads][segments]
  std::vector<ClusterHeadView> head_views_;
  ClusterIndexView view_;
};

}  // namespace quorum
