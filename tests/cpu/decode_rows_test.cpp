// Several query rows of a sequence: shared and own sets, the diagonal, a prefix that beams share.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "quorum/core/merge_attention.hpp"
#include "quorum/cpu/decode.hpp"
#include "tests/support/masked_sequence.hpp"

using namespace quorum;
using test::MaskedSequence;
using test::MaskedSpec;

namespace {

MaskedSpec spec_of(int group, int rows) {
  MaskedSpec spec;
  spec.shape = {2 * group, 2, 64, 0.0f};
  spec.num_tokens = 900;
  spec.num_rows = rows;
  spec.window_tokens = 20;
  return spec;
}

double bytes_read(const test::DecodeResult& result) {
  double bytes = 0.0;
  for (const HeadReport& report : result.reports) bytes += double(report.bytes_read) / report.shared_rows;
  return bytes;
}

}  // namespace

TEST_CASE("own sets: each row is what a single query over the tokens it sees gives, bit for bit") {
  for (const bool codes : {false, true})
    for (const int workers : {1, 2}) {
      MaskedSpec spec = spec_of(3, 5);
      spec.codes = codes;
      const MaskedSequence sequence(spec);
      const auto result = sequence.decode(test::sparse_options(0.9f, RowSets::own), workers);
      REQUIRE(result.status == DecodeStatus::ok);
      // As many items a call as there: which of them are shared by workers depends on it.
      for (int r = 0; r < 5; ++r) {
        ThreadExecutor executor(workers);
        Decoder decoder(sequence.shape(), test::sparse_options(0.9f), sequence.limits(workers));
        test::DecodeResult single(sequence.shape(), 1);
        SequenceView view = sequence.view();
        const ClusterIndexView known = *view.index;
        ClusterIndexView index = known;  // what it would be had it been told of no more tokens
        const int past = spec.num_tokens - view.row_end(r);
        index.always.num_listed -= past;
        index.always.num_known -= past;
        view.kv.num_tokens -= past;
        view.index = &index;
        view.num_rows = 1;
        QueryView query = sequence.query_view();
        query.data += r * query.row_stride;
        query.num_rows = 1;
        REQUIRE(decoder.decode(query, {&view, 1}, single.out(), single.reports, executor) == DecodeStatus::ok);
        CHECK(std::equal(single.output.begin(), single.output.end(), result.output.begin() + r * int(single.output.size())));
        CHECK(std::equal(single.lse.begin(), single.lse.end(), result.lse.begin() + r * int(single.lse.size())));
        CHECK(single.reports[0].tokens_read == result.reports[size_t(r * 6)].tokens_read);
        CHECK(result.reports[size_t(r * 6)].shared_rows == 1);
      }
    }
}

TEST_CASE("shared sets: every row attains its target about as surely as alone, the set is read once") {
  for (const bool codes : {false, true})
    for (const int group : {1, 4})
      for (const bool causal : {false, true}) {
        MaskedSpec spec = spec_of(group, 5);
        spec.codes = codes;
        spec.causal = causal;
        const MaskedSequence sequence(spec);
        DecodeOptions options = test::sparse_options(0.9f);
        options.tail = Tail::drop;
        options.unit = codes ? ReadUnit::tokens : ReadUnit::clusters;
        const auto shared = sequence.decode(options);
        options.rows = RowSets::own;
        const auto own = sequence.decode(options);
        REQUIRE(shared.status == DecodeStatus::ok);
        double attained = 0.0;
        for (int r = 0; r < 5; ++r)
          for (int h = 0; h < 2 * group; ++h) {
            const size_t at = size_t(r * 2 * group + h);
            const double ratio = std::exp(double(shared.lse[at]) - sequence.attention(r, h).lse);
            CHECK(ratio >= 0.75);
            attained += ratio / (10.0 * group);
            CHECK(shared.reports[at].shared_rows == (group == 1 ? 5 : r < 4 ? 4 : 1));
            CHECK_FALSE(is_dense(shared.reports[at].path));
          }
        CHECK(attained >= 0.9);
        CHECK(bytes_read(shared) < bytes_read(own));
      }
}

TEST_CASE("rows that a cluster would betray run one by one, and are right") {
  for (const bool codes : {false, true}) {
    MaskedSpec spec = spec_of(2, 6);
    spec.window_tokens = 0;  // the newest tokens are in clusters
    spec.codes = codes;
    const MaskedSequence sequence(spec);
    DecodeOptions options = test::sparse_options(0.9f);
    options.fixed_budget = spec.num_tokens;
    options.candidate_coverage = 1.0f;
    const auto result = sequence.decode(options);
    REQUIRE(result.status == DecodeStatus::ok);
    CHECK(sequence.error(result) <= 2e-3);
    for (int r = 0; r < 6; ++r) {
      CHECK(result.reports[size_t(4 * r)].shared_rows == 1);
      CHECK(result.reports[size_t(4 * r)].tokens_read <= spec.num_tokens - 5 + r);
      CHECK(result.reports[size_t(4 * r)].bytes_dense == int64_t(256) * (spec.num_tokens - 5 + r));
    }
  }
}

TEST_CASE("more rows than tokens: the first ones see nothing") {
  MaskedSpec spec = spec_of(2, 5);
  spec.num_tokens = 3;
  const MaskedSequence sequence(spec);
  for (const RowSets rows : {RowSets::shared, RowSets::own}) {
    const auto result = sequence.decode(test::sparse_options(0.9f, rows));
    REQUIRE(result.status == DecodeStatus::ok);
    CHECK(sequence.error(result) <= sequence.tolerance());
    CHECK(result.lse[0] == -kInfinity);
    CHECK(result.output[0] == 0.0f);
  }
}

