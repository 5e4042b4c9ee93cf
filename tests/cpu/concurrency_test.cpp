// The contract of docs/reliability.md between threads: readers of an index, each with a decoder of its own, are not disturbed by copies of
// it that are appended to, built anew and destroyed meanwhile. Small, since it runs under the thread sanitizer.
#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;

namespace {

constexpr int kPrompt = 400, kLast = 520, kReaders = 3, kRounds = 6;
const AttentionShape kShape{4, 2, 32, 0.0f};

// By codes, by whole clusters, with a certificate.
std::vector<DecodeOptions> modes() {
  std::vector<DecodeOptions> modes(3);
  modes[1].unit = ReadUnit::clusters;
  modes[2].certificate.enabled = true;
  for (DecodeOptions& options : modes) options.dense_below = 0;
  return modes;
}

// A cache of kLast tokens, of which an index covers the prompt, and what every mode makes of that when nothing else runs.
struct Shared {
  test::ClusteredData data = test::clustered_data({kLast, 2, 4, 32, 1, 5});
  test::TestCache cache{{kLast, 2, 32, ElementType::f16, test::Layout::nhd}, data.keys, data.values};
  test::TestQueries queries{ElementType::f32, 1, 4, 32, data.queries};
  std::optional<ClusterIndex> index{std::in_place, kShape, index_options()};
  std::vector<test::DecodeResult> quiet;

  static IndexOptions index_options() {
    IndexOptions options;
    options.window_tokens = 16;
    options.recluster_every = 32;
    options.segment_tokens = 128;
    return options;
  }
  Shared() {
    test::build_index(*index, kv(kPrompt));
    SerialExecutor executor;
    for (size_t m = 0; m < modes().size(); ++m) quiet.push_back(decode(m, index->view(), executor));
  }
  KvCacheView kv(int length) const { return cache.view().first(length); }
  test::DecodeResult decode(size_t mode, const ClusterIndexView& view, Executor& executor) const {
    Decoder decoder(kShape, modes()[mode], {1, kLast, 0, executor.num_workers()});
    test::DecodeResult result(kShape, 1);
    const SequenceView sequence{kv(kPrompt), &view};
    result.status = decoder.decode(queries.view(), {&sequence, 1}, result.out(), result.reports, executor);
    return result;
  }
  // Decodes in every mode; how many results are not those of the quiet run, to the bit.
  int differences(const ClusterIndexView& view, Executor& executor) const {
    int count = 0;
    for (size_t m = 0; m < quiet.size(); ++m) {
      const auto result = decode(m, view, executor);
      count += result.status != DecodeStatus::ok || !result.same_bits(quiet[m]);
    }
    return count;
  }
};

// Runs `work` on kReaders threads over and over, at least kRounds times each, until `other` has returned.
template <class Work, class Other>
void run_beside(Work&& work, Other&& other) {
  std::atomic<bool> done{false};
  std::vector<std::thread> readers;
  for (int r = 0; r < kReaders; ++r)
    readers.emplace_back([&, r] {
      for (int round = 0; round < kRounds || !done.load(); ++round) work(r);
    });
  other();
  done.store(true);
  for (std::thread& reader : readers) reader.join();
}

}  // namespace

TEST_CASE("readers of an index beside a writer of its copies: every result is that of a quiet run, to the bit") {
  const Shared shared;
  std::atomic<int> differences{0};
  int grown = 0;
  run_beside(
      [&](int) {
        SerialExecutor executor;
        differences += shared.differences(shared.index->view(), executor);
      },
      [&] {
        for (int round = 0; round < kRounds; ++round) {
          ClusterIndex fork = *shared.index;
          test::append_index(fork, shared.kv(kLast));
          grown += fork.view().indexed_end > shared.index->view().indexed_end;
          if (round % 2 == 1) test::build_index(fork, shared.kv(kPrompt / 2));
          ClusterIndex other(kShape, Shared::index_options());
          other = fork;
        }
      });
  CHECK(differences == 0);
  CHECK(grown == kRounds);
}

TEST_CASE("copies are independent: each thread reads, forks and appends its own, the original is destroyed meanwhile") {
  Shared shared;
  std::vector<ClusterIndex> copies(kReaders, *shared.index);
  std::atomic<int> differences{0};
  run_beside(
      [&](int reader) {
        SerialExecutor executor;
        ClusterIndex& own = copies[size_t(reader)];
        differences += shared.differences(own.view(), executor);
        ClusterIndex fork = own;
        test::append_index(fork, shared.kv(kLast));
        own = ClusterIndex(own);  // new tables over the same segments
      },
      [&] { shared.index.reset(); });
  CHECK(differences == 0);
}

TEST_CASE("decoders with executors of their own run side by side; each result is that of the same team alone") {
  const Shared shared;
  ThreadExecutor alone(2);
  std::vector<test::DecodeResult> want;
  for (size_t m = 0; m < shared.quiet.size(); ++m) want.push_back(shared.decode(m, shared.index->view(), alone));
  std::atomic<int> differences{0};
  run_beside(
      [&](int) {
        ThreadExecutor executor(2);
        for (size_t m = 0; m < want.size(); ++m) differences += !shared.decode(m, shared.index->view(), executor).same_bits(want[m]);
      },
      [] {});
  CHECK(differences == 0);
}
