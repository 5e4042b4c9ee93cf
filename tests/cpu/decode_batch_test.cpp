// The batches that tests of decoding share: compiled once here, and tested themselves.
#include "tests/support/decode_batch.hpp"

#include <doctest/doctest.h>

#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"

namespace quorum::test {

void build_index(ClusterIndex& index, const KvCacheView& kv, const QueryView* prompt_queries) {
  SerialExecutor executor;
  index.build(kv, prompt_queries, executor);
}
void append_index(ClusterIndex& index, const KvCacheView& kv) {
  SerialExecutor executor;
  index.append(kv, executor);
}

Batch::Batch(const BatchSpec& spec) : spec_(spec) {
  const AttentionShape& shape = spec.shape;
  std::vector<float> queries;
  for (size_t s = 0; s < spec.lengths.size(); ++s) {
    const ClusteredData data =
        clustered_data({spec.lengths[s], shape.num_kv_heads, shape.num_qo_heads, shape.head_dim, 1 + spec.num_prompt_queries,
                        spec.seed + 1000 * s, 24, spec.key_noise, 0.5f, spec.sharpness});
    const CacheShape cache{spec.lengths[s], shape.num_kv_heads, shape.head_dim, spec.type, spec.layout};
    caches_.push_back(std::make_unique<TestCache>(cache, data.keys, data.values));
    const auto first = std::ptrdiff_t(shape.num_qo_heads * shape.head_dim);
    queries.insert(queries.end(), data.queries.begin(), data.queries.begin() + first);
    prompts_.emplace_back(data.queries.begin() + first, data.queries.end());
  }
  queries_ = std::make_unique<TestQueries>(spec.query_type, int(spec.lengths.size()), shape.num_qo_heads, shape.head_dim, queries);
  build_indexes();
}

void Batch::build_indexes() {
  const AttentionShape& shape = spec_.shape;
  indexes_.clear();
  for (size_t s = 0; s < caches_.size(); ++s) {
    indexes_.push_back(std::make_unique<ClusterIndex>(shape, spec_.index));
    if (!spec_.build_indexes) continue;
    const QueryView prompt = QueryView::contiguous(prompts_[s].data(), spec_.num_prompt_queries, shape.num_qo_heads, shape.head_dim);
    build_index(*indexes_[s], caches_[s]->view(), spec_.num_prompt_queries > 0 ? &prompt : nullptr);
  }
}

DecodeResult Batch::decode(const DecodeOptions& options, Executor& executor) const {
  Decoder decoder(spec_.shape, options, limits(executor.num_workers()));
  DecodeResult result(spec_.shape, num_sequences());
  result.status = decoder.decode(query_view(), sequences(), result.out(), result.reports, executor);
  return result;
}
DecodeResult Batch::decode(const DecodeOptions& options) const {
  SerialExecutor executor;
  return decode(options, executor);
}

SelectResult Batch::select(const DecodeOptions& options, Executor& executor) const {
  Decoder decoder(spec_.shape, options, limits(executor.num_workers()));
  const size_t rows = size_t(num_sequences() * spec_.shape.num_kv_heads);
  const int64_t capacity = limits().max_tokens;
  std::vector<int32_t> tokens(rows * size_t(capacity), -2), counts(rows, -2);
  SelectResult result;
  result.reports.resize(size_t(num_sequences() * spec_.shape.num_qo_heads));
  result.status = decoder.select(query_view(), sequences(), {tokens.data(), counts.data(), capacity}, result.reports, executor);
  for (size_t r = 0; r < rows; ++r) {
    const auto begin = tokens.begin() + std::ptrdiff_t(r) * std::ptrdiff_t(capacity);
    result.rows.emplace_back(begin, begin + counts[r]);
  }
  return result;
}
SelectResult Batch::select(const DecodeOptions& options) const {
  SerialExecutor executor;
  return select(options, executor);
}

DecodeResult Batch::dense(Executor& executor) const {
  DecodeResult result(spec_.shape, num_sequences());
  std::vector<KvCacheView> views;
  for (const auto& cache : caches_) views.push_back(cache->view());
  dense_attention(spec_.shape, query_view(), views, result.out(), executor);
  return result;
}

}  // namespace quorum::test

using namespace quorum;
using test::Batch;
using test::BatchSpec;

