// Totals of the second and third stage as a whole.
#include "quorum/cpu/weigh_candidates.hpp"

#include <doctest/doctest.h>

#include "tests/support/coded_stage.hpp"
#include "tests/support/near.hpp"

using namespace quorum;
using test::Batch;
using test::CodedStage;

TEST_CASE("coded, expected and outside weights are the sums they say; the rest is expected plus outside") {
  const Batch batch(test::coded_spec(1500));
  DecodeOptions options;
  options.candidate_coverage = 0.8f;
  for (const int workers : {1, 2}) {
    CodedStage stage(batch, workers, options);
    stage.scan();
    REQUIRE(stage.finite);
    for (int g = 0; g < stage.num_heads(); ++g) {
      double coded = 0.0, estimate = 0.0, outside = 0.0;
      for (int i = 0; i < stage.coded.candidates.clusters; ++i) {
        coded += stage.mass(i, g);
        estimate += stage.estimate(stage.shared().cluster[i], g);
      }
      for (int c = 0; c < stage.head().num_cluster_slots(); ++c)
        if (!stage.is_candidate(c)) outside += stage.estimate(c, g);
      CHECK(test::near(stage.coded.coded[g], coded, 1e-4 * coded));
      CHECK(stage.coded.expected[g] >= stage.coded.coded[g]);
      CHECK(stage.state.read[g] + estimate >= 0.8 * stage.coded.total[g] * 0.999);
      const double factor = std::min(1.0, stage.coded.expected[g] / estimate);
      CHECK(test::near(stage.coded.outside_factor[g], factor, 1e-3));
      CHECK(test::near(stage.coded.outside[g], factor * outside, 1e-3 * stage.coded.total[g]));
      CHECK(test::near(stage.state.rest[g], stage.coded.expected[g] + stage.coded.outside[g], 1e-6 * stage.state.rest[g]));
      CHECK(stage.state.rest_factor[g] == double(kCodedMargin));
    }
  }
}
