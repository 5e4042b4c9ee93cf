#include "bench/end_to_end/lane.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "bench/end_to_end/options.hpp"
#include "bench/support/measure.hpp"
#include "quorum/quorum.hpp"

using namespace quorum;

namespace {

// What a step tells about one query head.
struct HeadRow {
  HeadReport report;
  double error = std::nan("");  // |output - dense| / |dense| over the same cache; NaN unless the option `errors` asks for it
};

struct ReportColumn {
  const char* name;
  double (*of)(const HeadRow&);
};

// What every column means: core/decode_report.hpp.
constexpr ReportColumn kColumns[] = {
    {"tokens_read", [](const HeadRow& head) { return double(head.report.tokens_read); }},
    {"bytes_read", [](const HeadRow& head) { return double(head.report.bytes_read); }},
    {"bytes_dense", [](const HeadRow& head) { return double(head.report.bytes_dense); }},
    {"attained_ratio", [](const HeadRow& head) { return double(head.report.attained_ratio_estimate); }},
    {"error_estimate", [](const HeadRow& head) { return double(head.report.error_estimate); }},
    {"dense", [](const HeadRow& head) { return is_dense(head.report.path) ? 1.0 : 0.0; }},
    {"error", [](const HeadRow& head) { return head.error; }},
};

thread_local std::string last_error;

// Exceptions end here: C has none.
template <class Work>
bool succeeds(Work&& work) noexcept {
  try {
    work();
    return true;
  } catch (const std::exception& problem) {
    last_error = problem.what();
    return false;
  }
}

AttentionShape attention_shape(const LaneShape& shape) { return {shape.num_qo_heads, shape.num_kv_heads, shape.head_dim, 0.0f}; }

DecodeLimits limits_of(const LaneShape& shape, const bench::LaneOptions& options) {
  // The prompt's clusters, then a segment every recluster_every tokens; each is padded to whole blocks of clusters.
  const int segments = shape.max_tokens / options.index.recluster_every + shape.max_tokens / options.index.segment_tokens + 2;
  return {1, shape.max_tokens, shape.max_tokens / options.index.cluster_size + segments * kClusterBlock, 1};
}

// Keys and values of one layer, tokens first, and their index.
struct LayerCache {
  std::vector<f16> keys, values;
  int num_tokens = 0;
  ClusterIndex index;
};

}  // namespace

struct Lane {
  Lane(const LaneShape& lane_shape, const bench::LaneOptions& lane_options)
      : shape(attention_shape(lane_shape)),
        options(lane_options),
        row(size_t(lane_shape.num_kv_heads) * size_t(lane_shape.head_dim)),
        decoder(shape, options.decode, limits_of(lane_shape, options)),
        reports(size_t(shape.num_qo_heads)),
        dense(size_t(shape.num_qo_heads) * size_t(shape.head_dim)) {
    const size_t elements = size_t(lane_shape.max_tokens) * row;
    for (int32_t layer = 0; layer < lane_shape.num_layers; ++layer)
      layers.push_back({std::vector<f16>(elements), std::vector<f16>(elements), 0, ClusterIndex(shape, options.index)});
  }

  LayerCache& layer_at(int32_t layer) {
    require(layer >= 0 && size_t(layer) < layers.size(), "Lane", "layer", "one of the shape's layers", layer);
    return layers[size_t(layer)];
  }

  void check_room(const LayerCache& cache, int more) const {
    require(more >= 0 && cache.num_tokens + more <= decoder.limits().max_tokens, "Lane", "num_tokens", "at most shape.max_tokens",
            cache.num_tokens + more);
  }

  KvCacheView view(const LayerCache& cache) const {
    return KvCacheView::nhd(cache.keys.data(), cache.values.data(), cache.num_tokens, shape.num_kv_heads, shape.head_dim);
  }

  // A target of 1 never looks at an index: none is built.
  bool indexed() const { return options.decode.target_ratio < 1.0f || options.decode.fixed_budget > 0; }

  void prefill(LayerCache& cache, const LanePrompt& prompt) {
    check_room(cache, prompt.num_tokens);
    for (size_t i = 0; i < size_t(prompt.num_tokens) * row; ++i) {
      cache.keys[i].bits = prompt.keys[i];
      cache.values[i].bits = prompt.values[i];
    }
    cache.num_tokens = prompt.num_tokens;
    const QueryView queries = QueryView::contiguous(prompt.prompt_queries, prompt.num_prompt_queries, shape.num_qo_heads, shape.head_dim);
    if (indexed()) cache.index.build(view(cache), &queries, executor);
  }

  void decode(LayerCache& cache, LaneStep& step) {
    check_room(cache, 1);
    const auto end = std::ptrdiff_t(size_t(cache.num_tokens++) * row);
    std::transform(step.key, step.key + row, cache.keys.begin() + end, from_float<f16>);
    std::transform(step.value, step.value + row, cache.values.begin() + end, from_float<f16>);
    const SequenceView sequence{view(cache), indexed() ? &cache.index.view() : nullptr};
    step.append_seconds = bench::seconds_of([&] {
      if (indexed()) cache.index.append(sequence.kv, executor);
    });
    const QueryView query = QueryView::contiguous(step.query, 1, shape.num_qo_heads, shape.head_dim);
    DecodeStatus status = DecodeStatus::ok;
    step.decode_seconds = bench::seconds_of([&] {
      status = decoder.decode(query, {&sequence, 1}, {step.output, nullptr}, reports, executor);
    });
    if (status != DecodeStatus::ok) throw std::runtime_error(status_message(status));
    if (options.errors) dense_attention(shape, query, {&sequence.kv, 1}, {dense.data(), nullptr}, executor);
    report(step);
  }

  void report(LaneStep& step) const {
    double* to = step.report;
    for (int head = 0; head < shape.num_qo_heads; ++head) {
      HeadRow described{reports[size_t(head)]};
      const size_t first = size_t(head) * size_t(shape.head_dim);
      if (options.errors) described.error = bench::mean_error(1, shape.head_dim, step.output + first, dense.data() + first);
      for (const ReportColumn& column : kColumns) *to++ = column.of(described);
    }
  }

  AttentionShape shape;
  bench::LaneOptions options;
  size_t row;  // elements of a token's keys
  Decoder decoder;
  std::vector<HeadReport> reports;
  std::vector<float> dense;  // [num_qo_heads][head_dim], with options.errors: the output that dense attention gives
  std::vector<LayerCache> layers;
  SerialExecutor executor;
};

const char* lane_error() { return last_error.c_str(); }

const char* lane_report_columns() {
  static const std::string names = [] {
    std::string joined;
    for (const ReportColumn& column : kColumns) joined += (joined.empty() ? "" : ",") + std::string(column.name);
    return joined;
  }();
  return names.c_str();
}

Lane* lane_create(const LaneShape* shape, int32_t num_options, const char* const* names, const double* numbers) {
  Lane* lane = nullptr;
  succeeds([&] {
    bench::LaneOptions options;
    for (int32_t i = 0; i < num_options; ++i) bench::set_option(options, names[i], numbers[i]);
    validate(options.index, "lane_create");  // limits_of() divides by them
    lane = new Lane(*shape, options);
  });
  return lane;
}

void lane_destroy(Lane* lane) { delete lane; }

bool lane_prefill(Lane* lane, int32_t layer, const LanePrompt* prompt) {
  return succeeds([&] { lane->prefill(lane->layer_at(layer), *prompt); });
}

bool lane_decode(Lane* lane, int32_t layer, LaneStep* step) {
  return succeeds([&] { lane->decode(lane->layer_at(layer), *step); });
}
