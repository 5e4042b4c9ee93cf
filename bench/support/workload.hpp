// What the benchmarks decode: a recorded trace, or keys from a generator with clusters.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/support/huge_block.hpp"
#include "quorum/io/trace.hpp"
#include "quorum/quorum.hpp"

namespace quorum::bench {

// One layer of one sequence and the queries to decode; query i sees the first visible_tokens[i] tokens.
struct Workload {
  std::string name;
  AttentionShape shape;
  KvCacheView kv;
  QueryView queries;
  std::vector<int> visible_tokens;
  std::optional<QueryView> prompt_queries;
  int indexed_tokens = 0;  // the index is built on the first ones

  std::vector<std::shared_ptr<void>> memory;  // keeps the views alive

  QueryView query(int i, int count = 1) const {
    QueryView rows = queries;
    rows.data += i * rows.row_stride;
    rows.num_rows = count;
    return rows;
  }
  KvCacheView visible(int i) const { return kv.first(visible_tokens[size_t(i)]); }
};

// A trace, its keys and values copied to huge pages as an engine would hold them.
inline Workload trace_workload(const std::string& name, const std::string& path) {
  auto trace = std::make_shared<io::Trace>(io::Trace::open(path));
  Workload workload;
  workload.name = name;
  workload.shape = {trace->num_qo_heads, trace->num_kv_heads, trace->head_dim, trace->sm_scale};
  workload.kv = copy_cache(trace->kv_cache(), workload.shape, workload.memory);
  workload.queries = trace->query_view();
  for (const int position : trace->query_positions) workload.visible_tokens.push_back(position + 1);
  if (trace->num_prompt_queries > 0) workload.prompt_queries = trace->prompt_query_view();
  workload.indexed_tokens = trace->num_tokens - trace->num_queries;
  workload.memory.push_back(trace);
  return workload;
}

// Keys of a Gaussian mixture: topics of 32 tokens on average, of uneven size. As in a text, a topic lives in one stretch of it: four fifths
// of the tokens belong to topics of their own 4096 tokens, the others to any.
//
// A score is a topic part and an own part, both normal, with deviations of 3.2 and 0.9 nat: 2.5 % of the tokens then hold 90 % of a head's
// weight. Heads of a group share 80 % of the variance of their queries.
struct ClusteredOptions {
  int num_tokens = 0;
  int num_kv_heads = 8;
  int group_size = 4;
  int head_dim = 128;
  bool head_major = true;  // HND, else NHD
  int num_queries = 16;
  uint64_t seed = 1;
};

inline Workload clustered_workload(const std::string& name, const ClusteredOptions& options) {
  constexpr float kTopicPart = 3.2f, kOwnPart = 0.9f, kShared = 0.89442719f, kSeparate = 0.44721360f;
  const int n = options.num_tokens, heads = options.num_kv_heads, d = options.head_dim, topics = std::max(1, n / 32);
  const size_t elements = size_t(n) * size_t(heads) * size_t(d);
  auto keys = std::make_shared<HugeBlock>(elements * 2), values = std::make_shared<HugeBlock>(elements * 2);
  std::mt19937_64 random(options.seed);
  std::normal_distribution<float> normal;
  std::vector<float> noise(1 << 20);  // drawn once, read from random offsets: a normal per element would take minutes
  for (float& x : noise) x = normal(random);
  const auto noise_row = [&] { return noise.data() + random() % (noise.size() - size_t(d)); };
  std::vector<double> size(static_cast<size_t>(topics));
  for (double& x : size) x = std::exp(0.6 * double(normal(random)));
  const int stretch = std::min(topics, 4096 / 32), stretches = topics / stretch;
  std::discrete_distribution<int> any(size.begin(), size.end());
  std::vector<std::discrete_distribution<int>> own;
  for (int t = 0; t < stretches; ++t) own.emplace_back(size.begin() + t * stretch, size.begin() + (t + 1) * stretch);
  const auto pick = [&](int token) {
    const int t = std::min(token / 4096, stretches - 1);
    return random() % 5 == 0 ? any(random) : t * stretch + own[size_t(t)](random);
  };
  std::vector<float> key_topic(size_t(topics) * size_t(d)), value_topic(key_topic.size());
  for (int head = 0; head < heads; ++head) {
    for (float& x : key_topic) x = kTopicPart * normal(random);
    for (float& x : value_topic) x = 0.5f * normal(random);
    for (int i = 0; i < n; ++i) {
      const size_t topic = size_t(pick(i)) * size_t(d);
      const size_t row = (options.head_major ? size_t(head) * size_t(n) + size_t(i) : size_t(i) * size_t(heads) + size_t(head)) * size_t(d);
      const float *key_noise = noise_row(), *value_noise = noise_row();
      for (int c = 0; c < d; ++c) {
        keys->as<f16>()[row + size_t(c)] = from_float<f16>(key_topic[topic + size_t(c)] + kOwnPart * key_noise[c]);
        values->as<f16>()[row + size_t(c)] = from_float<f16>(value_topic[topic + size_t(c)] + value_noise[c]);
      }
    }
  }
  const int qo_heads = heads * options.group_size;
  auto queries = std::make_shared<std::vector<float>>(size_t(options.num_queries) * size_t(qo_heads) * size_t(d));
  for (int i = 0; i < options.num_queries * heads; ++i) {
    const float* common = noise_row();
    for (int g = 0; g < options.group_size; ++g)
      for (int c = 0; c < d; ++c)
        (*queries)[(size_t(i) * size_t(options.group_size) + size_t(g)) * size_t(d) + size_t(c)] =
            kShared * common[c] + kSeparate * normal(random);
  }
  Workload workload;
  workload.name = name;
  workload.shape = {qo_heads, heads, d, 0.0f};
  workload.kv = options.head_major ? KvCacheView::hnd(keys->as<f16>(), values->as<f16>(), n, n, d)
                                   : KvCacheView::nhd(keys->as<f16>(), values->as<f16>(), n, heads, d);
  workload.queries = QueryView::contiguous(queries->data(), options.num_queries, qo_heads, d);
  workload.visible_tokens.assign(size_t(options.num_queries), n);
  workload.indexed_tokens = n - 64;
  workload.memory = {keys, values, queries};
  return workload;
}

// Share of its tokens that a head needs for `target` of its weight, if it knows them all: mean over the query heads of KV head 0 and the
// first query.
inline double true_share(const Workload& workload, double target) {
  const int n = workload.visible_tokens[0], d = workload.shape.head_dim, group = workload.shape.group_size();
  std::vector<float> query(size_t(padded_dim(d))), key(query.size());
  std::vector<double> weight(static_cast<size_t>(n));
  double share = 0.0;
  for (int g = 0; g < group; ++g) {
    cpu::load_row(workload.queries.row(0, g), workload.queries.type, d, workload.shape.softmax_scale(), query.data());
    double largest = -1e300, total = 0.0, read = 0.0;
    for (int i = 0; i < n; ++i) {
      cpu::load_row(workload.kv.key_row(i, 0), workload.kv.type, d, 1.0f, key.data());
      weight[size_t(i)] = double(simd::dot(query.data(), key.data(), int(key.size())));
      largest = std::max(largest, weight[size_t(i)]);
    }
    for (double& w : weight) total += w = std::exp(w - largest);
    std::sort(weight.begin(), weight.end(), std::greater<>());
    int needed = 0;
    while (read < target * total) read += weight[size_t(needed++)];
    share += double(needed) / n / group;
  }
  return share;
}

}  // namespace quorum::bench
