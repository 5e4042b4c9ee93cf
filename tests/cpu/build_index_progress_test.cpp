// Progress of building, and stopping it: what is reported, and that an index which was not finished is as it was.
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/decode_batch.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

const AttentionShape kShape{6, 3, 32, 0.0f};

IndexOptions options() {
  IndexOptions options;
  options.segment_tokens = 100;
  options.recluster_every = 50;
  return options;
}

test::TestCache cache_of(int num_tokens) {
  const auto data = test::clustered_data({num_tokens, 3, 6, 32, 1, 111});
  return {{num_tokens, 3, 32, ElementType::f16, test::Layout::nhd}, data.keys, data.values};
}

// Calls of a progress callback, and whether two of them were ever under way at once.
struct Calls {
  std::vector<std::pair<int, int>> done_total;
  std::atomic<int> inside{0};
  bool overlapped = false;
  int stop_at = 0;  // 0: never

  BuildProgress callback() {
    return [this](int done, int total) {
      overlapped = inside.fetch_add(1) != 0 || overlapped;
      done_total.emplace_back(done, total);
      for (int i = 0; i < 100; ++i) cpu::spin_pause();  // long enough for another worker to come by
      inside.fetch_sub(1);
      return done != stop_at;
    };
  }
  // 1 to total, ascending, each once, one at a time.
  bool complete(int total) const {
    bool all = !overlapped && int(done_total.size()) == total;
    for (size_t i = 0; i < done_total.size(); ++i) all = all && done_total[i] == std::pair(int(i) + 1, total);
    return all;
  }
};

// What an index is to its users: extent, bytes, what its view points at, and what decoding makes of it.
struct Snapshot {
  int num_tokens, begin, end, num_segments, slots;
  int64_t bytes;
  const ClusterHeadView* heads;
  const SegmentView* segments;
  const uint8_t* centroids;
  std::vector<float> output;

  // The index must have indexed something of the cache; the decoder sees the cache's first index.num_tokens() tokens.
  Snapshot(const ClusterIndex& index, const test::TestCache& cache)
      : num_tokens(index.num_tokens()),
        begin(index.options().num_sink_tokens),
        end(index.view().indexed_end),
        num_segments(index.view().heads[0].num_segments),
        slots(index.num_cluster_slots()),
        bytes(index.bytes()),
        heads(index.view().heads),
        segments(index.view().heads[0].segments),
        centroids(segments[0].centroids),
        output(size_t(kShape.num_qo_heads * kShape.head_dim), kNan) {
    DecodeOptions options;
    options.dense_below = 0;
    Decoder decoder(kShape, options, {1, 2000, 0, 1});
    const auto queries = test::gaussian_floats(kShape.num_qo_heads * kShape.head_dim, 112);
    const QueryView query = QueryView::contiguous(queries.data(), 1, kShape.num_qo_heads, kShape.head_dim);
    const std::vector<SequenceView> sequences{{cache.view().first(num_tokens), &index.view()}};
    SerialExecutor executor;
    REQUIRE(decoder.decode(query, sequences, {output.data(), nullptr}, {}, executor) == DecodeStatus::ok);
    for (const float x : output) REQUIRE(std::isfinite(x));
  }
  bool operator==(const Snapshot&) const = default;
};

// Message of the cancelled error that `call` throws.
template <class Call>
std::string cancelled_error(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() == ErrorCode::cancelled ? error.what() : "other code";
  }
  return "no error";
}

const std::string kStopped = "ClusterIndex: the progress callback asked to stop";

}  // namespace

TEST_CASE("progress: one call for each segment and head, ascending, one at a time, for build and append") {
  const auto cache = cache_of(950);
  for (const int workers : {1, 2, 4}) {
    CAPTURE(workers);
    ThreadExecutor executor(workers);
    ClusterIndex index(kShape, options());
    Calls built, appended, none;
    index.build(cache.view().first(700), nullptr, executor, built.callback());
    CHECK(built.complete(7 * 3));  // 696 tokens in segments of 100
    index.append(cache.view().first(749), executor, none.callback());
    CHECK(none.done_total.empty());  // 49 tokens wait
    index.append(cache.view(), executor, appended.callback());
    CHECK(appended.complete(3 * 3));
    CHECK(index.view().indexed_end == 950);
    Calls again;
    index.build(cache.view().first(4), nullptr, executor, again.callback());
    CHECK(again.done_total.empty());  // nothing but sinks
  }
}