TEST_CASE("caches hold what they were given, in every type and layout, NaN in between") {
  for (const ElementType type : {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::q8_0, ElementType::fp8_e4m3})
    for (const test::Layout layout : {test::Layout::nhd, test::Layout::hnd, test::Layout::interleaved}) {
      const int tokens = 5, heads = 3, d = type == ElementType::q8_0 ? 64 : 8;
      const auto keys = test::gaussian_floats(tokens * heads * d, 1), values = test::gaussian_floats(tokens * heads * d, 2);
      const test::TestCache cache({tokens, heads, d, type, layout}, keys, values);
      const KvCacheView view = cache.view();
      const bool is_fp8 = type == ElementType::fp8_e4m3;
      const double step = type == ElementType::f32 ? 0.0 : type == ElementType::f16 ? 0x1p-11 : is_fp8 ? 0x1p-4 + 0x1p-20 : 0x1p-8;
      // Steps of the largest Gaussians, and of subnormals.
      const double least = type == ElementType::q8_0 ? 4.0 / 127 : is_fp8 ? 0.1 * 0x1p-10 : 0.0;
      size_t from = 0;
      for (int i = 0; i < tokens; ++i)
        for (int h = 0; h < heads; ++h)
          for (int c = 0; c < d; ++c, ++from) {
            const double key = double(view.key_scale(h)) * reference::element(view.key_row(i, h), test::reference_format(type), c);
            const double value = double(view.value_scale(h)) * reference::element(view.value_row(i, h), test::reference_format(type), c);
            CHECK(test::near(key, double(keys[from]), least + step * std::fabs(double(keys[from]))));
            CHECK(test::near(value, double(values[from]), least + step * std::fabs(double(values[from]))));
            CHECK(key == cache.keys(h).row(i)[c]);
            CHECK(value == cache.values(h).row(i)[c]);
          }
      for (int c = d; c < d + test::gap_of(type); ++c)
        CHECK(std::isnan(reference::element(view.key_row(1, 1), test::reference_format(type), c)));
    }
}

TEST_CASE("queries likewise") {
  const auto floats = test::gaussian_floats(2 * 3 * 8, 3);
  test::TestQueries queries(ElementType::f32, 2, 3, 8, floats);
  for (int r = 0; r < 2; ++r)
    for (int h = 0; h < 3; ++h)
      for (int c = 0; c < 8; ++c) {
        CHECK(queries.get(r, h)[size_t(c)] == double(floats[size_t((r * 3 + h) * 8 + c)]));
        CHECK(reference::element(queries.view().row(r, h), reference::Format::f32, c) == queries.get(r, h)[size_t(c)]);
      }
  CHECK(std::isnan(reference::element(queries.view().row(0, 0), reference::Format::f32, 8)));
}

TEST_CASE("q8_0: an element set later is rounded with its block, others keep their blocks; blocks by their bits") {
  const auto floats = test::gaussian_floats(2 * 64, 4);
  test::TestCache cache({2, 1, 64, ElementType::q8_0, test::Layout::nhd}, floats, floats);
  const auto before = cache.keys(0);
  cache.set_key(1, 0, 40, 12.7f);
  CHECK(test::near(cache.keys(0).row(1)[40], 12.7, 0.01));
  for (int c = 0; c < 64; ++c) {
    CHECK(test::near(cache.keys(0).row(1)[c], c == 40 ? 12.7 : before.row(1)[c], c < 32 ? 0.0 : 0.06));
    CHECK(cache.keys(0).row(0)[c] == before.row(0)[c]);
  }
  cache.set_key(1, 0, 40, kNan);
  for (int c = 0; c < 64; ++c) CHECK(std::isnan(cache.keys(0).row(1)[c]) == (c >= 32));
  cache.set_value_block(0, 0, 32, {from_float<f16>(-2.0f), {5, -128}});
  CHECK(cache.values(0).row(0)[32] == -10.0);
  CHECK(cache.values(0).row(0)[33] == 256.0);
  CHECK(cache.values(0).row(0)[63] == 0.0);
  test::TestCache copy({2, 1, 64, ElementType::q8_0, test::Layout::hnd}, floats, floats);
  copy.copy_token(0, cache);
  CHECK(copy.values(0).row(0)[33] == 256.0);
}

TEST_CASE("generated data have something to find, plain Gaussian keys have not") {
  BatchSpec spec;
  spec.lengths = {1500};
  spec.build_indexes = false;
  const Batch clustered(spec);
  spec.sharpness = 0.1f;
  const Batch flat(spec);
  const auto share_of_best = [](const Batch& batch) {
    double share = 0.0;
    for (int h = 0; h < 4; ++h) {
      auto scores = batch.scores(0, h);
      std::vector<int> order = reference::all_tokens(1500);
      std::sort(order.begin(), order.end(), [&](int a, int b) { return scores[size_t(a)] > scores[size_t(b)]; });
      order.resize(150);
      share += batch.attained_ratio(0, h, order) / 4.0;
    }
    return share;
  };
  CHECK(share_of_best(clustered) > 0.7);
  CHECK(share_of_best(flat) < 0.2);
}

TEST_CASE("comparisons notice NaN") {
  const double nan = double(kNan);
  CHECK_FALSE(test::near(nan, nan, 1.0));
  CHECK_FALSE(test::near(1.0, nan, 1e9));
  CHECK(test::near(-double(kInfinity), -double(kInfinity), 0.0));
  const double a[2] = {1.0, nan}, b[2] = {1.5, 2.0};
  CHECK(test::largest_difference(a, b, 1) == 0.5);
  CHECK(test::largest_difference(a, b, 2) == double(kInfinity));
  CHECK(test::largest_difference(a, a, 2) == 0.0);
  CHECK(test::relative_error(a, b, 2) == double(kInfinity));
  CHECK(test::larger_error(nan, 1.0) == double(kInfinity));
  CHECK(test::larger_error(1.0, nan) == double(kInfinity));
  CHECK(test::larger_error(1.0, 2.0) == 2.0);
}
