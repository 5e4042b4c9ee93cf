// One row to choose from, made by hand: sizes of clusters and their log weights as scoring would have left them, and what the rules of
// algorithm.md sections 3, 4 and 8 choose, found on the host by sorting.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quorum/core/cluster_order.hpp"
#include "quorum/cuda/select_tokens.cuh"
#include "quorum/cuda/workspace.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {

class ChoiceCase {
 public:
  static constexpr int kSinks = 4, kWindow = 3;

  // sizes: of the clusters, a multiple of 16. log_weights: [cluster][group]. always: log weight of what is always read, for all heads.
  ChoiceCase(std::vector<int> sizes, std::vector<float> log_weights, int group, float always, const DecodeOptions& options)
      : sizes_(std::move(sizes)),
        log_weights_(std::move(log_weights)),
        group_(group),
        always_(always),
        indexed_(std::accumulate(sizes_.begin(), sizes_.end(), 0)),
        size_(std::vector<float>(sizes_.begin(), sizes_.end())),
        indptr_(first_tokens()),
        tokens_(reversed(indexed_)),
        num_tokens_(std::vector<int32_t>{num_tokens()}),
        sinks_(std::vector<int32_t>{0, 1, 2, 3}),
        head_(1) {
    static_assert(kSinks == 4);
    FlatHeadView head;
    head.clusters.num_clusters = num_clusters();
    head.clusters.size = size_.data();
    head.clusters.cluster_indptr = indptr_.data();
    head.clusters.cluster_tokens = tokens_.data();
    head.num_indexed = indexed_;
    head.always = {sinks_.data(), kSinks, kSinks + indexed_};
    put(head_.data(), std::vector<FlatHeadView>{head});
    params.shape = {group, 1, 64, 0.125f};
    params.deal_query_rows(1, true, RowSets::shared);
    params.options = options;
    params.heads = head_.data();
    params.kv.num_tokens = num_tokens_.data();
    params.num_sequences = params.score_tiles = params.attend_blocks = 1;
    params.max_tokens = num_tokens();
    params.max_slots = num_clusters();
    params.num_draws = options.certificate.enabled || options.tail == Tail::calibrated ? samples_per_round(options) : 0;
    params.num_rounds = 3;
    params.dense_round = options.certificate.policy == MissPolicy::dense ? 2 : -1;
    const cuda::DeviceTuning device{1, true};
    memory_ = cuda::DeviceBuffer(cuda::lay_out(nullptr, device, params));
    cuda::lay_out(memory_.as<>(), device, params);
    put(params.workspace.log_weight, log_weights_);
    std::vector<AttentionState> of_clusters, of_always;
    for (int g = 0; g < group; ++g) {
      double sum = 0.0;
      for (int j = 0; j < num_clusters(); ++j) sum += weight(j, g);
      totals_.push_back(always_weight() + sum);
      of_clusters.push_back({0.0f, float(sum)});
      of_always.push_back({always, 1.0f});
    }
    put(params.workspace.cluster_weight, of_clusters);
    put(params.workspace.always_weight, of_always);
  }

