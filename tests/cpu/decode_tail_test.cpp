// The unread rest: what its estimate does for the output, and what the report says of the reading.
#include <doctest/doctest.h>

#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

DecodeOptions options_of(float target, Tail tail) {
  DecodeOptions options;
  options.target_ratio = target;
  options.dense_below = 0;
  options.tail = tail;
  return options;
}

BatchSpec spec_of(uint64_t seed) {
  BatchSpec spec;
  spec.shape = {4, 2, 64, 0.0f};
  spec.lengths = {1500, 900};
  spec.key_noise = 0.4f;
  spec.seed = seed;
  return spec;
}

// Means over all heads of a batch.
struct Means {
  double error = 0.0, lse_error = 0.0, tokens = 0.0;
};

Means means_of(const Batch& batch, const DecodeOptions& options) {
  const auto result = batch.decode(options);
  Means means;
  const AttentionShape& shape = batch.shape();
  const int heads = batch.num_sequences() * shape.num_qo_heads;
  for (int i = 0; i < heads; ++i) {
    const auto want = batch.attention(i / shape.num_qo_heads, i % shape.num_qo_heads);
    means.error += test::relative_error(&result.output[size_t(i * shape.head_dim)], want.output.data(), shape.head_dim) / heads;
    means.lse_error += std::fabs(double(result.lse[size_t(i)]) - want.lse) / heads;
    means.tokens += double(result.reports[size_t(i)].tokens_read) / heads;
  }
  return means;
}

}  // namespace

TEST_CASE("the tail halves the error of dropping the rest, at the same tokens") {
  for (const float target : {0.5f, 0.8f, 0.9f}) {
    Means drop, estimated, calibrated;
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      const Batch batch(spec_of(seed));
      for (auto& [tail, sum] :
           std::vector<std::pair<Tail, Means*>>{{Tail::drop, &drop}, {Tail::estimated, &estimated}, {Tail::calibrated, &calibrated}}) {
        const Means means = means_of(batch, options_of(target, tail));
        sum->error += means.error;
        sum->lse_error += means.lse_error;
        sum->tokens += means.tokens;
      }
    }
    CAPTURE(target);
    CAPTURE(drop.error);
    CAPTURE(estimated.error);
    CAPTURE(calibrated.error);
    CHECK(estimated.error < 0.5 * drop.error);
    CHECK(calibrated.error < 0.5 * drop.error);
    CHECK(estimated.lse_error < 0.5 * drop.lse_error);
    CHECK(calibrated.lse_error < 0.5 * drop.lse_error);
    CHECK(estimated.tokens == drop.tokens);
    CHECK(calibrated.tokens == drop.tokens);
  }
}

TEST_CASE("the calibrated tail measures the rest where the estimate misjudges it") {
  // Without a variance model the estimate is far too low: the sample has to say how much there is.
  double estimated = 0.0, calibrated = 0.0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    BatchSpec spec = spec_of(seed);
    spec.key_noise = 1.0f;
    const Batch batch(spec);
    DecodeOptions options = options_of(0.5f, Tail::estimated);
    options.variance = VarianceModel::none;
    estimated += means_of(batch, options).lse_error;
    options.tail = Tail::calibrated;
    calibrated += means_of(batch, options).lse_error;
  }
  CAPTURE(estimated);
  CAPTURE(calibrated);
  CHECK(calibrated < 0.7 * estimated);
}

TEST_CASE("lse with the tail dropped is that of the tokens read: never more than dense attention's") {
  const Batch batch(spec_of(5));
  const auto result = batch.decode(options_of(0.6f, Tail::drop));
  for (int i = 0; i < 8; ++i) CHECK(double(result.lse[size_t(i)]) <= batch.attention(i / 4, i % 4).lse + 1e-5);
}

