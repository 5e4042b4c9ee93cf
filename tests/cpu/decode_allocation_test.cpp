// Decoding never allocates.
#include <doctest/doctest.h>

#include <new>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/allocations.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;

namespace {

// Allocations during `call`.
template <class Call>
int64_t allocations_of(Call&& call) {
  const int64_t before = test::num_allocations();
  call();
  return test::num_allocations() - before;
}

}  // namespace

TEST_CASE("the counter counts") {
  // Compilers may leave out an allocation that nothing sees: the pointer passes through a volatile.
  void* volatile pointer = nullptr;
  CHECK(allocations_of([&] { pointer = ::operator new(100); }) == 1);
  ::operator delete(pointer);
}

TEST_CASE("decode and select allocate nothing, on any path") {
  test::BatchSpec spec;
  spec.shape = {8, 2, 72, 0.0f};
  spec.lengths = {1500, 0, 40, 700};
  spec.index.variance = VarianceModel::diagonal;
  test::Batch batch(spec);
  const auto sequences = batch.sequences();
  const QueryView queries = batch.query_view();
  test::DecodeResult result(spec.shape, 4);
  std::vector<int32_t> tokens(8 * 1500), counts(8);
  const SelectionOutput selection{tokens.data(), counts.data(), 1500};
  const SelectionOutput too_small{tokens.data(), counts.data(), 10};
  for (const int workers : {1, 3}) {
    ThreadExecutor executor(workers);
    for (const float target : {0.5f, 0.95f, 1.0f})
      for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
        for (const MissPolicy policy : {MissPolicy::accept, MissPolicy::widen, MissPolicy::dense}) {
          DecodeOptions options;
          options.target_ratio = target;
          options.tail = tail;
          options.dense_below = 0;
          options.certificate.enabled = policy != MissPolicy::accept;
          options.certificate.policy = policy;
          options.variance = tail == Tail::estimated ? VarianceModel::diagonal : VarianceModel::shared;
          Decoder decoder(spec.shape, options, batch.limits(workers));
          DecodeStatus statuses[3];
          const int64_t count = allocations_of([&] {
            statuses[0] = decoder.decode(queries, sequences, result.out(), result.reports, executor);
            statuses[1] = decoder.select(queries, sequences, selection, result.reports, executor);
            statuses[2] = decoder.select(queries, sequences, too_small, {}, executor);
          });
          CHECK(count == 0);
          CHECK(statuses[0] == DecodeStatus::ok);
          CHECK(statuses[1] == DecodeStatus::ok);
          CHECK(statuses[2] == DecodeStatus::selection_too_small);
        }
  }
}

TEST_CASE("with residual codes: by ratio, budget, target error and certificate, by group and by head") {
  test::BatchSpec spec;
  spec.shape = {8, 2, 72, 0.0f};
  spec.lengths = {1500, 0, 40, 700};
  spec.index = {};
  const test::Batch batch(spec);
  const auto sequences = batch.sequences();
  test::DecodeResult result(spec.shape, 4);
  std::vector<int32_t> tokens(8 * 1500), counts(8);
  const SelectionOutput selection{tokens.data(), counts.data(), 1500};
  enum class Mode { ratio, budget, error, certificate };
  for (const int workers : {1, 3}) {
    ThreadExecutor executor(workers);
    for (const Mode mode : {Mode::ratio, Mode::budget, Mode::error, Mode::certificate})
      for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
        for (const SelectionScope scope : {SelectionScope::group, SelectionScope::head})
          for (const ReadUnit unit : {ReadUnit::automatic, ReadUnit::tokens}) {
            DecodeOptions options;
            options.tail = tail;
            options.scope = scope;
            options.unit = unit;
            options.dense_below = 0;
            if (mode == Mode::budget) options.fixed_budget = 100;
            if (mode == Mode::error) options.target_error = 0.05f;
            options.certificate.enabled = mode == Mode::certificate;
            Decoder decoder(spec.shape, options, batch.limits(workers));
            DecodeStatus statuses[2];
            const int64_t count = allocations_of([&] {
              statuses[0] = decoder.decode(batch.query_view(), sequences, result.out(), result.reports, executor);
              statuses[1] = decoder.select(batch.query_view(), sequences, selection, {}, executor);
            });
            CHECK(count == 0);
            CHECK(statuses[0] == DecodeStatus::ok);
            CHECK(statuses[1] == (scope == SelectionScope::group ? DecodeStatus::ok : DecodeStatus::scope_mismatch));
            if (unit == ReadUnit::tokens) CHECK(result.reports[0].path == DecodePath::sparse_tokens);
          }
  }
}