  template <class T>
  static void put(T* place, const std::vector<T>& values) {
    cuda::check(cudaMemcpy(place, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "ChoiceCase", "cudaMemcpy");
  }
  template <class T>
  static std::vector<T> get(const T* place, size_t count) {
    std::vector<T> values(count);
    cuda::check(cudaMemcpy(values.data(), place, count * sizeof(T), cudaMemcpyDeviceToHost), "ChoiceCase", "cudaMemcpy");
    return values;
  }

  int num_clusters() const { return int(sizes_.size()); }
  int num_indexed() const { return indexed_; }
  int num_tokens() const { return kSinks + indexed_ + kWindow; }
  int size(int cluster) const { return sizes_[size_t(cluster)]; }
  double weight(int cluster, int g) const {
    return double(sizes_[size_t(cluster)]) * std::exp(double(log_weights_[size_t(cluster * group_ + g)]));
  }
  double always_weight() const { return std::exp(double(always_)); }
  double total(int g) const { return totals_[size_t(g)]; }
  int bucket(int cluster) const {
    double largest = -1e30;
    for (int g = 0; g < group_; ++g) largest = std::max(largest, double(log_weights_[size_t(cluster * group_ + g)]) - std::log(total(g)));
    return order_bucket(float(largest));
  }

  // Clusters that the rules choose, in reading order.
  std::vector<int> expected() const {
    std::vector<int> order;
    for (int j = 0; j < num_clusters(); ++j)
      if (size(j) > 0) order.push_back(j);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return bucket(a) < bucket(b); });
    const DecodeOptions& o = params.options;
    std::vector<int> chosen;
    std::vector<double> read(size_t(group_), always_weight());
    int tokens = 0;
    for (const int j : order) {
      bool enough = tokens >= (o.fixed_budget > 0 ? o.fixed_budget : o.min_tokens);
      for (int g = 0; g < group_ && o.fixed_budget == 0; ++g) enough = enough && read[size_t(g)] >= double(o.target_ratio) * total(g);
      if (enough || tokens + size(j) > o.max_tokens) break;
      chosen.push_back(j);
      tokens += size(j);
      for (int g = 0; g < group_; ++g) read[size_t(g)] += weight(j, g);
    }
    return chosen;
  }
  // The list of a row that reads sinks, window, and these clusters in these groups, by id inside each.
  std::vector<int32_t> list_of(std::vector<std::vector<int>> groups) const {
    std::vector<int32_t> list;
    for (int i = 0; i < kSinks; ++i) list.push_back(i);
    for (int i = 0; i < kWindow; ++i) list.push_back(kSinks + indexed_ + i);
    for (std::vector<int>& clusters : groups) {
      std::sort(clusters.begin(), clusters.end());
      for (const int j : clusters)
        for (int i = 0; i < size(j); ++i) list.push_back(token(j, i));
    }
    return list;
  }
  int32_t token(int cluster, int i) const {
    return kSinks + indexed_ - 1 - (std::accumulate(sizes_.begin(), sizes_.begin() + cluster, 0) + i);
  }
  int cluster_of(int32_t token) const {
    int place = kSinks + indexed_ - 1 - token, cluster = 0;
    while (place >= size(cluster)) place -= size(cluster++);
    return cluster;
  }

  void select(int round = 0) {
    params.round = round;
    cuda::check(cuda::prepare_select_tokens(params.group, params.max_slots, params.select_blocks), "ChoiceCase", "prepare_select_tokens");
    cuda::check(cuda::select_tokens(params, nullptr), "ChoiceCase", "select_tokens");
    cuda::check(cudaDeviceSynchronize(), "ChoiceCase", "cudaDeviceSynchronize");
  }
  cuda::RowPlan plan() const { return get(params.workspace.plan, 1)[0]; }
  std::vector<int32_t> counts() const { return get(params.workspace.counts, 3); }
  std::vector<int32_t> list() const { return get(params.workspace.tokens, size_t(plan().num_listed)); }
  std::vector<int32_t> tail() const { return get(params.workspace.tail_clusters, size_t(plan().num_tail)); }
  std::vector<cuda::TokenDraw> draws() const { return get(params.workspace.draws, size_t(plan().num_draws)); }

  cuda::StepParams params;

 private:
  std::vector<int32_t> first_tokens() const {
    std::vector<int32_t> indptr{0};
    for (const int n : sizes_) indptr.push_back(indptr.back() + n);
    return indptr;
  }
  static std::vector<int32_t> reversed(int count) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(kSinks + count - 1 - i);
    return tokens;
  }

  std::vector<int> sizes_;
  std::vector<float> log_weights_;
  std::vector<double> totals_;  // [group]
  int group_;
  float always_;
  int indexed_;
  DeviceArray<float> size_;
  DeviceArray<int32_t> indptr_, tokens_, num_tokens_, sinks_;
  DeviceArray<FlatHeadView> head_;
  cuda::DeviceBuffer memory_;
};

}  // namespace quorum::test
