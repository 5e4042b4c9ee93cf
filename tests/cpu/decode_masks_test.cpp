// Masked tokens weigh nothing, are read nowhere and counted nowhere: their keys and values are NaN here.
#include <doctest/doctest.h>

#include <optional>

#include <algorithm>
#include <cmath>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/masked_sequence.hpp"

using namespace quorum;
using test::MaskedSequence;
using test::MaskedSpec;

namespace {

constexpr double kDensities[] = {0.0, -1.0, 0.1, 0.5, 1.0};

MaskedSpec spec_of(int group, int rows, double density, bool codes) {
  MaskedSpec spec;
  spec.shape = {group, 1, 64, 0.0f};
  spec.num_rows = rows;
  spec.density = density;
  spec.codes = codes;
  spec.window_tokens = 20;
  return spec;
}

// The set that a row belongs to sees at least what the row sees.
int visible_of_set(const MaskedSequence& sequence, const MaskedSpec& spec, int row) {
  return int(sequence.visible(spec.causal ? std::min(spec.num_rows - 1, row) : row).size());
}

}  // namespace

TEST_CASE("target 1: dense attention over the visible tokens, for all groups, rows, densities and workers") {
  for (const int group : {1, 3, 4, 16})
    for (const int rows : {1, 2, 5, 16})
      for (const double density : kDensities)
        for (const bool own_masks : {false, true}) {
          MaskedSpec spec = spec_of(group, rows, density, true);
          spec.num_tokens = 300;
          spec.own_masks = own_masks;
          const MaskedSequence sequence(spec);
          CAPTURE(group);
          CAPTURE(rows);
          CAPTURE(density);
          CAPTURE(own_masks);
          for (const int workers : {1, 2, 3}) {
            const auto result = sequence.decode(test::sparse_options(1.0f), workers);
            REQUIRE(result.status == DecodeStatus::ok);
            CHECK(sequence.error(result) <= sequence.tolerance());
          }
        }
}

TEST_CASE("everything read the sparse way: the same, and reports count visible tokens") {
  for (const bool codes : {false, true})
    for (const int group : {1, 4, 16})
      for (const int rows : {1, 2, 5})
        for (const double density : kDensities) {
          const MaskedSpec spec = spec_of(group, rows, density, codes);
          const MaskedSequence sequence(spec);
          for (const int workers : {1, 2, 3}) {
            CAPTURE(codes);
            CAPTURE(group);
            CAPTURE(rows);
            CAPTURE(density);
            CAPTURE(workers);
            DecodeOptions options = test::sparse_options(0.9f);
            options.fixed_budget = spec.num_tokens;
            options.candidate_coverage = 1.0f;
            const auto result = sequence.decode(options, workers);
            REQUIRE(result.status == DecodeStatus::ok);
            CHECK(sequence.error(result) <= 2e-3);
            for (int r = 0; r < rows; ++r)
              for (int h = 0; h < group; ++h) {
                const HeadReport& report = result.reports[size_t(r * group + h)];
                if (density != 0.0 && density != -1.0) CHECK_FALSE(is_dense(report.path));
                CHECK(report.tokens_read <= visible_of_set(sequence, spec, rows - 1));
                if (!codes) CHECK(report.tokens_read >= visible_of_set(sequence, spec, r));
                CHECK(report.bytes_dense <= int64_t(256) * visible_of_set(sequence, spec, rows - 1));
              }
          }
        }
}

TEST_CASE("the certificate is of the visible tokens: its bound holds at its stated rate, and the rest's draws hit no masked one") {
  for (const bool codes : {false, true})
    for (const double density : {0.1, 0.5}) {
      int trials = 0, covered = 0, sampled = 0, hits = 0;
      MaskedSpec spec;
      std::optional<MaskedSequence> built;
      for (uint64_t seed = 1; seed <= 60; ++seed) {
        if (seed % 10 == 1) {  // ten samples of each sequence: building one takes most of the time
          spec = spec_of(2, 1 + int(seed / 10 % 2), density, codes);
          spec.num_tokens = density < 0.2 ? 3000 : 1200;
          spec.seed = seed;
          spec.key_noise = 0.6f;
          built.emplace(spec);
        }
        const MaskedSequence& sequence = *built;
        DecodeOptions options = test::sparse_options(0.9f);
        options.tail = Tail::drop;  // lse is of what was read
        options.certificate.enabled = true;
        options.unit = codes ? ReadUnit::tokens : ReadUnit::clusters;
        options.seed = seed;
        const auto result = sequence.decode(options, 1 + int(seed % 3));
        for (int r = 0; r < spec.num_rows; ++r)
          for (int h = 0; h < 2; ++h) {
            const HeadReport& report = result.reports[size_t(2 * r + h)];
            const double attained = std::exp(double(result.lse[size_t(2 * r + h)]) - sequence.attention(r, h).lse);
            ++trials;
            covered += attained >= double(report.attained_ratio_lower_bound) - 1e-5;
            hits += attained >= 0.9 - 1e-5;
            sampled += report.tokens_sampled > 0;
            CHECK(report.tokens_read <= visible_of_set(sequence, spec, r));
            CHECK_FALSE(is_dense(report.path));
          }
      }
      CAPTURE(codes);
      CAPTURE(density);
      CAPTURE(covered);
      CAPTURE(hits);
      CHECK(sampled > trials / 2);
      // Heads and rows that share a set share its draws: a quarter of the trials count.
      CHECK(double(covered) / trials >= 0.95 - 3.0 * std::sqrt(0.95 * 0.05 / (trials / 4.0)));
      CHECK(double(hits) / trials >= 0.9);
    }
}

