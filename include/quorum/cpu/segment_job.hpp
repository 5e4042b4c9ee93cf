// Clustering of some tokens for all KV heads, a few pieces at a time.
#pragma once

#include "quorum/cpu/build_index.hpp"

namespace quorum::cpu {

// Builds one segment of tokens that wait, or that other segments hold so far. Until it is done nobody reads it.
class SegmentJob {
 public:
  // tokens: not empty. replaces: the segments whose tokens they are; none if they wait.
  SegmentJob(const BuildInput& input, std::shared_ptr<const Metrics> metrics, std::vector<int32_t> tokens,
             std::vector<std::shared_ptr<const Segment>> replaces)
      : metrics_(std::move(metrics)),
        tokens_(std::move(tokens)),
        replaces_(std::move(replaces)),
        segment_(empty_segment(input, tokens_)),
        builds_(metrics_->size()),
        unfinished_(metrics_->size()) {
    std::iota(unfinished_.begin(), unfinished_.end(), 0);
  }

  // Does at most `pieces` pieces, of as many KV heads side by side as there are workers. Returns how many it did: fewer only once all
  // are done.
  int advance(const BuildInput& input, int pieces, Executor& executor) {
    int done = 0;
    while (done < pieces && !unfinished_.empty()) {
      const int heads = std::min({pieces - done, executor.num_workers(), int(unfinished_.size())});
      for_each_head_segment(executor, 1, heads, {}, [&](int, int i) { advance_head(input, unfinished_[size_t(i)]); });
      std::erase(unfinished_, kFinished);
      done += heads;
    }
    return done;
  }
  bool done() const { return unfinished_.empty(); }

  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<std::shared_ptr<const Segment>>& replaces() const { return replaces_; }
  const std::shared_ptr<Segment>& segment() const { return segment_; }

 private:
  static constexpr int kFinished = -1;

  void advance_head(const BuildInput& input, int& head) {
    auto& build = builds_[size_t(head)];
    if (!build) build = std::make_unique<HeadSegmentBuild>(input, (*metrics_)[size_t(head)], head, tokens_, segment_->heads[size_t(head)]);
    if (build->advance(input)) return;
    build.reset();
    head = kFinished;
  }

  std::shared_ptr<const Metrics> metrics_;
  std::vector<int32_t> tokens_;
  std::vector<std::shared_ptr<const Segment>> replaces_;
  std::shared_ptr<Segment> segment_;
  std::vector<std::unique_ptr<HeadSegmentBuild>> builds_;  // [num_kv_heads], of the heads that have begun
  std::vector<int> unfinished_;                            // KV heads
};

}  // namespace quorum::cpu