TEST_CASE("progress: an append that builds reports like a build") {
  const auto cache = cache_of(300);
  SerialExecutor executor;
  ClusterIndex index(kShape, options());
  Calls calls;
  index.append(cache.view(), executor, calls.callback());
  CHECK(calls.complete(3 * 3));
}

TEST_CASE("a callback changes nothing of the index, and an empty one is none") {
  const auto cache = cache_of(500);
  SerialExecutor executor;
  ClusterIndex index(kShape, options()), reported(kShape, options());
  Calls calls;
  index.build(cache.view(), nullptr, executor, BuildProgress());
  reported.build(cache.view(), nullptr, executor, calls.callback());
  CHECK(Snapshot(index, cache).output == Snapshot(reported, cache).output);
}

TEST_CASE("stopping a build or an append: Error(cancelled), and the index is as it was") {
  const auto cache = cache_of(1200);
  for (const int workers : {1, 2, 4})
    for (const bool append : {false, true})
      for (const int stop_at : {1, 2, 14, 15}) {
        CAPTURE(workers);
        CAPTURE(append);
        CAPTURE(stop_at);
        ThreadExecutor executor(workers);
        ClusterIndex index(kShape, options());
        index.build(cache.view().first(700), executor);
        const Snapshot before(index, cache);
        Calls calls;
        calls.stop_at = stop_at;
        const std::string message = cancelled_error([&] {
          if (append)
            index.append(cache.view(), executor, calls.callback());
          else
            index.build(cache.view().first(500), nullptr, executor, calls.callback());
        });
        CHECK(message == kStopped);
        CHECK(int(calls.done_total.size()) == stop_at);  // not asked again
        CHECK_FALSE(calls.overlapped);
        CHECK(calls.done_total.back() == std::pair(stop_at, 5 * 3));
        CHECK(Snapshot(index, cache) == before);
        // The same again without stopping.
        index.append(cache.view(), executor);
        CHECK(index.num_tokens() == 1200);
        CHECK(index.view().indexed_end == 1200);
      }
}

TEST_CASE("stopping the first build, or the append that builds, leaves an empty index") {
  const auto cache = cache_of(300);
  SerialExecutor executor;
  for (const bool append : {false, true}) {
    ClusterIndex index(kShape, options());
    const auto stop = [](int, int) { return false; };
    CHECK(cancelled_error([&] {
            if (append)
              index.append(cache.view(), executor, stop);
            else
              index.build(cache.view(), nullptr, executor, stop);
          }) == kStopped);
    CHECK(index.view().empty());
    CHECK(index.num_tokens() == 0);
    CHECK(index.bytes() == 0);
  }
}

TEST_CASE("an exception of the callback itself reaches the caller, and the index is as it was") {
  const auto cache = cache_of(1200);
  for (const int workers : {1, 3})
    for (const bool append : {false, true}) {
      CAPTURE(workers);
      CAPTURE(append);
      ThreadExecutor executor(workers);
      ClusterIndex index(kShape, options());
      index.build(cache.view().first(700), executor);
      const Snapshot before(index, cache);
      int calls = 0;
      const BuildProgress progress = [&](int done, int) -> bool {
        ++calls;
        if (done == 4) throw std::out_of_range("from the callback");
        return true;
      };
      std::string message;
      try {
        if (append)
          index.append(cache.view(), executor, progress);
        else
          index.build(cache.view(), nullptr, executor, progress);
      } catch (const std::out_of_range& error) {
        message = error.what();
      }
      CHECK(message == "from the callback");
      CHECK(calls == 4);
      CHECK(Snapshot(index, cache) == before);
    }
}
