// A sequence with masks, several query rows and the rules of its layer, whose invisible tokens are NaN: any use of one shows.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "quorum/core/sequence_view.hpp"
#include "tests/support/decode_batch.hpp"

namespace quorum::test {

// A target at any length, with the other settings as they are by default.
inline DecodeOptions sparse_options(float target, RowSets rows = RowSets::shared) {
  DecodeOptions options;
  options.target_ratio = target;
  options.dense_below = 0;
  options.rows = rows;
  return options;
}

struct MaskedSpec {
  AttentionShape shape{4, 1, 64, 0.0f};
  int num_tokens = 700;
  int num_rows = 1;
  bool causal = true;
  double density = 1.0;    // share of tokens that the mask lets pass; 0: none, negative: one token, 1: no mask at all
  bool own_masks = false;  // every row has one
  bool codes = true;
  int window_tokens = 0;  // of the index: newest tokens that are in no cluster
  ElementType type = ElementType::f16;
  std::vector<float> sinks;
  uint64_t seed = 1;
  float key_noise = 0.3f;
};

class MaskedSequence {
 public:
  explicit MaskedSequence(const MaskedSpec& spec) : MaskedSequence(spec, data_of(spec)) {}

  AttentionShape shape() const {
    AttentionShape shape = spec_.shape;
    if (!spec_.sinks.empty()) shape.sink_logits = spec_.sinks.data();
    return shape;
  }
  SequenceView view() const {
    return {cache_.view(),  &index_.view(), words_.empty() ? nullptr : words_.data(), spec_.own_masks ? mask_words(spec_.num_tokens) : 0,
            spec_.num_rows, spec_.causal};
  }
  QueryView query_view() const { return queries_.view(); }
  DecodeLimits limits(int num_workers = 1) const { return {1, spec_.num_tokens, 0, num_workers, spec_.num_rows}; }
  TestCache& cache() { return cache_; }
  TestQueries& queries() { return queries_; }

  DecodeResult decode(const DecodeOptions& options, int num_workers = 1) const {
    ThreadExecutor executor(num_workers);
    Decoder decoder(shape(), options, limits(num_workers));
    DecodeResult result(spec_.shape, spec_.num_rows);
    const SequenceView sequence = view();
    result.status = decoder.decode(query_view(), {&sequence, 1}, result.out(), result.reports, executor);
    return result;
  }

  const reference::Matrix& keys(int kv_head) const { return cache_.keys(kv_head); }
  const reference::Matrix& values(int kv_head) const { return cache_.values(kv_head); }
  std::vector<double> query(int row, int qo_head) const { return queries_.get(row, qo_head); }

  // What the reference says.
  const std::vector<int>& visible(int row) const { return visible_[size_t(row)]; }
  reference::Attention attention(int row, int qo_head, bool with_sink = true) const {
    const int kv_head = qo_head / spec_.shape.group_size();
    const bool has_sink = with_sink && !spec_.sinks.empty();
    const reference::Layer layer{spec_.shape.sm_scale != 0.0f ? double(spec_.shape.sm_scale) : 1.0 / std::sqrt(spec_.shape.head_dim),
                                 double(spec_.shape.logit_softcap),
                                 has_sink ? double(spec_.sinks[size_t(qo_head)]) : -std::numeric_limits<double>::infinity()};
    return reference::attention(queries_.get(row, qo_head).data(), cache_.keys(kv_head), cache_.values(kv_head), layer, visible(row));
  }

  // Largest error of outputs and lse of all rows and heads.
  double error(const DecodeResult& result) const {
    const int heads = spec_.shape.num_qo_heads, dim = spec_.shape.head_dim;
    double worst = 0.0;
    for (int r = 0; r < spec_.num_rows; ++r)
      for (int h = 0; h < heads; ++h) {
        const auto want = attention(r, h);
        const size_t at = size_t(r * heads + h);
        worst = larger_error(worst, finite_difference(&result.output[at * size_t(dim)], want.output.data(), dim));
        worst = larger_error(worst, finite_difference(&result.lse[at], &want.lse, 1));
      }
    return worst;
  }
  double tolerance() const { return attention_tolerance(spec_.shape.head_dim, spec_.num_tokens, 40.0); }

 private:
  // A NaN is wanted nowhere.
  template <class Got>
  static double finite_difference(const Got* got, const double* want, int count) {
    for (int i = 0; i < count; ++i)
      if (std::isnan(double(got[i])) || std::isnan(want[i])) return std::numeric_limits<double>::infinity();
    return largest_difference(got, want, count);
  }
  static ClusteredData data_of(const MaskedSpec& spec) {
    return clustered_data({spec.num_tokens, spec.shape.num_kv_heads, spec.shape.num_qo_heads, spec.shape.head_dim, spec.num_rows, spec.seed,
                           24, spec.key_noise, 0.5f, 3.0f});
  }
  static IndexOptions index_options(const MaskedSpec& spec) {
    IndexOptions options = spec.codes ? IndexOptions{} : cluster_index_options();
    options.window_tokens = spec.window_tokens;
    return options;
  }
  MaskedSequence(const MaskedSpec& spec, const ClusteredData& data)
      : spec_(spec),
        cache_({spec.num_tokens, spec.shape.num_kv_heads, spec.shape.head_dim, spec.type}, data.keys, data.values),
        queries_(ElementType::f32, spec.num_rows, spec.shape.num_qo_heads, spec.shape.head_dim, data.queries),
        index_(spec.shape, index_options(spec)) {
    build_index(index_, cache_.view());
    draw_masks();
    std::vector<bool> seen(size_t(spec.num_tokens), false);
    for (const auto& row : visible_)
      for (const int i : row) seen[size_t(i)] = true;
    for (int i = 0; i < spec.num_tokens; ++i)
      for (int h = 0; h < spec.shape.num_kv_heads && !seen[size_t(i)]; ++h)
        for (int c = 0; c < spec.shape.head_dim; ++c) {
          cache_.set_key(i, h, c, kNan);
          cache_.set_value(i, h, c, kNan);
        }
  }
  void draw_masks() {
    Random random(spec_.seed + 77);
    std::vector<bool> mask;
    for (int r = 0; r < spec_.num_rows; ++r) {
      if (spec_.density < 1.0 && (r == 0 || spec_.own_masks)) {
        const int one = random.below(spec_.num_tokens);
        mask.assign(size_t(spec_.num_tokens), false);
        words_.resize(words_.size() + size_t(mask_words(spec_.num_tokens)));
        uint64_t* words = &words_[words_.size() - size_t(mask_words(spec_.num_tokens))];
        words[mask_words(spec_.num_tokens) - 1] = ~uint64_t(0);  // bits beyond the last token mean nothing
        for (int i = 0; i < spec_.num_tokens; ++i) {
          mask[size_t(i)] = spec_.density < 0.0 ? i == one : random.uniform() < spec_.density;
          words[i / 64] &= ~(uint64_t(1) << i % 64);
          words[i / 64] |= uint64_t(mask[size_t(i)]) << i % 64;
        }
      }
      visible_.push_back(reference::visible_tokens(spec_.num_tokens, spec_.num_rows, r, spec_.causal, spec_.shape.sliding_window, mask));
    }
  }

  MaskedSpec spec_;
  TestCache cache_;
  TestQueries queries_;
  ClusterIndex index_;
  std::vector<uint64_t> words_;
  std::vector<std::vector<int>> visible_;  // [num_rows]
};

}  // namespace quorum::test