TEST_CASE("masks, several rows, soft-capping, sinks and windows allocate nothing either") {
  test::BatchSpec spec;
  spec.shape = {8, 2, 72, 0.0f};
  spec.lengths = {1500, 0, 40, 700};
  spec.index = {};
  spec.index.window_tokens = 8;
  const test::Batch batch(spec);
  const float sinks[8] = {1.0f, 2.0f};
  AttentionShape shape = spec.shape;
  shape.logit_softcap = 20.0f;
  shape.sink_logits = sinks;
  const std::vector<uint64_t> mask(24 * 7, 0x5555aaaa5555aaaa);
  const std::vector<float> rows = test::gaussian_floats(4 * 7 * 8 * 72, 3);
  const QueryView queries = QueryView::contiguous(rows.data(), 4 * 7, 8, 72);
  test::DecodeResult result(shape, 4 * 7);
  DecodeLimits limits = batch.limits(3);
  limits.max_rows = 7;
  for (const int workers : {1, 3}) {
    ThreadExecutor executor(workers);
    for (const int64_t stride : {-1, 0, 24})
      for (const bool causal : {false, true})
        for (const RowSets sets : {RowSets::shared, RowSets::own})
          for (const ReadUnit unit : {ReadUnit::clusters, ReadUnit::tokens})
            for (const int window : {0, 300}) {
              auto sequences = batch.sequences();
              for (SequenceView& sequence : sequences) {
                sequence.mask = stride < 0 ? nullptr : mask.data();
                sequence.mask_stride = stride < 0 ? 0 : stride;
                sequence.num_rows = 7;
                sequence.causal = causal;
              }
              shape.sliding_window = window;
              DecodeOptions options;
              options.rows = sets;
              options.unit = unit;
              options.dense_below = 50;
              options.certificate.enabled = true;
              Decoder decoder(shape, options, limits);
              DecodeStatus status = DecodeStatus::ok;
              CHECK(allocations_of([&] { status = decoder.decode(queries, sequences, result.out(), result.reports, executor); }) == 0);
              CHECK(status == DecodeStatus::ok);
            }
  }
}

TEST_CASE("poisoned input, one set per head, and refused calls allocate nothing either") {
  test::BatchSpec spec;
  spec.shape = {4, 2, 64, 0.0f};
  spec.lengths = {600};
  test::Batch batch(spec);
  batch.queries().set(0, 1, 3, kNan);
  const auto sequences = batch.sequences();
  test::DecodeResult result(spec.shape, 1);
  SerialExecutor executor;
  DecodeOptions options;
  options.dense_below = 0;
  options.scope = SelectionScope::head;
  Decoder decoder(spec.shape, options, batch.limits());
  QueryView wrong = batch.query_view();
  wrong.num_rows = 2;
  DecodeStatus statuses[2];
  CHECK(allocations_of([&] {
          statuses[0] = decoder.decode(batch.query_view(), sequences, result.out(), result.reports, executor);
          statuses[1] = decoder.decode(wrong, sequences, result.out(), result.reports, executor);
        }) == 0);
  CHECK(statuses[0] == DecodeStatus::ok);
  CHECK(statuses[1] == DecodeStatus::batch_mismatch);
}

TEST_CASE("every path there is, in every element type, for one worker and a team, with stages timed") {
  constexpr int kNumPaths = int(DecodePath::dense_by_capacity) + 1;
  for (const ElementType type : {ElementType::f32, ElementType::f16, ElementType::bf16})
    for (const int workers : {1, 3}) {
      ThreadExecutor executor(workers);
      bool taken[kNumPaths] = {};
      test::DecodeResult result({4, 2, 64, 0.0f}, 1);
      std::vector<int32_t> tokens(2 * 1500), counts(2);
      const auto count_one = [&](const test::Batch& batch, const DecodeOptions& options, int max_clusters = 0) {
        Decoder decoder(batch.shape(), options, {1, 1500, max_clusters, workers});
        decoder.record_stage_times(true);
        const auto sequences = batch.sequences();
        DecodeStatus statuses[2];
        CHECK(allocations_of([&] {
                statuses[0] = decoder.decode(batch.query_view(), sequences, result.out(), result.reports, executor);
                statuses[1] = decoder.select(batch.query_view(), sequences, {tokens.data(), counts.data(), 1500}, {}, executor);
                (void)decoder.stage_times();
              }) == 0);
        CHECK(statuses[0] == DecodeStatus::ok);
        CHECK(statuses[1] == DecodeStatus::ok);
        for (const HeadReport& report : result.reports) taken[int(report.path)] = true;
      };
      test::BatchSpec spec = test::coded_batch({1500});
      spec.type = spec.query_type = type;
      const test::Batch coded(spec);
      spec.sharpness = 0.01f;
      const test::Batch diffuse(spec);
      spec.index = test::cluster_index_options();
      test::Batch clustered(spec);
      DecodeOptions options;
      count_one(coded, options);  // dense_by_length
      options.dense_below = 0;
      count_one(coded, options);
      count_one(clustered, options);
      count_one(clustered, options, 16);
      options.target_ratio = 0.95f;
      count_one(diffuse, options);
      options.certificate = {true, MissPolicy::dense, 0.999f, 0, 2};
      options.unit = ReadUnit::tokens;
      count_one(coded, options);
      count_one(diffuse, options);
      options.unit = ReadUnit::clusters;
      count_one(coded, options);
      options.target_ratio = 1.0f;
      count_one(coded, options);
      options.target_ratio = 0.9f;
      clustered.queries().set(0, 1, 3, kNan);
      count_one(clustered, options);
      for (int path = 0; path < kNumPaths; ++path) {
        CAPTURE(path);
        CHECK(taken[path]);
      }
    }
}

TEST_CASE("with a workspace of the caller a decoder allocates next to nothing") {
  const AttentionShape shape{8, 2, 128, 0.0f};
  const DecodeLimits limits{4, 100000, 0, 1};
  const auto bytes = size_t(Decoder::workspace_bytes(shape, {}, limits));
  CHECK(bytes > 1'000'000);
  cpu::AlignedVector<std::byte> block(bytes);
  CHECK(allocations_of([&] { Decoder decoder(shape, {}, limits, block); }) <= 8);
}
