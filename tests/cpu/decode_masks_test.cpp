// Masked tokens weigh nothing, are read nowhere and counted nowhere: their keys and values are NaN here.
#include <doctest/doctest.h>

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

DecodeOptions options_of(float target) {
  DecodeOptions options;
  options.target_ratio = target;
  options.dense_below = 0;
  return options;
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
            const auto result = sequence.decode(options_of(1.0f), workers);
            REQUIRE(result.status == DecodeStatus::ok);
            CHECK(sequence.error(result) <= sequence.tolerance());
          }
        }
}

TEST_CASE("everything read the sparse way: the same, and reports count visible tokens") {
  for (const bool codes : {false, true})
    for (const int group : {1, 4, 16})
      for (const int rows : {1, 2, 5})
        for (const double density : kDensities)
          for (const int workers : {1, 2, 3}) {
            const MaskedSpec spec = spec_of(group, rows, density, codes);
            const MaskedSequence sequence(spec);
            CAPTURE(codes);
            CAPTURE(group);
            CAPTURE(rows);
            CAPTURE(density);
            CAPTURE(workers);
            DecodeOptions options = options_of(0.9f);
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
