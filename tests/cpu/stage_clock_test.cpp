// The stage clock: what is measured goes to the right stage, and nothing is when it is off.
#include "quorum/cpu/stage_clock.hpp"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

#include "quorum/quorum.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

TEST_CASE("time goes to the stage that ends, and a clock that is off stays at zero") {
  using namespace std::chrono_literals;
  cpu::StageClock clock;
  clock.start();
  clock.end(&StageTimes::score);
  CHECK(clock.times().score == 0.0);
  clock.enable(true);
  clock.start();
  std::this_thread::sleep_for(2ms);
  clock.end(&StageTimes::select);
  clock.end(&StageTimes::tail);
  CHECK(clock.times().select >= 0.002);
  CHECK(clock.times().tail >= 0.0);
  CHECK(clock.times().score == 0.0);
  CHECK(clock.times().attend == 0.0);
  clock.enable(true);
  CHECK(clock.times().select == 0.0);
}

TEST_CASE("a decoder sums the stages of its workers, by clusters and by tokens") {
  for (const ReadUnit unit : {ReadUnit::clusters, ReadUnit::tokens}) {
    const AttentionShape shape{4, 2, 64, 0.0f};
    const int tokens = 4096;
    const std::vector<float> keys = test::gaussian_floats(int64_t(tokens) * 2 * 64, 11), queries = test::gaussian_floats(4 * 64, 12);
    const KvCacheView kv = KvCacheView::nhd(keys.data(), keys.data(), tokens, 2, 64);
    ThreadExecutor executor(2);
    ClusterIndex index(shape, {});
    index.build(kv, executor);
    DecodeOptions options;
    options.unit = unit;
    Decoder decoder(shape, options, {1, tokens, index.num_cluster_slots(), 2});
    const SequenceView sequence{kv, &index.view()};
    std::vector<float> output(4 * 64);
    const auto decode = [&] {
      return decoder.decode(QueryView::contiguous(queries.data(), 1, 4, 64), {&sequence, 1}, {output.data(), nullptr}, {}, executor);
    };
    REQUIRE(decode() == DecodeStatus::ok);
    CHECK(decoder.stage_times().total() == 0.0);
    decoder.record_stage_times(true);
    REQUIRE(decode() == DecodeStatus::ok);
    const StageTimes once = decoder.stage_times();
    for (const double seconds : {once.score, once.select, once.attend, once.tail}) CHECK(seconds > 0.0);
    CHECK((once.scan > 0.0) == (unit == ReadUnit::tokens));
    CHECK((once.sample > 0.0) == (unit == ReadUnit::clusters));  // codes need no sample without a certificate
    CHECK(once.total() == doctest::Approx(once.score + once.select + once.scan + once.attend + once.sample + once.tail));
    REQUIRE(decode() == DecodeStatus::ok);
    CHECK(decoder.stage_times().total() > once.total());
    decoder.record_stage_times(false);
    CHECK(decoder.stage_times().total() == 0.0);
  }
}