TEST_CASE("one set for each head: rows share it too") {
  MaskedSpec spec = spec_of(3, 4);
  const MaskedSequence sequence(spec);
  DecodeOptions options = test::sparse_options(0.95f);
  options.scope = SelectionScope::head;
  for (const int workers : {1, 2}) {
    const auto result = sequence.decode(options, workers);
    REQUIRE(result.status == DecodeStatus::ok);
    CHECK(sequence.error(result) <= 0.6);
    for (const HeadReport& report : result.reports) CHECK(report.shared_rows == 4);
  }
}

// Beams on one prefix: the prefix is a sequence whose rows are the beams, each beam's own suffix another one.
TEST_CASE("beams share a prefix: merged with their suffixes it is attention over both, the prefix is read once") {
  constexpr int kBeams = 4, kSuffix = 40, kHeads = 4;
  MaskedSpec spec;
  spec.shape = {kHeads, 2, 64, 0.0f};
  spec.num_tokens = 800;
  spec.num_rows = kBeams;
  spec.causal = false;
  const MaskedSequence prefix(spec);
  test::BatchSpec suffix_spec;
  suffix_spec.shape = spec.shape;
  suffix_spec.lengths = std::vector<int>(kBeams, kSuffix);
  suffix_spec.build_indexes = false;
  suffix_spec.seed = 9;
  test::Batch suffixes(suffix_spec);
  std::vector<KvCacheView> views;
  for (int b = 0; b < kBeams; ++b) views.push_back(suffixes.cache(b).view());
  SerialExecutor executor;
  test::DecodeResult own(spec.shape, kBeams);
  dense_attention(spec.shape, prefix.query_view(), views, own.out(), executor);
  for (const float target : {1.0f, 0.95f}) {
    auto shared = prefix.decode(test::sparse_options(target));
    REQUIRE(shared.status == DecodeStatus::ok);
    merge_attention(shared.output.data(), shared.lse.data(), own.output.data(), own.lse.data(), kBeams * kHeads, 64, shared.output.data(),
                    shared.lse.data());
    double error = 0.0, norm = 0.0, worst = 0.0;
    for (int b = 0; b < kBeams; ++b)
      for (int h = 0; h < kHeads; ++h) {
        const reference::Attention first = prefix.attention(b, h);
        reference::Matrix keys = prefix.keys(h / 2), values = prefix.values(h / 2);
        const auto& more_keys = suffixes.cache(b).keys(h / 2).data;
        const auto& more_values = suffixes.cache(b).values(h / 2).data;
        keys.data.insert(keys.data.end(), more_keys.begin(), more_keys.end());
        values.data.insert(values.data.end(), more_values.begin(), more_values.end());
        const auto want = reference::attention(prefix.query(b, h).data(), keys, values, 0.125);
        for (size_t c = 0; c < 64; ++c) {
          const double got = double(shared.output[size_t(b * kHeads + h) * 64 + c]);
          worst = test::larger_error(worst, std::fabs(got - want.output[c]));
          error += std::pow(got - want.output[c], 2);
          norm += want.output[c] * want.output[c];
        }
      }
    if (target == 1.0f) CHECK(worst <= prefix.tolerance());
    CHECK(std::sqrt(error / norm) <= 0.05);
    double bytes = 0.0;
    for (const HeadReport& report : shared.reports) bytes += double(report.bytes_read) / report.shared_rows / (kHeads / 2);
    if (target == 1.0f) CHECK(std::fabs(bytes - 800.0 * 2 * 256) <= 1.0);  // keys and values of two KV heads, once for all beams
  }
}

TEST_CASE("mistakes with rows are statuses") {
  MaskedSpec spec = spec_of(2, 3);
  const MaskedSequence sequence(spec);
  SerialExecutor executor;
  DecodeLimits limits = sequence.limits();
  test::DecodeResult result(sequence.shape(), 3);
  const auto decode = [&](const SequenceView& view, const QueryView& queries, std::span<HeadReport> reports) {
    Decoder decoder(sequence.shape(), test::sparse_options(0.9f), limits);
    return decoder.decode(queries, {&view, 1}, result.out(), reports, executor);
  };
  SequenceView view = sequence.view();
  QueryView queries = sequence.query_view();
  CHECK(decode(view, queries, {result.reports.data(), result.reports.size() - 1}) == DecodeStatus::report_too_small);
  view.num_rows = 2;
  CHECK(decode(view, queries, {}) == DecodeStatus::batch_mismatch);
  view.num_rows = 0;
  queries.num_rows = 0;
  CHECK(decode(view, queries, {}) == DecodeStatus::too_many_rows);
  limits.max_rows = 2;
  CHECK(decode(sequence.view(), sequence.query_view(), {}) == DecodeStatus::too_many_rows);
  limits.max_rows = 3;
  CHECK(result.untouched());
  Decoder decoder(sequence.shape(), test::sparse_options(0.9f), limits);
  std::vector<int32_t> tokens(2 * 900), counts(2);
  view = sequence.view();
  CHECK(decoder.select(sequence.query_view(), {&view, 1}, {tokens.data(), counts.data(), 900}, {}, executor) ==
        DecodeStatus::rows_mismatch);
}