TEST_CASE("tails, target errors and own sets leave masked tokens out too") {
  for (const bool codes : {false, true})
    for (const int rows : {1, 3}) {
      MaskedSpec spec = spec_of(4, rows, 0.5, codes);
      spec.num_tokens = 1200;
      spec.own_masks = rows > 1;
      const MaskedSequence sequence(spec);
      for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
        for (const bool by_error : {false, true})
          for (const int workers : {1, 3}) {
            if (by_error && !codes) continue;
            DecodeOptions options = test::sparse_options(0.95f);
            options.tail = tail;
            if (by_error) options.target_error = 0.05f;
            const auto result = sequence.decode(options, workers);
            double error = 0.0, norm = 0.0;
            for (int r = 0; r < rows; ++r)
              for (int h = 0; h < 4; ++h) {
                const auto want = sequence.attention(r, h).output;
                for (size_t c = 0; c < 64; ++c) {
                  error += std::pow(double(result.output[size_t(r * 4 + h) * 64 + c]) - want[c], 2);
                  norm += want[c] * want[c];
                }
                CHECK(result.reports[size_t(r * 4 + h)].tokens_read <= int(sequence.visible(r).size()));
              }
            CAPTURE(int(tail));
            CAPTURE(by_error);
            CHECK(std::sqrt(error / norm) <= (by_error ? 0.25 : 0.12));
          }
    }
}

TEST_CASE("select lists visible tokens only, sparse and dense") {
  for (const bool codes : {false, true})
    for (const float target : {0.9f, 1.0f}) {
      const MaskedSpec spec = spec_of(4, 1, 0.5, codes);
      const MaskedSequence sequence(spec);
      SerialExecutor executor;
      Decoder decoder(sequence.shape(), test::sparse_options(target), sequence.limits());
      std::vector<int32_t> tokens(700, -2);
      int32_t count = 0;
      const SequenceView view = sequence.view();
      REQUIRE(decoder.select(sequence.query_view(), {&view, 1}, {tokens.data(), &count, 700}, {}, executor) == DecodeStatus::ok);
      const std::vector<int> row(tokens.begin(), tokens.begin() + count), &visible = sequence.visible(0);
      CHECK(std::includes(visible.begin(), visible.end(), row.begin(), row.end()));
      if (target == 1.0f) CHECK(row == visible);
    }
}

TEST_CASE("erased tokens are left out of dense rows and selections, also beyond what the index knows") {
  MaskedSpec spec = spec_of(4, 2, 1.0, true);
  spec.num_tokens = 300;
  MaskedSequence sequence(spec);
  SequenceView view = sequence.view();
  ClusterIndexView index = *view.index;
  std::vector<uint64_t> live(size_t(mask_words(300)), ~uint64_t(0));
  std::vector<bool> mask(300, true);
  for (int i = 0; i < 290; i += 3) {
    live[size_t(i / 64)] &= ~(uint64_t(1) << i % 64);
    mask[size_t(i)] = false;
    for (int c = 0; c < 64; ++c) {
      sequence.cache().set_key(i, 0, c, kNan);
      sequence.cache().set_value(i, 0, c, kNan);
    }
  }
  live.back() = 0;  // tokens 256 and beyond: those the index does not know of are alive
  index.live = live.data();
  index.always.num_known = 256;
  for (int i = 256; i < 300; ++i) mask[size_t(i)] = true;
  for (int i = 258; i < 290; i += 3)
    for (int c = 0; c < 64; ++c) {
      sequence.cache().set_key(i, 0, c, 0.1f);
      sequence.cache().set_value(i, 0, c, 0.1f);
    }
  view.index = &index;
  SerialExecutor executor;
  test::DecodeResult dense(sequence.shape(), 2), decoded(sequence.shape(), 2);
  dense_attention(sequence.shape(), sequence.query_view(), {&view, 1}, dense.out(), executor);
  Decoder decoder(sequence.shape(), test::sparse_options(1.0f), sequence.limits());
  REQUIRE(decoder.decode(sequence.query_view(), {&view, 1}, decoded.out(), decoded.reports, executor) == DecodeStatus::ok);
  CHECK(decoded.same_bits(dense));
  for (int r = 0; r < 2; ++r) {
    const auto visible = reference::visible_tokens(300, 2, r, true, 0, mask);
    for (int h = 0; h < 4; ++h) {
      const auto want =
          reference::attention(sequence.query(r, h).data(), sequence.keys(0), sequence.values(0), reference::Layer{0.125, 0.0}, visible);
      CHECK(test::relative_error(&dense.output[size_t(r * 4 + h) * 64], want.output.data(), 64) <= 1e-5);
    }
    CHECK(decoded.reports[size_t(4 * r)].tokens_read == int(reference::visible_tokens(300, 1, 0, true, 0, mask).size()));
  }
  view.num_rows = 1;
  QueryView query = sequence.query_view();
  query.num_rows = 1;
  std::vector<int32_t> tokens(300);
  int32_t count = 0;
  REQUIRE(decoder.select(query, {&view, 1}, {tokens.data(), &count, 300}, {}, executor) == DecodeStatus::ok);
  CHECK(std::vector<int>(tokens.begin(), tokens.begin() + count) == reference::visible_tokens(300, 1, 0, true, 0, mask));
}
