// Every error of planning, and every status of decoding: nothing is written.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"
#include "tests/support/error_message.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

const AttentionShape kShape{4, 2, 64, 0.0f};

std::string plan_error(const AttentionShape& shape, const DecodeOptions& options, const DecodeLimits& limits,
                       std::span<std::byte> workspace = {}) {
  return test::argument_error([&] { Decoder(shape, options, limits, workspace); });
}

// One call that must be refused. Both decode and select are tried; neither may write anything.
struct Refused {
  BatchSpec spec;
  Batch batch;
  DecodeOptions options;
  DecodeLimits limits;
  QueryView queries;
  std::vector<SequenceView> sequences;
  size_t num_reports;
  int num_workers = 1;

  static BatchSpec two_sequences() {
    BatchSpec spec;
    spec.shape = kShape;
    spec.lengths = {300, 200};
    return spec;
  }
  Refused()
      : spec(two_sequences()),
        batch(spec),
        limits(batch.limits(2)),
        queries(batch.query_view()),
        sequences(batch.sequences()),
        num_reports(8) {
    options.dense_below = 0;
  }

  DecodeStatus decode() {
    Decoder decoder(kShape, options, limits);
    ThreadExecutor executor(num_workers);
    test::DecodeResult result(kShape, 2);
    const DecodeStatus status =
        decoder.decode(queries, sequences, result.out(), std::span<HeadReport>(result.reports).first(num_reports), executor);
    CHECK(result.untouched() == (status != DecodeStatus::ok));
    return status;
  }
  DecodeStatus select() {
    Decoder decoder(kShape, options, limits);
    ThreadExecutor executor(num_workers);
    test::DecodeResult result(kShape, 2);
    std::vector<int32_t> tokens(4 * 300, -99), counts(4, -99);
    const std::vector<int32_t> no_tokens = tokens, no_counts = counts;
    const DecodeStatus status = decoder.select(queries, sequences, {tokens.data(), counts.data(), 300},
                                               std::span<HeadReport>(result.reports).first(num_reports), executor);
    if (status != DecodeStatus::ok) {
      CHECK(tokens == no_tokens);
      CHECK(counts == no_counts);
      CHECK(result.untouched());
    }
    return status;
  }
  void check(DecodeStatus want) {
    CHECK(decode() == want);
    CHECK(select() == want);
  }
};

}  // namespace

TEST_CASE("planning: wrong shapes, options and limits, named as the Decoder's") {
  const DecodeLimits limits{1, 1000, 0, 1};
  CHECK(plan_error(kShape, {}, limits) == "no error");
  CHECK(plan_error({4, 2, 63, 0.0f}, {}, limits) == "Decoder: shape.head_dim must be a multiple of 8 from 8 to 512, got 63");
  DecodeOptions options;
  options.target_ratio = 1.5f;
  CHECK(plan_error(kShape, options, limits) == "Decoder: options.target_ratio must be in (0, 1], got 1.5");
  options = {};
  options.certificate.confidence = 0.2f;
  CHECK(plan_error(kShape, options, limits) == "Decoder: options.certificate.confidence must be in (0.5, 1), got 0.2");
  options = {};
  options.candidate_coverage = 0.25f;
  CHECK(plan_error(kShape, options, limits) == "Decoder: options.candidate_coverage must be 0 or in [0.5, 1], got 0.25");
  options = {};
  options.target_error = 1.5f;
  CHECK(plan_error(kShape, options, limits) == "Decoder: options.target_error must be in [0, 1), got 1.5");
  options.target_error = 0.5f;
  options.unit = ReadUnit::clusters;
  CHECK(plan_error(kShape, options, limits) == "Decoder: options.target_error must be 0 with ReadUnit::clusters, got 0.5");
  options.unit = ReadUnit::tokens;
  options.certificate.enabled = true;
  CHECK(plan_error(kShape, options, limits) == "Decoder: options.target_error must be 0 with a certificate, got 0.5");
  CHECK(plan_error(kShape, {}, {}).find("Decoder: limits.max_tokens must be ") == 0);
  CHECK(test::argument_error([&] {
          Decoder::workspace_bytes({4, 3, 64, 0.0f}, {}, limits);
        }) == "Decoder: shape.num_qo_heads must be a multiple of shape.num_kv_heads, got 4");
}

