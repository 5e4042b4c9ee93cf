// Decoding against the reference over the tokens it says it has read: shapes, element types, layouts, batches.
#include "quorum/cpu/decode.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/support/decode_batch.hpp"

using namespace quorum;
using test::Batch;
using test::BatchSpec;

namespace {

DecodeOptions sparse_options(float target, Tail tail) {
  DecodeOptions options;
  options.target_ratio = target;
  options.tail = tail;
  options.dense_below = 0;
  return options;
}

double error_over_selection(const Batch& batch, float target) {
  return test::error_over_selection(batch, sparse_options(target, Tail::drop));
}

// Whether a sparse path was taken by some head: otherwise the tests above compare dense attention with itself.
int sparse_heads(const Batch& batch, float target) {
  int count = 0;
  for (const HeadReport& report : batch.decode(sparse_options(target, Tail::drop)).reports) count += report.path == DecodePath::sparse;
  return count;
}

}  // namespace

TEST_CASE("MHA, GQA and MQA; groups of 1, 2, 3, 4, 7, 8, 16") {
  for (const auto& [qo, kv] : std::vector<std::pair<int, int>>{{3, 3}, {4, 2}, {6, 2}, {8, 2}, {7, 1}, {8, 1}, {16, 1}}) {
    BatchSpec spec;
    spec.shape = {qo, kv, 64, 0.0f};
    spec.lengths = {700, 40};
    const Batch batch(spec);
    const std::string shape = std::to_string(qo) + " query heads, " + std::to_string(kv) + " KV heads";
    CAPTURE(shape);
    CHECK(error_over_selection(batch, 0.9f) <= 1.0);
    CHECK(sparse_heads(batch, 0.9f) == 2 * qo);
  }
}

TEST_CASE("head_dims, powers of two and others") {
  for (const int d : {8, 24, 64, 72, 80, 96, 128, 192, 256, 512}) {
    BatchSpec spec;
    spec.shape = {6, 2, d, 0.0f};
    spec.lengths = {400};
    const Batch batch(spec);
    CAPTURE(d);
    CHECK(error_over_selection(batch, 0.8f) <= 1.0);
    CHECK(sparse_heads(batch, 0.8f) == 6);
  }
}

TEST_CASE("element types and layouts") {
  for (const ElementType type : {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::q8_0, ElementType::fp8_e4m3})
    for (const test::Layout layout : {test::Layout::nhd, test::Layout::hnd, test::Layout::interleaved}) {
      BatchSpec spec;
      spec.shape = {4, 2, type == ElementType::q8_0 ? 96 : 72, 0.0f};
      spec.lengths = {333};
      spec.type = type;
      spec.query_type = type;
      spec.layout = layout;
      const Batch batch(spec);
      const std::string what = std::string(element_name(type)) + ' ' + layout_name(layout);
      CAPTURE(what);
      CHECK(error_over_selection(batch, 0.9f) <= 1.0);
    }
}

TEST_CASE("index storages, variance models and prompt queries") {
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
    for (const VarianceModel model : {VarianceModel::none, VarianceModel::shared, VarianceModel::diagonal})
      for (const int prompt : {0, 20}) {
        BatchSpec spec;
        spec.lengths = {600};
        spec.index.storage = storage;
        spec.index.variance = model;
        spec.num_prompt_queries = prompt;
        const Batch batch(spec);
        DecodeOptions options = sparse_options(0.9f, Tail::calibrated);
        options.variance = model;
        const auto result = batch.decode(options);
        CAPTURE(int(storage));
        CAPTURE(int(model));
        CAPTURE(prompt);
        REQUIRE(result.status == DecodeStatus::ok);
        for (int h = 0; h < 4; ++h) {
          const auto want = batch.attention(0, h);
          CHECK(result.reports[size_t(h)].path == DecodePath::sparse);
          CHECK(test::relative_error(&result.output[size_t(h * 64)], want.output.data(), 64) < 0.1);
          CHECK(test::near(result.lse[size_t(h)], want.lse, 0.1));
        }
      }
}

TEST_CASE("ragged batches: every sequence as if it were alone") {
  BatchSpec spec;
  spec.shape = {6, 2, 64, 0.0f};
  spec.lengths = {900, 0, 17, 1, 1500, 5, 300};
  const Batch batch(spec);
  CHECK(error_over_selection(batch, 0.9f) <= 1.0);
  const DecodeOptions options = sparse_options(0.9f, Tail::drop);
  const auto together = batch.decode(options);
  const auto sequences = batch.sequences();
  for (int s = 0; s < 7; ++s) {
    Decoder decoder(spec.shape, options, batch.limits());
    test::DecodeResult alone(spec.shape, 1);
    SerialExecutor executor;
    QueryView query = batch.query_view();
    query.data = query.row(s, 0);
    query.num_rows = 1;
    REQUIRE(decoder.decode(query, {&sequences[size_t(s)], 1}, alone.out(), alone.reports, executor) == DecodeStatus::ok);
    CHECK(std::equal(alone.output.begin(), alone.output.end(), together.output.begin() + std::ptrdiff_t(s) * 6 * 64));
  }
}

TEST_CASE("the scale of scores") {
  for (const float scale : {0.01f, 0.125f, 0.5f}) {
    BatchSpec spec;
    spec.shape.sm_scale = scale;
    spec.lengths = {600};
    const Batch batch(spec);
    CAPTURE(scale);
    CHECK(error_over_selection(batch, 0.8f) <= 4.0);  // scores four times as large: four times the rounding
  }
}

TEST_CASE("lse and reports may be left out") {
  BatchSpec spec;
  spec.lengths = {600, 600};
  Batch batch(spec);
  const DecodeOptions options = sparse_options(0.9f, Tail::calibrated);
  const auto want = batch.decode(options);
  Decoder decoder(spec.shape, options, batch.limits());
  SerialExecutor executor;
  std::vector<float> output(want.output.size());
  CHECK(decoder.decode(batch.query_view(), batch.sequences(), {output.data(), nullptr}, {}, executor) == DecodeStatus::ok);
  CHECK(output == want.output);
}

TEST_CASE("an empty batch") {
  BatchSpec spec;
  spec.lengths = {600};
  Batch batch(spec);
  Decoder decoder(spec.shape, {}, batch.limits());
  SerialExecutor executor;
  QueryView none = batch.query_view();
  none.num_rows = 0;
  CHECK(decoder.decode(none, {}, {}, {}, executor) == DecodeStatus::ok);
  CHECK(decoder.select(none, {}, {}, {}, executor) == DecodeStatus::ok);
}