TEST_CASE("when everything is read there is no rest: every tail gives dense attention") {
  const Batch batch(spec_of(6));
  for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated}) {
    DecodeOptions options = options_of(0.5f, tail);
    options.min_tokens = 100000;
    const auto result = batch.decode(options);
    for (int i = 0; i < 8; ++i) {
      const auto want = batch.attention(i / 4, i % 4);
      const HeadReport& report = result.reports[size_t(i)];
      CHECK(report.path == DecodePath::sparse);
      CHECK(report.tokens_read == batch.spec().lengths[size_t(i / 4)]);
      CHECK(report.clusters_used == 0);
      CHECK(report.attained_ratio_estimate == 1.0f);
      CHECK(report.attained_ratio_lower_bound == 1.0f);
      CHECK(report.confidence == 1.0f);
      CHECK(test::largest_difference(&result.output[size_t(i * 64)], want.output.data(), 64) <= test::attention_tolerance(64, 1500, 40.0));
    }
  }
}

TEST_CASE("the sample's seed: the same again, another one another tail, the same tokens") {
  const Batch batch(spec_of(7));
  DecodeOptions options = options_of(0.7f, Tail::calibrated);
  const auto first = batch.decode(options);
  CHECK(batch.decode(options).same_bits(first));
  options.seed = 2;
  const auto other = batch.decode(options);
  CHECK_FALSE(other.same_bits(first));
  for (size_t i = 0; i < 8; ++i) CHECK(other.reports[i].tokens_read == first.reports[i].tokens_read);
}

TEST_CASE("more draws, less error of the amount") {
  double few = 0.0, many = 0.0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const Batch batch(spec_of(seed));
    DecodeOptions options = options_of(0.5f, Tail::calibrated);
    options.variance = VarianceModel::none;  // the amount comes from the sample alone
    options.num_samples = 4;
    few += means_of(batch, options).lse_error;
    options.num_samples = 256;
    many += means_of(batch, options).lse_error;
  }
  CAPTURE(few);
  CAPTURE(many);
  CHECK(many < 0.5 * few);
}

TEST_CASE("the report adds up") {
  BatchSpec spec = spec_of(8);
  spec.index.window_tokens = 20;
  const Batch batch(spec);
  for (const Tail tail : {Tail::drop, Tail::estimated, Tail::calibrated})
    for (const bool certify : {false, true}) {
      DecodeOptions options = options_of(0.7f, tail);
      options.certificate.enabled = certify;
      const auto result = batch.decode(options);
      for (int i = 0; i < 8; ++i) {
        const HeadReport& report = result.reports[size_t(i)];
        const int length = spec.lengths[size_t(i / 4)];
        const int64_t row = 64 * 2;
        CHECK(report.path == DecodePath::sparse);
        CHECK(report.bytes_dense == 2 * row * length);
        CHECK(report.tokens_read >= 24);
        CHECK(report.tokens_scored >= report.tokens_read);
        CHECK(report.tokens_scored <= length);
        CHECK((report.tokens_sampled > 0) == (certify || tail == Tail::calibrated));
        CHECK((report.clusters_used > 0) == (tail != Tail::drop));
        // At least keys and values of the tokens read, the samples' keys and every centroid once.
        CHECK(report.bytes_read >= row * (report.tokens_scored + report.tokens_read + report.tokens_sampled) + length / 16 * 64);
        CHECK(report.bytes_read < 2 * report.bytes_dense);
        CHECK(report.attained_ratio_estimate > 0.0f);
        CHECK(report.attained_ratio_estimate <= 1.0f);
        CHECK(report.attained_ratio_lower_bound <= report.attained_ratio_estimate);
        const bool sampled = certify || tail == Tail::calibrated;
        CHECK(report.confidence == (sampled ? 0.95f : 0.0f));
        CHECK((report.attained_ratio_lower_bound > 0.0f) == sampled);
        if (!certify) CHECK(report.rounds == 0);
        // Heads of a group share what was read.
        const HeadReport& first = result.reports[size_t(i / 2 * 2)];
        CHECK(report.tokens_read == first.tokens_read);
        CHECK(report.bytes_read == first.bytes_read);
      }
    }
}
