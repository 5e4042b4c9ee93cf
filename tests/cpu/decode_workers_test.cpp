// Workers change rounding only: selections and outputs for every executor and number of workers.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

// Three sequences of two KV heads: six items, which 4 and 5 workers share in part and 1, 2, 3 and 6 do not. One sequence of one KV head
// is always shared by all.
std::vector<std::unique_ptr<Batch>> batches() {
  std::vector<std::unique_ptr<Batch>> out;
  BatchSpec spec;
  spec.shape = {6, 2, 64, 0.0f};
  spec.lengths = {900, 60, 1300};
  spec.index.segment_tokens = 500;
  out.push_back(std::make_unique<Batch>(spec));
  spec.shape = {7, 1, 80, 0.0f};
  spec.lengths = {1100};
  spec.type = ElementType::bf16;
  out.push_back(std::make_unique<Batch>(spec));
  spec.shape = {2, 2, 64, 0.0f};
  spec.lengths = {12, 8, 900};  // fewer clusters than workers
  out.push_back(std::make_unique<Batch>(spec));
  return out;
}

std::vector<std::unique_ptr<Executor>> executors() {
  std::vector<std::unique_ptr<Executor>> out;
  for (const int workers : {1, 2, 3, 4, 5}) out.push_back(std::make_unique<ThreadExecutor>(workers));
#if defined(_OPENMP)
  for (const int workers : {1, 2, 3}) out.push_back(std::make_unique<OpenMpExecutor>(workers));
#endif
  return out;
}

DecodeOptions options_of(Tail tail, bool certify) {
  DecodeOptions options;
  options.target_ratio = 0.85f;
  options.dense_below = 0;
  options.tail = tail;
  options.certificate.enabled = certify;
  return options;
}

}  // namespace

TEST_CASE("selections are the same, outputs within rounding; repeats agree bit for bit") {
  for (const auto& batch : batches())
    for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
      for (const bool certify : {false, true}) {
        const DecodeOptions options = options_of(tail, certify);
        const auto serial = batch->decode(options);
        const auto serial_rows = batch->select(options).rows;
        int rows = 0, other_rows = 0;
        for (const auto& executor : executors()) {
          const auto result = batch->decode(options, *executor);
          const auto selected = batch->select(options, *executor);
          REQUIRE(result.status == DecodeStatus::ok);
          REQUIRE(selected.status == DecodeStatus::ok);
          CHECK(batch->decode(options, *executor).same_bits(result));
          CHECK(batch->select(options, *executor).rows == selected.rows);
          const auto& shape = batch->shape();
          for (size_t r = 0; r < serial_rows.size(); ++r) {
            ++rows;
            if (selected.rows[r] != serial_rows[r]) {  // a sum at the very edge of the target may round to the other side
              ++other_rows;
              continue;
            }
            const size_t group = size_t(shape.group_size()), first = r * group;
            const auto count = int64_t(group) * shape.head_dim;
            const size_t at = first * size_t(shape.head_dim);
            CHECK(test::largest_difference(&result.output[at], &serial.output[at], count) <= 2e-5);
            CHECK(test::largest_difference(&result.lse[first], &serial.lse[first], int64_t(group)) <= 2e-5);
            for (size_t g = 0; g < group; ++g) {
              const HeadReport &got = result.reports[first + g], &want = serial.reports[first + g];
              CHECK(got.tokens_read == want.tokens_read);
              CHECK(got.tokens_sampled == want.tokens_sampled);
              CHECK(got.rounds == want.rounds);
              CHECK(got.path == want.path);
              CHECK(test::near(got.attained_ratio_estimate, want.attained_ratio_estimate, 1e-4));
              CHECK(test::near(got.attained_ratio_lower_bound, want.attained_ratio_lower_bound, 1e-4));
            }
          }
        }
        CHECK(20 * other_rows <= rows);
      }
}

TEST_CASE("steps that go without late workers are right whatever the team") {
  const auto all = batches();
  const Batch& batch = *all[1];
  const DecodeOptions options = options_of(Tail::calibrated, false);
  const auto serial = batch.decode(options);
  ThreadExecutor executor(5, LateWorkers::leave_out);
  int others = 0;
  for (int step = 0; step < 200; ++step) {
    const auto result = batch.decode(options, executor);
    REQUIRE(result.status == DecodeStatus::ok);
    others += test::largest_difference(result.output.data(), serial.output.data(), int64_t(serial.output.size())) <= 2e-5 ? 0 : 1;
  }
  CHECK(others <= 10);  // as above
}

TEST_CASE("more workers than work") {
  BatchSpec spec;
  spec.shape = {1, 1, 64, 0.0f};
  for (const int length : {0, 1, 5, 6, 21, 40}) {
    spec.lengths = {length};
    const Batch batch(spec);
    ThreadExecutor executor(8);
    for (const Tail tail : {Tail::drop, Tail::calibrated}) {
      const auto result = batch.decode(options_of(tail, true), executor), serial = batch.decode(options_of(tail, true));
      CAPTURE(length);
      CHECK(test::largest_difference(result.output.data(), serial.output.data(), 64) <= 1e-5);
    }
  }
}

TEST_CASE("a decoder keeps nothing between calls: other calls in between change no bit") {
  const auto all = batches();
  const Batch& batch = *all[0];
  const DecodeOptions options = options_of(Tail::calibrated, true);
  ThreadExecutor executor(2);
  Decoder decoder(batch.shape(), options, batch.limits(2));
  const auto sequences = batch.sequences();
  const QueryView queries = batch.query_view();
  test::DecodeResult first(batch.shape(), 3), other(batch.shape(), 3), second(batch.shape(), 3);
  REQUIRE(decoder.decode(queries, sequences, first.out(), first.reports, executor) == DecodeStatus::ok);
  QueryView one = queries;
  one.num_rows = 1;
  for (size_t s = 0; s < 3; ++s) REQUIRE(decoder.decode(one, {&sequences[s], 1}, other.out(), other.reports, executor) == DecodeStatus::ok);
  REQUIRE(decoder.decode(queries, sequences, second.out(), second.reports, executor) == DecodeStatus::ok);
  CHECK(second.same_bits(first));
}

TEST_CASE("a workspace of the caller: any content, nothing beyond it is touched, results are the same") {
  const auto all = batches();
  const Batch& batch = *all[0];
  const DecodeOptions options = options_of(Tail::calibrated, true);
  const DecodeLimits limits = batch.limits(3);
  ThreadExecutor executor(3);
  const auto want = batch.decode(options, executor);
  const auto bytes = size_t(Decoder::workspace_bytes(batch.shape(), options, limits));
  for (const int fill : {0x00, 0xff, 0x7f}) {
    cpu::AlignedVector<std::byte> block(bytes + 128, std::byte(fill));
    for (size_t i = 0; i < 64; ++i) block[i] = block[bytes + 64 + i] = std::byte(0x5a);
    Decoder decoder(batch.shape(), options, limits, {block.data() + 64, bytes});
    test::DecodeResult result(batch.shape(), 3);
    REQUIRE(decoder.decode(batch.query_view(), batch.sequences(), result.out(), result.reports, executor) == DecodeStatus::ok);
    CHECK(result.same_bits(want));
    int touched = 0;
    for (size_t i = 0; i < 64; ++i) touched += block[i] != std::byte(0x5a) || block[bytes + 64 + i] != std::byte(0x5a);
    CHECK(touched == 0);
  }
}
