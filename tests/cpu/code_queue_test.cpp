// Blocks of codes in the order of the candidates, each with what belongs to it, however long clusters are and whoever takes them.
#include "quorum/cpu/code_queue.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/support/coded_stage.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;
using test::CodedStage;

namespace {

// Goes through a worker's part and checks every block against its cluster.
void check_queue(const CodedStage& stage, const cpu::HeadTask& task, const cpu::CodedState& coded) {
  const cpu::CandidateRange range = cpu::candidate_range(task, coded.candidates);
  if (range.first == range.last) return;
  cpu::ScanQueries queries;
  for (int g = 0; g < task.num_heads; ++g) queries.log_total[g] = 1.5f;
  cpu::CodeQueue queue(task, stage.head(), queries, range);
  const int64_t bytes = code_block_bytes(task.head_dim());
  int at = 0;
  for (int candidate = range.first; candidate < range.last; ++candidate) {
    const int id = task.shared->cluster[candidate], block = id / kClusterBlock, lane = id % kClusterBlock;
    const ClusterRef cluster = cluster_at(stage.head(), id);
    const cpu::ClusterCodes codes = cpu::codes_of(cluster, bytes);
    for (int first = 0; first < cluster.num_tokens(); first += kCodeBlock, ++at) {
      queue.take_next();
      const cpu::CodeBlock& taken = queue[at];
      CHECK(taken.candidate == candidate);
      CHECK(taken.num_tokens == std::min(kCodeBlock, cluster.num_tokens() - first));
      CHECK(taken.at.codes == codes.codes + first / kCodeBlock * bytes);
      CHECK(taken.at.scale == codes.scale + first);
      CHECK(taken.at.tokens == (task.filters_clusters ? cluster.tokens() + first : nullptr));
      for (int g = 0; g < task.num_heads; ++g) {
        const float log_weight = task.shared->log_weight[(int64_t(block) * task.num_heads + g) * kClusterBlock + lane];
        CHECK(taken.scores->log_share[g] == doctest::Approx((log_weight - 1.5f) * kLog2e).epsilon(1e-5));
        CHECK(taken.scores->expected[g] == 1.0f);
      }
    }
  }
  const uint8_t* last = queue[at - 1].at.codes;
  CHECK(queue.take_next() == last);  // the end has been reached long ago
}

void check_all(BatchSpec spec, int workers) {
  const Batch batch(spec);
  CodedStage stage(batch, workers);
  stage.scan();
  REQUIRE(stage.coded.candidates.clusters > 0);
  stage.step([&](const cpu::HeadTask& task, cpu::ReadState&, cpu::CodedState& coded) {
    for (int w = 0; w < workers; ++w) {
      task.team.sync();
      if (w == task.team.worker) check_queue(stage, task, coded);
    }
  });
}

}  // namespace

TEST_CASE("a queue gives every block of a worker's candidates once, in order") {
  for (const int workers : {1, 2, 3})
    for (const int head_dim : {8, 64, 72, 256}) {
      const std::string what = std::to_string(workers) + " workers, head_dim " + std::to_string(head_dim);
      CAPTURE(what);
      BatchSpec spec = test::coded_spec(900, 3, head_dim);
      spec.index.segment_tokens = 300;
      check_all(spec, workers);
    }
}

TEST_CASE("clusters of one token and of hundreds") {
  for (const int cluster_size : {1, 400}) {
    BatchSpec spec = test::coded_spec(900, 2, 64);
    spec.index.cluster_size = cluster_size;
    check_all(spec, 2);
  }
}
