#include "quorum/cuda/kernel/publish_index_kernel.cuh"

#include <doctest/doctest.h>

#include "tests/cuda/support/build_stage.cuh"

namespace quorum::test {
namespace {

std::vector<FlatHeadView> publish(const BuildStage& stage) {
  REQUIRE(stage.run(cuda::publish_index_kernel<cuda::kBuildThreads>, dim3(1), cuda::kBuildThreads) == cudaSuccess);
  return BuildStage::get(stage.params.index.heads, stage.params.num_kv_heads);
}

IndexOptions with_sinks(bool codes) {
  IndexOptions options = BuildStage::options(100, 9);
  options.num_sink_tokens = 4;
  options.window_tokens = 6;
  options.residual_codes = codes;
  return options;
}

TEST_CASE("publish: the views name the arrays of their head, the list what no cluster holds") {
  for (const bool codes : {true, false}) {
    BuildStage stage(96, 240, with_sinks(codes));
    cuda::BuildParams& p = stage.params;
    stage.set_clusters(stage.random_assignment(1));
    BuildStage::put(p.workspace.key_flags, std::vector<int32_t>(size_t(2 * p.key_tiles()), 0));
    BuildStage::put(p.workspace.value_flags, std::vector<int32_t>(size_t(2 * p.num_slots), 0));
    if (codes) {
      BuildStage::put(p.workspace.value_sums, std::vector<cuda::ValueSums>(size_t(2 * p.num_slots)));
      BuildStage::put(p.index.code_indptr, std::vector<int32_t>(size_t(2 * (p.num_slots + 1)), 0));
    }
    const std::vector<FlatHeadView> heads = publish(stage);
    for (int h = 0; h < 2; ++h) {
      const FlatHeadView& view = heads[size_t(h)];
      CHECK(view.num_indexed == 230);
      CHECK(view.indexed_end == 234);
      CHECK(view.live == nullptr);
      CHECK_FALSE(view.non_finite);
      CHECK(view.residual_codes == codes);
      CHECK(view.clusters.num_clusters == p.num_slots);
      CHECK(view.clusters.centroids == p.index.centroids + h * p.num_slots * 96);
      CHECK(view.clusters.value_means == p.index.value_means + h * p.num_slots * 96);
      CHECK(view.clusters.size == p.index.size + h * p.num_slots);
      CHECK(view.clusters.cluster_indptr == p.index.cluster_indptr + h * (p.num_slots + 1));
      CHECK(view.clusters.cluster_tokens == p.index.cluster_tokens + h * 230);
      CHECK(view.metric.inverse == p.index.inverse + h * 96 * 96);
      CHECK(view.metric.mean_key == p.index.mean_key + h * 96);
      CHECK(view.clusters.codes == (codes ? p.index.codes + int64_t(h) * p.max_code_blocks * code_block_bytes(96) : nullptr));
      CHECK(view.always.num_known == 240);
      REQUIRE(view.always.num_listed == 10);
      CHECK(BuildStage::get(view.always.listed, 10) == std::vector<int32_t>{0, 1, 2, 3, 234, 235, 236, 237, 238, 239});
    }
  }
}

TEST_CASE("publish: without an indexed token everything is listed") {
  BuildStage stage(64, 7, with_sinks(true));
  for (const FlatHeadView& view : publish(stage)) {
    CHECK(view.empty());
    CHECK(view.clusters.num_clusters == 0);
    CHECK(view.clusters.centroids == nullptr);
    CHECK(view.num_always(9) == 9);
    CHECK(BuildStage::get(view.always.listed, view.always.num_listed) == std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6});
  }
}

TEST_CASE("publish: flags of keys and values, each for its head") {
  for (const bool of_key : {true, false}) {
    BuildStage stage(64, 800, with_sinks(false));
    cuda::BuildParams& p = stage.params;
    std::vector<int32_t> keys(size_t(2 * p.key_tiles()), 0), values(size_t(2 * p.num_slots), 0);
    (of_key ? keys : values).back() = 1;
    BuildStage::put(p.workspace.key_flags, keys);
    BuildStage::put(p.workspace.value_flags, values);
    const std::vector<FlatHeadView> heads = publish(stage);
    CHECK_FALSE(heads[0].non_finite);
    CHECK(heads[1].non_finite);
  }
}

TEST_CASE("publish: moments are means over clusters of a segment and over tokens of the head") {
  BuildStage stage(64, 150, BuildStage::options(100, 10), 1);  // 100 tokens in 10 clusters, 50 in 5
  cuda::BuildParams& p = stage.params;
  std::vector<int32_t> assignment;
  for (int i = 0; i < 150; ++i) assignment.push_back(i < 100 ? i % 8 : i % 5);  // two stay empty
  stage.set_clusters(assignment);
  std::vector<cuda::ValueSums> sums(size_t(p.num_slots), {100.0f, 1000.0f});  // those of empty clusters do not count
  for (int j = 0; j < 8; ++j) sums[size_t(j)] = {float(j), 2.0f};
  for (int j = 0; j < 5; ++j) sums[size_t(16 + j)] = {10.0f, 3.0f};
  BuildStage::put(p.workspace.value_sums, sums);
  std::vector<int32_t> indptr(size_t(p.num_slots + 1), 3);
  BuildStage::put(p.index.code_indptr, indptr);
  std::vector<float> squares(size_t(p.max_code_blocks), kNan);  // beyond the last block
  squares[0] = 1.0f, squares[1] = 2.0f, squares[2] = 4.5f;
  BuildStage::put(p.workspace.code_squares, squares);
  BuildStage::put(p.workspace.key_flags, std::vector<int32_t>(size_t(p.key_tiles()), 0));
  BuildStage::put(p.workspace.value_flags, std::vector<int32_t>(size_t(p.num_slots), 0));
  const ValueMoments moments = publish(stage)[0].moments;
  CHECK(double(moments.spread) == doctest::Approx(3.5 * 100.0 / 150.0 + 10.0 * 50.0 / 150.0));
  CHECK(double(moments.mean_square) == doctest::Approx((8 * 2.0 + 5 * 3.0) / 150.0));
  CHECK(double(moments.code_scale) == doctest::Approx(7.5 / 150.0));
}

}  // namespace
}  // namespace quorum::test
