// Clustering by the piece for all heads.
#include "quorum/cpu/segment_job.hpp"

#include <doctest/doctest.h>

#include "tests/support/cache.hpp"
#include "tests/support/random.hpp"
#include "tests/support/tokens.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

struct Setup {
  AttentionShape shape{6, 3, 32, 0.0f};
  IndexOptions options;
  test::ClusteredData data = test::clustered_data({1000, 3, 6, 32, 1, 9});
  test::TestCache cache{{1000, 3, 32, ElementType::f32, test::Layout::nhd}, data.keys, data.values};
  KvCacheView kv = cache.view();
  std::shared_ptr<Metrics> metrics = std::make_shared<Metrics>(3);

  Setup() {
    SerialExecutor executor;
    build_first_segments(input(), nullptr, test::token_run(0, 300), *metrics, executor, {});
  }
  BuildInput input() const { return {&kv, &shape, &options}; }
};

}  // namespace

TEST_CASE("segment job: any number of pieces and workers gives the same segment, and no more pieces than asked for") {
  const Setup setup;
  const auto tokens = test::token_run(300, 1000);
  SerialExecutor serial;
  const auto want = build_segments(setup.input(), tokens, *setup.metrics, serial, {});
  REQUIRE(want.size() == 1);
  for (const int workers : {1, 2, 5})
    for (const int pieces : {1, 2, 7, 1000}) {
      CAPTURE(workers);
      CAPTURE(pieces);
      ThreadExecutor executor(workers);
      SegmentJob job(setup.input(), setup.metrics, tokens, {});
      int calls = 0, done = 0;
      while (!job.done()) {
        const int did = job.advance(setup.input(), pieces, executor);
        CHECK(did <= pieces);
        CHECK((did == pieces || job.done()));
        done += did;
        ++calls;
      }
      CHECK(done >= 3 * 700 / kPieceTokens);
      CHECK(calls == int(ceil_div(done, pieces)));
      CHECK(job.advance(setup.input(), pieces, executor) == 0);
      CHECK(job.segment()->num_tokens == 700);
      for (size_t h = 0; h < 3; ++h) {
        const HeadSegment &got = job.segment()->heads[h], &other = want[0]->heads[h];
        CHECK(got.cluster_tokens == other.cluster_tokens);
        CHECK(got.centroids == other.centroids);
        CHECK(got.codes == other.codes);
        CHECK(got.value_means == other.value_means);
      }
    }
}
