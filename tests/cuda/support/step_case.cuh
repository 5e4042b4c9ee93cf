// The parameters of a step over a DeviceCase, for tests that run single stages and kernels: what cuda::Decoder plans, without compiling
// the kernels of the other stages.
#pragma once

#include <algorithm>
#include <cmath>

#include "tests/cuda/support/device_case.cuh"

namespace quorum::test {

// Few processors, so that small cases have several tiles a block; the shared memory of the device that runs.
inline cuda::DeviceTuning small_device(int num_processors = 3) {
  cuda::DeviceTuning device = cuda::DeviceTuning::of_current();
  device.num_processors = num_processors;
  return device;
}

class StepCase {
 public:
  StepCase(const HostCase& host, const DeviceCase& on_device, const DecodeOptions& options,
           const cuda::DeviceTuning& device = small_device())
      : host_(host), device_(device) {
    const CaseOptions& o = host.options();
    const DecodeLimits limits = on_device.limits();
    const cuda::DecodeBatch batch = on_device.batch();
    params.shape = on_device.shape();
    params.shape.sm_scale = o.shape.softmax_scale();
    params.deal_query_rows(o.num_rows, o.causal, options.rows);
    params.options = options;
    params.queries = batch.queries;
    params.kv = batch.kv;
    params.heads = batch.heads;
    params.num_sequences = batch.num_sequences;
    params.max_tokens = limits.max_tokens;
    params.max_slots = int(round_up(limits.max_clusters, kClusterBlock));
    params.score_tiles = device.score_tiles(params.num_rows(), params.max_slots);
    params.attend_blocks = device.attend_blocks(o.shape.head_dim);
    params.num_draws = options.certificate.enabled || options.tail == Tail::calibrated ? samples_per_round(options) : 0;
    params.z = normal_quantile(options.certificate.confidence);
    lay_out();
    const size_t heads = size_t(params.num_sequences * o.num_rows) * size_t(o.shape.num_qo_heads);
    output_ = upload(std::vector<float>(heads * size_t(o.shape.head_dim), kNan));
    lse_ = upload(std::vector<float>(heads, kNan));
    reports_ = upload(std::vector<HeadReport>(heads));
    params.out = {output_.as<float>(), lse_.as<float>()};
    params.reports = reports_.as<HeadReport>();
  }

  // After params have changed: new memory, nothing in it.
  void lay_out() {
    memory_ = cuda::DeviceBuffer(cuda::lay_out(nullptr, device_, params));
    cuda::lay_out(memory_.as<>(), device_, params);
  }
  const cuda::DeviceTuning& device() const { return device_; }
  int num_rows() const { return params.num_rows(); }

  // What select_tokens would have decided: the row's list and nothing else.
  void set_lists(const std::vector<std::vector<int32_t>>& lists, DecodePath path = DecodePath::sparse) const {
    std::vector<cuda::RowPlan> plans(lists.size(), cuda::RowPlan{});
    std::vector<int32_t> counts;
    for (size_t row = 0; row < lists.size(); ++row) {
      cuda::RowPlan& plan = plans[row];
      plan.path = path;
      plan.complete = true;
      plan.num_tokens = host_.num_tokens()[row / size_t(params.shape.num_kv_heads)];
      plan.num_listed = int32_t(lists[row].size());
      for (float* array : {plan.reference, plan.read, plan.rest, plan.rest_factor, plan.used_rest}) std::fill_n(array, kMaxGroupSize, 0.0f);
      std::fill_n(plan.misses, kMaxGroupSize, false);
      counts.insert(counts.end(), {plan.num_listed, 0, 0});
      put(params.workspace.tokens + int64_t(row) * params.max_tokens, lists[row]);
    }
    put(params.workspace.plan, plans);
    put(params.workspace.counts, counts);
  }
  template <class T>
  static void put(T* place, const std::vector<T>& values) {
    if (values.empty()) return;
    cuda::check(cudaMemcpy(place, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "StepCase", "cudaMemcpy");
  }
  std::vector<cuda::RowPlan> plans() const { return download(params.workspace.plan, size_t(num_rows())); }
  CaseResult result() const {
    cuda::check(cudaDeviceSynchronize(), "StepCase", "cudaDeviceSynchronize");
    const size_t heads = size_t(params.num_sequences * params.num_query_rows) * size_t(params.shape.num_qo_heads);
    return {download(output_.as<float>(), heads * size_t(params.shape.head_dim)), download(lse_.as<float>(), heads),
            download(reports_.as<HeadReport>(), heads)};
  }

  cuda::StepParams params;

 private:
  const HostCase& host_;
  cuda::DeviceTuning device_;
  cuda::DeviceBuffer memory_, output_, lse_, reports_;
};

// Largest difference of two arrays, over the largest magnitude of the second; NaN if either has one.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0.0, scale = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double(a[i]) - double(b[i]));
    if (!(difference <= largest)) largest = difference;
    scale = std::max(scale, std::fabs(double(b[i])));
  }
  return largest / scale;
}

}  // namespace quorum::test