TEST_CASE("planning: the largest limits that are accepted have a workspace size that makes sense") {
  for (const int max_tokens : {1, 1000, 1 << 20, 1 << 30, 2147483647})
    for (const int max_clusters : {0, 1, 1 << 20, 2147483647}) {
      CAPTURE(max_tokens);
      CAPTURE(max_clusters);
      int64_t bytes = 0;
      const std::string message = test::argument_error([&] {
        bytes = Decoder::workspace_bytes(kShape, {}, {1, max_tokens, max_clusters, 1});
      });
      // Weights alone take 4 bytes a token and query head of a group.
      if (message == "no error") {
        CHECK(bytes >= int64_t(max_tokens) * 2 * 4 + int64_t(max_clusters) * 4);
      } else {
        CHECK(message.find("Decoder: limits.max_") == 0);
      }
    }
}

TEST_CASE("planning: a workspace that is too small or not aligned") {
  const DecodeLimits limits{1, 1000, 0, 1};
  const int64_t bytes = Decoder::workspace_bytes(kShape, {}, limits);
  cpu::AlignedVector<std::byte> block(size_t(bytes) + 64);
  CHECK(plan_error(kShape, {}, limits, {block.data(), size_t(bytes)}) == "no error");
  CHECK(plan_error(kShape, {}, limits, {block.data(), size_t(bytes) - 1}) ==
        "Decoder: workspace.size() must be at least workspace_bytes(), got " + std::to_string(bytes - 1));
  CHECK(plan_error(kShape, {}, limits, {block.data() + 4, size_t(bytes)})
            .find("Decoder: workspace.data() must be aligned to 64 bytes, got ") == 0);
}

TEST_CASE("a call that fits is accepted") { Refused().check(DecodeStatus::ok); }

TEST_CASE("batch_mismatch") {
  Refused call;
  call.queries.num_rows = 1;
  call.check(DecodeStatus::batch_mismatch);
}

TEST_CASE("too_many_sequences") {
  Refused call;
  call.limits.max_sequences = 1;
  call.check(DecodeStatus::too_many_sequences);
}

TEST_CASE("too_many_tokens: of any sequence") {
  Refused call;
  call.limits.max_tokens = 299;
  call.check(DecodeStatus::too_many_tokens);
}

TEST_CASE("too_many_workers") {
  Refused call;
  call.num_workers = 3;
  call.check(DecodeStatus::too_many_workers);
  call.num_workers = 2;
  call.check(DecodeStatus::ok);
}

TEST_CASE("page_size_mismatch: pages without a size, in any sequence") {
  const int32_t pages[400] = {};
  Refused call;
  call.sequences[1].kv.pages = pages;
  for (const int page_size : {0, -16}) {
    call.sequences[1].kv.page_size = page_size;
    call.check(DecodeStatus::page_size_mismatch);
  }
  call.sequences[1].kv.page_size = 1;
  call.check(DecodeStatus::ok);
}

