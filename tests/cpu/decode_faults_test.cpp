// Poisoned and extreme numbers in every element type, for whole clusters and single tokens, with and without a certificate: a fault stays
// in its KV head, to the bit, and extremes end as attention in double says.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/attention_error.hpp"
#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

constexpr int kTokens = 600, kGroup = 2, kKvHeads = 2, kHeads = kGroup * kKvHeads, kDim = 64, kWindow = 20;
constexpr ElementType kTypes[] = {ElementType::f32, ElementType::f16, ElementType::bf16};
constexpr ReadUnit kUnits[] = {ReadUnit::clusters, ReadUnit::tokens};

BatchSpec spec_of(ElementType type, ReadUnit unit, std::vector<int> lengths = {kTokens, kTokens}) {
  BatchSpec spec;
  if (unit == ReadUnit::tokens) spec.index = {};
  spec.shape = {kHeads, kKvHeads, kDim, 0.0f};
  spec.lengths = std::move(lengths);
  spec.type = type;
  spec.index.window_tokens = kWindow;
  return spec;
}

DecodeOptions options_of(ReadUnit unit, bool certify) {
  DecodeOptions options;
  options.unit = unit;
  options.dense_below = 0;
  options.certificate.enabled = certify;
  return options;
}

// Whether all heads but those of one KV head of one sequence have the same bits and reports in both results.
bool others_equal(const test::DecodeResult& a, const test::DecodeResult& b, int sequence, int kv_head) {
  for (size_t row = 0; row < a.lse.size(); ++row) {
    if (int(row) / kGroup == sequence * kKvHeads + kv_head) continue;
    if (std::memcmp(&a.output[row * kDim], &b.output[row * kDim], kDim * 4) != 0 || std::memcmp(&a.lse[row], &b.lse[row], 4) != 0)
      return false;
    if (a.reports[row].path != b.reports[row].path || a.reports[row].tokens_read != b.reports[row].tokens_read) return false;
  }
  return true;
}

bool is_reported(const test::DecodeResult& result, int sequence, int kv_head) {
  bool all = true;
  for (int g = 0; g < kGroup; ++g)
    all = all && result.reports[size_t(sequence * kHeads + kv_head * kGroup + g)].path == DecodePath::dense_by_numerics;
  return all;
}

// Puts a fault into KV head 1 of sequence 1, and looks at every type, unit and certificate. `reported`: its heads must say so.
void check_fault(bool reported, const std::function<void(Batch&, float)>& put) {
  for (const ElementType type : kTypes)
    for (const ReadUnit unit : kUnits) {
      Batch batch(spec_of(type, unit));
      std::vector<test::DecodeResult> clean;
      for (const bool certify : {false, true}) clean.push_back(batch.decode(options_of(unit, certify)));
      for (const float element : {kNan, kInfinity, -kInfinity}) {
        put(batch, element);
        batch.build_indexes();
        for (const bool certify : {false, true}) {
          const std::string what = std::string(element_name(type)) + ' ' + std::to_string(int(unit)) + ' ' + std::to_string(element);
          CAPTURE(what);
          CAPTURE(certify);
          const auto result = batch.decode(options_of(unit, certify));
          CHECK(test::worst_error(batch, result) < 0.5);
          CHECK(others_equal(result, clean[certify ? 1 : 0], 1, 1));
          if (reported) CHECK(is_reported(result, 1, 1));
        }
      }
    }
}

// Decodes the changed batch in every type, unit and certificate, and compares with the reference. Returns the largest error, and prints
// where it was if that is too large.
double worst_of_all(float sharpness, double tolerance, const std::function<void(Batch&)>& change) {
  double worst = 0.0;
  for (const ElementType type : kTypes)
    for (const ReadUnit unit : kUnits) {
      BatchSpec spec = spec_of(type, unit, {kTokens});
      spec.sharpness = sharpness;
      Batch batch(spec);
      change(batch);
      batch.build_indexes();
      for (const bool certify : {false, true}) {
        const auto result = batch.decode(options_of(unit, certify));
        const double error = test::worst_error(batch, result);
        worst = test::larger_error(worst, error);
        if (!(error <= tolerance)) {
          const std::string paths = std::to_string(int(result.reports[0].path)) + ' ' + std::to_string(int(result.reports[3].path));
          MESSAGE(std::string(element_name(type))
                  << ", unit " << int(unit) << ", certificate " << certify << ", paths " << paths << ": " << error);
        }
      }
    }
  return worst;
}

void for_each_element(const std::function<void(int token, int kv_head, int c)>& visit) {
  for (int i = 0; i < kTokens; ++i)
    for (int h = 0; h < kKvHeads; ++h)
      for (int c = 0; c < kDim; ++c) visit(i, h, c);
}

}  // namespace

TEST_CASE("a fault in an indexed key or value, or in a query: reported, and no bit of another head changes") {
  check_fault(true, [](Batch& batch, float element) { batch.cache(1).set_key(300, 1, 5, element); });
  check_fault(true, [](Batch& batch, float element) { batch.cache(1).set_value(300, 1, 5, element); });
  check_fault(true, [](Batch& batch, float element) { batch.queries().set(1, 3, 5, element); });
}

TEST_CASE("a fault in a sink or in the window, which the index does not hold: no bit of another head changes") {
  for (const int token : {1, kTokens - 3}) {
    check_fault(false, [&](Batch& batch, float element) { batch.cache(1).set_key(token, 1, 5, element); });
    check_fault(false, [&](Batch& batch, float element) { batch.cache(1).set_value(token, 1, 5, element); });
  }
}

