#include "quorum/cuda/kernel/score_clusters_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

// Puts queries into place as transform_queries_kernel leaves them: int8 rows that differ by head, constants that are easy to see.
void put_queries(const cuda::StepParams& p) {
  const size_t rows = size_t(p.num_rows()) * kMaxGroupSize;
  std::vector<int8_t> quantised(rows * 64);
  std::vector<cuda::QueryConstants> constants(rows);
  for (size_t row = 0; row < rows; ++row) {
    int sum = 0;
    for (size_t c = 0; c < 64; ++c) {
      const int x = int(row % kMaxGroupSize) < p.group ? int((row * 37 + c * 11) % 21) - 10 : 0;
      quantised[row * 64 + c] = int8_t(x);
      sum += x;
    }
    constants[row] = {0.25f * float(row), 0.5f, 1.0f, 0.001f, kCentroidZero * sum};
  }
  StepCase::put(p.workspace.quantised, quantised);
  StepCase::put(p.workspace.constants, constants);
  StepCase::put(p.workspace.scaled_queries, std::vector<float>(rows * 64, 0.125f));
}

template <int kHeadTiles>
void score(const cuda::StepParams& p) {
  const dim3 grid(unsigned(p.score_tiles), unsigned(p.shape.num_kv_heads), unsigned(p.num_sequences));
  REQUIRE(cuda::launch({grid, cuda::kScoreThreads}, cuda::score_clusters_kernel<64, kHeadTiles>, p) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

CaseOptions many_clusters(int group) {
  CaseOptions options;
  options.shape = {2 * group, 2, 64, 0.0f};
  options.num_tokens = {700, 2, 400};  // the second is attended densely
  options.index.cluster_size = 2;
  options.index.recluster_every = 32;
  return options;
}

template <int kHeadTiles>
void check_tiles(int group) {
  CAPTURE(group);
  const HostCase host(many_clusters(group));
  const DeviceCase device(host);
  DecodeOptions options;
  options.dense_below = 2;
  std::vector<float> first_weights;
  std::vector<double> first_sums;
  for (const int tiles : {1, 2, 5}) {  // one block of eight warps has several turns; five have blocks without a cluster
    CAPTURE(tiles);
    StepCase step(host, device, options, small_device(tiles * 6));
    cuda::StepParams& p = step.params;
    p.score_tiles = tiles;
    const size_t count = size_t(p.num_rows() * p.max_slots * p.group), states = size_t(p.num_rows() * tiles * p.group);
    StepCase::put(p.workspace.log_weight, std::vector<float>(count, 12345.0f));
    StepCase::put(p.workspace.cluster_weight, std::vector<AttentionState>(states, {7.0f, 7.0f}));
    put_queries(p);
    score<kHeadTiles>(p);
    const auto weights = download(p.workspace.log_weight, count);
    const auto of_clusters = download(p.workspace.cluster_weight, states), of_always = download(p.workspace.always_weight, states);
    std::vector<double> sums;
    for (int row = 0; row < p.num_rows(); ++row) {
      const ClusterHeadView& head = host.index(p.sequence_of(row)).heads[p.kv_head_of(row)];
      for (int g = 0; g < p.group; ++g) {
        AttentionState clusters, always;
        double sum = 0.0;
        int wrong = 0;
        for (int tile = 0; tile < tiles; ++tile) {
          const AttentionState& own = of_clusters[size_t((row * tiles + tile) * p.group + g)];
          if (p.sequence_of(row) == 1) wrong += own.max == 7.0f && own.sum == 7.0f ? 0 : 1;
          clusters = merge(clusters, own);
          if (p.sequence_of(row) != 1) always = merge(always, of_always[size_t((row * tiles + tile) * p.group + g)]);
        }
        for (int j = 0; j < p.max_slots; ++j) {
          const float weight = weights[size_t((row * p.max_slots + j) * p.group + g)];
          if (p.sequence_of(row) == 1 || j >= head.num_cluster_slots()) {
            wrong += weight == 12345.0f ? 0 : 1;
          } else if (cluster_at(head, j).size() == 0) {
            wrong += weight == -kInfinity ? 0 : 1;
          } else {
            sum += double(cluster_at(head, j).size()) * std::exp(double(weight));
          }
        }
        CHECK(wrong == 0);
        if (p.sequence_of(row) == 1) continue;
        CHECK(std::fabs(double(clusters.lse()) - std::log(sum)) <= 1e-4);
        sums.push_back(double(clusters.lse()));
        sums.push_back(double(always.lse()));
      }
    }
    if (first_weights.empty()) {
      first_weights = weights;
      first_sums = sums;
    }
    CHECK(weights == first_weights);
    REQUIRE(sums.size() == first_sums.size());
    for (size_t i = 0; i < sums.size(); ++i) CHECK(std::fabs(sums[i] - first_sums[i]) <= 1e-4);
  }
}

TEST_CASE("cuda scoring kernel: every cluster and always-read token counts once, however many blocks share a row") {
  check_tiles<1>(3);
  check_tiles<2>(9);
}

}  // namespace
}  // namespace quorum::test
