// A build whose kernels are run one by one, over rows that a test makes up.
#pragma once

#include <random>

#include "quorum/cuda/build_layout.cuh"
#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {

class BuildStage {
 public:
  BuildStage(int head_dim, int num_tokens, const IndexOptions& options, int num_kv_heads = 2)
      : params(cuda::plan_build({num_kv_heads, num_kv_heads, head_dim, 0.0f}, options, num_tokens)) {
    index_ = cuda::DeviceBuffer(cuda::lay_out_index(nullptr, params));
    workspace_ = cuda::DeviceBuffer(cuda::lay_out_build(nullptr, params));
    cuda::lay_out_index(index_.as<>(), params);
    cuda::lay_out_build(workspace_.as<>(), params);
  }
  // No sinks and no window: row i is token i.
  static IndexOptions options(int segment_tokens, int cluster_size, int iterations = 2) {
    IndexOptions options;
    options.num_sink_tokens = 0;
    options.segment_tokens = segment_tokens;
    options.cluster_size = cluster_size;
    options.iterations = iterations;
    return options;
  }

  template <class T>
  static void put(T* place, const std::vector<T>& values) {
    if (!values.empty())
      cuda::check(cudaMemcpy(place, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "BuildStage", "cudaMemcpy");
  }
  template <class T>
  static std::vector<T> get(const T* place, int64_t count) {
    cuda::check(cudaDeviceSynchronize(), "BuildStage", "cudaDeviceSynchronize");
    std::vector<T> values(static_cast<size_t>(count));
    if (count > 0)
      cuda::check(cudaMemcpy(values.data(), place, size_t(count) * sizeof(T), cudaMemcpyDeviceToHost), "BuildStage", "cudaMemcpy");
    return values;
  }

  // Random rows, those of a `topic` alike, so that there is something to cluster.
  void make_rows(uint64_t seed, int topics = 6) {
    std::mt19937_64 random(seed);
    const int64_t d = params.head_dim, rows = params.num_kv_heads * params.padded_rows();
    std::vector<int8_t> centre(size_t(topics * d)), bytes(static_cast<size_t>(rows * d));
    for (int8_t& x : centre) x = int8_t(int(random() % 161) - 80);
    std::vector<cuda::RowConstants> constants(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      const size_t topic = size_t(random() % uint64_t(topics)) * size_t(d);
      cuda::RowConstants& own = constants[size_t(r)];
      own.scale = 0.01f * float(1 + random() % 3);
      own.inverse_scale = 1.0f / own.scale;
      for (int64_t c = 0; c < d; ++c) {
        const int q = int(centre[topic + size_t(c)]) + int(random() % 41) - 20;
        bytes[size_t(r * d + c)] = int8_t(q);
        own.zero_dot += 128 * q;
        own.square += q * q;
      }
    }
    put(params.workspace.rows, bytes);
    put(params.workspace.constants, constants);
    rows_ = bytes;
    constants_ = constants;
  }
  double row(int head, int i, int c) const {
    const int64_t at = head * params.padded_rows() + i;
    return double(constants_[size_t(at)].scale) * double(rows_[size_t(at * params.head_dim + c)]);
  }
  // Tokens by cluster as sort_tokens_kernel leaves them; assignment: of the rows of all heads, within their segment.
  void set_clusters(const std::vector<int32_t>& assignment) {
    std::vector<int32_t> tokens, indptr;
    std::vector<float> size;
    for (int h = 0; h < params.num_kv_heads; ++h) {
      const int32_t* own = assignment.data() + params.tokens_of(h);
      for (int s = 0, placed = 0; s < params.num_segments; ++s) {
        const cuda::BuildSegment segment = params.segment(s);
        for (int j = 0; j < segment.num_slots; ++j) {
          indptr.push_back(placed);
          for (int i = 0; i < segment.num_rows; ++i)
            if (own[segment.first_row + i] == j) {
              tokens.push_back(params.tokens.first + segment.first_row + i);
              ++placed;
            }
          size.push_back(float(placed - indptr.back()));
        }
      }
      indptr.push_back(params.tokens.count);
    }
    put(params.workspace.assignment, assignment);
    put(params.index.cluster_tokens, tokens);
    put(params.index.cluster_indptr, indptr);
    put(params.index.size, size);
  }
  std::vector<int32_t> random_assignment(uint64_t seed) const {
    std::mt19937_64 random(seed);
    std::vector<int32_t> assignment;
    for (int i = 0; i < params.num_kv_heads * params.tokens.count; ++i) {
      const cuda::BuildSegment segment = params.segment(i % params.tokens.count / params.segment_tokens);
      const int cluster = int(random() % uint64_t(segment.num_clusters));
      assignment.push_back(cluster % 5 == 3 ? 0 : cluster);  // some stay empty
    }
    return assignment;
  }
  // Tokens that changed their cluster in a round, the same for all segments.
  void set_changed(int round, int count) {
    for (int h = 0; h < params.num_kv_heads; ++h)
      for (int s = 0; s < params.num_segments; ++s) put(&params.changed(round, s, h), std::vector<int32_t>{count});
  }

  // grid: without the heads.
  cudaError_t run(void (*kernel)(cuda::BuildParams), dim3 grid, int threads, int64_t dynamic_shared = 0) const {
    if (dynamic_shared > 0)
      if (const cudaError_t status = cuda::allow_dynamic_shared(kernel, dynamic_shared); status != cudaSuccess) return status;
    grid.z = unsigned(params.num_kv_heads);
    return cuda::launch({.grid = grid, .threads = threads, .dynamic_shared = dynamic_shared}, kernel, params);
  }

  cuda::BuildParams params;

 private:
  cuda::DeviceBuffer index_, workspace_;
  std::vector<int8_t> rows_;
  std::vector<cuda::RowConstants> constants_;
};

}  // namespace quorum::test