TEST_CASE("a KV head whose keys are all at the largest f16: scores of a million, no other head changes") {
  for (const ElementType type : kTypes)
    for (const ReadUnit unit : kUnits)
      for (const bool certify : {false, true}) {
        Batch batch(spec_of(type, unit));
        const auto clean = batch.decode(options_of(unit, certify));
        for (int i = 0; i < kTokens; ++i)
          for (int c = 0; c < kDim; ++c) batch.cache(1).set_key(i, 1, c, batch.cache(1).keys(1).row(i)[c] > 0.0 ? 65504.0f : -65504.0f);
        batch.build_indexes();
        const auto result = batch.decode(options_of(unit, certify));
        CAPTURE(int(type));
        CAPTURE(int(unit));
        CAPTURE(certify);
        CHECK(others_equal(result, clean, 1, 1));
        CHECK(test::worst_error(batch, result) < 0.5);
      }
}

TEST_CASE("keys at the largest f16 and large queries: the output is that of attention in double") {
  for (const float sharpness : {3.0f, 300.0f, 30000.0f}) {
    CAPTURE(sharpness);
    CHECK(worst_of_all(sharpness, 0.01, [](Batch& batch) {
            for_each_element([&](int i, int h, int c) {
              batch.cache(0).set_key(i, h, c, batch.cache(0).keys(h).row(i)[c] > 0.0 ? 65504.0f : -65504.0f);
            });
          }) <= 0.01);
  }
}

TEST_CASE("one token at the largest f16 among ordinary ones") {
  // It draws the mean key away from all others, whose coordinates are then stored coarsely: estimates are poor, and which tokens they miss
  // hangs on the last bits of the processor's sums (errors of 0.04 to 0.56 were seen). The output must stay finite, and its error below its
  // length.
  CHECK(worst_of_all(3.0f, 1.0, [](Batch& batch) {
          for (int h = 0; h < kKvHeads; ++h)
            for (int c = 0; c < kDim; ++c) batch.cache(0).set_key(300, h, c, c % 2 == 0 ? 65504.0f : -65504.0f);
        }) <= 1.0);
}

TEST_CASE("keys and values that are subnormal in f16") {
  CHECK(worst_of_all(3.0f, 0.1, [](Batch& batch) {
          for_each_element([&](int i, int h, int c) {
            batch.cache(0).set_key(i, h, c, 0x1p-24f * float((i * 7 + c * 3) % 11 - 5));
            batch.cache(0).set_value(i, h, c, 0x1p-24f * float((i * 5 + c * 13) % 900 + 1));
          });
        }) <= 0.1);
}

TEST_CASE("keys and values that are subnormal in f32 give no NaN and nothing larger than they are") {
  for (const ElementType type : {ElementType::f32, ElementType::bf16})
    for (const ReadUnit unit : kUnits)
      for (const bool certify : {false, true}) {
        Batch batch(spec_of(type, unit, {kTokens}));
        for_each_element([&](int i, int h, int c) {
          batch.cache(0).set_key(i, h, c, 1e-39f * float((i * 7 + c * 3) % 11 - 5));
          batch.cache(0).set_value(i, h, c, 1e-39f * float((i * 5 + c) % 9 - 4));
        });
        batch.build_indexes();
        const auto result = batch.decode(options_of(unit, certify));
        REQUIRE(result.status == DecodeStatus::ok);
        int wrong = 0;
        for (const float x : result.output) wrong += !(std::fabs(x) <= 5e-39f);
        CHECK(wrong == 0);
        for (int h = 0; h < kHeads; ++h) CHECK(test::near(result.lse[size_t(h)], std::log(double(kTokens)), 0.05));
      }
}

TEST_CASE("all keys equal, at ordinary and at extreme sizes: the mean of the values") {
  for (const float element : {0.0f, 0.7f, -65504.0f, 0x1p-24f}) {
    CAPTURE(element);
    CHECK(worst_of_all(3.0f, 0.02, [&](Batch& batch) {
            for_each_element([&](int i, int h, int c) {
              batch.cache(0).set_key(i, h, c, element);
              batch.cache(0).set_value(i, h, c, float(c + 1));
            });
          }) <= 0.02);
  }
}

TEST_CASE("every token many times over") {
  CHECK(worst_of_all(3.0f, 0.1, [](Batch& batch) {
          const test::TestCache first = batch.cache(0);
          for_each_element([&](int i, int h, int c) {
            batch.cache(0).set_key(i, h, c, float(first.keys(h).row(i % 12)[c]));
            batch.cache(0).set_value(i, h, c, float(first.values(h).row(i % 12)[c]));
          });
        }) <= 0.1);
}

TEST_CASE("scores from -1e4 to 1e4") {
  for (const double largest : {30.0, 60.0, 1e2, 2e2, 1e3, 1e4}) {
    CAPTURE(largest);
    CHECK(worst_of_all(3.0f, 0.3, [&](Batch& batch) {
            for (int h = 0; h < kHeads; ++h) {
              double size = 0.0;
              for (const double score : batch.scores(0, h)) size = std::max(size, std::fabs(score));
              const auto query = batch.queries().get(0, h);
              for (int c = 0; c < kDim; ++c) batch.queries().set(0, h, c, float(query[size_t(c)] * largest / size));
            }
          }) <= 0.3);
  }
}