TEST_CASE("scales_mismatch: scales beside elements that have none, in any sequence") {
  const float scales[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  Refused call;
  call.sequences[1].kv.value_scales = scales;
  call.check(DecodeStatus::scales_mismatch);
  call.sequences[1].kv.value_scales = nullptr;
  call.sequences[0].kv.key_scales = scales;
  call.check(DecodeStatus::scales_mismatch);
  call.sequences[0].kv.key_scales = nullptr;
  call.check(DecodeStatus::ok);
}

TEST_CASE("head_dim_mismatch: q8_0 has blocks of 32") {
  const AttentionShape shape{4, 2, 72, 0.0f};
  const std::vector<float> zeros(4 * 300 * 72, 0.0f);
  Decoder decoder(shape, {}, {1, 300, 0, 1});
  SerialExecutor executor;
  for (const int which : {0, 1, 2}) {
    SequenceView sequence{KvCacheView::nhd(zeros.data(), zeros.data(), 300, 2, 72), nullptr};
    QueryView queries = QueryView::contiguous(zeros.data(), 1, 4, 72);
    if (which == 1) sequence.kv.type = ElementType::q8_0;
    if (which == 2) queries.type = ElementType::q8_0;
    test::DecodeResult result(shape, 1);
    const DecodeStatus status = decoder.decode(queries, {&sequence, 1}, result.out(), result.reports, executor);
    CHECK(status == (which == 0 ? DecodeStatus::ok : DecodeStatus::head_dim_mismatch));
    CHECK(result.untouched() == (which != 0));
  }
}

TEST_CASE("index_mismatch: more tokens than the cache, other heads, another head_dim") {
  Refused shrunk;
  shrunk.sequences[1].kv.num_tokens = 199;
  shrunk.check(DecodeStatus::index_mismatch);
  for (const AttentionShape other : {AttentionShape{4, 4, 64, 0.0f}, AttentionShape{4, 2, 72, 0.0f}}) {
    Refused call;
    const ClusterIndex index(other, {});
    call.sequences[0].index = &index.view();
    call.check(DecodeStatus::index_mismatch);
  }
}

TEST_CASE("codes_missing: tokens or a target error are asked of an index without residual codes") {
  Refused tokens;
  tokens.options.unit = ReadUnit::tokens;
  tokens.check(DecodeStatus::codes_missing);
  Refused error;
  error.options.target_error = 0.05f;
  error.check(DecodeStatus::codes_missing);
  Refused any;  // what is not indexed needs no codes, and neither does ReadUnit::automatic
  any.check(DecodeStatus::ok);
  any.options.unit = ReadUnit::tokens;
  const ClusterIndex nothing(kShape, test::cluster_index_options());
  for (SequenceView& sequence : any.sequences) sequence.index = &nothing.view();
  any.check(DecodeStatus::ok);
  any.sequences[0].index = any.sequences[1].index = nullptr;
  any.check(DecodeStatus::ok);
}

TEST_CASE("with residual codes every unit is accepted") {
  BatchSpec spec = Refused::two_sequences();
  spec.index = {};
  const Batch batch(spec);
  Refused call;
  call.sequences = batch.sequences();
  for (const ReadUnit unit : {ReadUnit::automatic, ReadUnit::clusters, ReadUnit::tokens}) {
    call.options.unit = unit;
    call.check(DecodeStatus::ok);
  }
}

TEST_CASE("variance_mismatch") {
  Refused call;
  call.options.variance = VarianceModel::diagonal;
  call.check(DecodeStatus::variance_mismatch);
}

TEST_CASE("report_too_small; no reports and too many are fine") {
  Refused call;
  call.num_reports = 7;
  call.check(DecodeStatus::report_too_small);
  call.num_reports = 0;
  Decoder decoder(kShape, call.options, call.limits);
  SerialExecutor executor;
  test::DecodeResult result(kShape, 3);
  CHECK(decoder.decode(call.queries, call.sequences, result.out(), result.reports, executor) == DecodeStatus::ok);
  CHECK(result.reports[7].tokens_read != -77);
  CHECK(result.reports[8].tokens_read == -77);
}

TEST_CASE("scope_mismatch: select needs one set per group") {
  Refused call;
  call.options.scope = SelectionScope::head;
  CHECK(call.decode() == DecodeStatus::ok);
  CHECK(call.select() == DecodeStatus::scope_mismatch);
}

TEST_CASE("selection_too_small: counts say what is needed, rows that fit are complete") {
  Refused call;
  SerialExecutor executor;
  Decoder decoder(kShape, call.options, call.limits);
  const auto whole = call.batch.select(call.options);
  size_t smallest = 1000, largest = 0;
  for (const auto& row : whole.rows) {
    smallest = std::min(smallest, row.size());
    largest = std::max(largest, row.size());
  }
  REQUIRE(smallest < largest);
  const size_t capacity = largest - 1;
  std::vector<int32_t> tokens(4 * capacity, -99), counts(4, -99);
  CHECK(decoder.select(call.queries, call.sequences, {tokens.data(), counts.data(), int64_t(capacity)}, {}, executor) ==
        DecodeStatus::selection_too_small);
  for (size_t r = 0; r < 4; ++r) {
    CHECK(counts[r] == int(whole.rows[r].size()));
    if (whole.rows[r].size() > capacity) continue;
    const auto begin = tokens.begin() + std::ptrdiff_t(r * capacity);
    CHECK(std::equal(whole.rows[r].begin(), whole.rows[r].end(), begin));
    CHECK(std::all_of(begin + std::ptrdiff_t(whole.rows[r].size()), begin + std::ptrdiff_t(capacity), [](int t) { return t == -1; }));
  }
}
