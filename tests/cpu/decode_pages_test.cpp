// Pages: bit for bit what one run of tokens gives, dense, selected, built, appended and decoded, whatever lies in other rows.
#include <doctest/doctest.h>

#include <vector>

#include "quorum/cpu/decode.hpp"
#include "quorum/cpu/sparse_attention.hpp"
#include "tests/support/decode_batch.hpp"
#include "tests/support/paged_pool.hpp"

using namespace quorum;
using test::Batch;
using test::DecodeResult;
using test::Layout;
using test::PagedPool;
using test::PoolSpec;

namespace {

constexpr int kHeadDim = 64, kShared = 480;  // two pages of 240 and more of smaller ones

// Ragged, one sequence empty; the two long ones begin with the same prompt.
Batch prompts(ElementType type, bool codes) {
  test::BatchSpec spec;
  if (codes) spec.index = {};
  spec.lengths = {900, 0, 1301, 5};
  spec.type = type;
  spec.build_indexes = false;
  Batch batch(spec);
  for (int t = 0; t < kShared; ++t) batch.cache(2).copy_token(t, batch.cache(0));
  batch.build_indexes();
  return batch;
}

std::vector<KvCacheView> runs_of(const Batch& batch) {
  std::vector<KvCacheView> out;
  for (const SequenceView& sequence : batch.sequences()) out.push_back(sequence.kv);
  return out;
}
PagedPool pool_of(const PoolSpec& spec, const Batch& batch) { return {spec, batch.shape().num_kv_heads, kHeadDim, runs_of(batch)}; }

std::vector<PoolSpec> pools() {
  std::vector<PoolSpec> out;
  for (const int page_size : {1, 3, 16, 256})
    for (const Layout layout : {Layout::nhd, Layout::hnd, Layout::interleaved})
      out.push_back({page_size, layout, (page_size % 2 == 0) == (layout == Layout::hnd), kShared});
  return out;
}

DecodeResult dense(const Batch& batch, const std::vector<KvCacheView>& kv, Executor& executor) {
  DecodeResult result(batch.shape(), batch.num_sequences());
  dense_attention(batch.shape(), batch.query_view(), kv, result.out(), executor);
  return result;
}

// Every third token, for each sequence and KV head.
DecodeResult selected(const Batch& batch, const std::vector<KvCacheView>& kv, Executor& executor) {
  std::vector<int32_t> tokens;
  std::vector<int64_t> indptr = {0};
  for (const KvCacheView& cache : kv)
    for (int h = 0; h < batch.shape().num_kv_heads; ++h) {
      for (int t = h; t < cache.num_tokens; t += 3) tokens.push_back(t);
      indptr.push_back(int64_t(tokens.size()));
    }
  SelectionView selection;
  selection.tokens = tokens.data();
  selection.indptr = indptr.data();
  selection.num_sequences = batch.num_sequences();
  selection.num_kv_heads = batch.shape().num_kv_heads;
  DecodeResult result(batch.shape(), batch.num_sequences());
  sparse_attention(batch.shape(), batch.query_view(), kv, selection, result.out(), executor);
  return result;
}

// Indexes over all but the last 300 tokens, the rest appended; then one step with a certificate.
DecodeResult decoded(const Batch& batch, const std::vector<KvCacheView>& kv, const DecodeOptions& options, Executor& executor) {
  std::vector<std::unique_ptr<ClusterIndex>> indexes;
  std::vector<SequenceView> sequences;
  for (const KvCacheView& cache : kv) {
    indexes.push_back(std::make_unique<ClusterIndex>(batch.shape(), batch.spec().index));
    test::build_index(*indexes.back(), cache.first(std::max(0, cache.num_tokens - 300)));
    test::append_index(*indexes.back(), cache);
    sequences.push_back({cache, &indexes.back()->view()});
  }
  Decoder decoder(batch.shape(), options, batch.limits(executor.num_workers()));
  DecodeResult result(batch.shape(), batch.num_sequences());
  result.status = decoder.decode(batch.query_view(), sequences, result.out(), result.reports, executor);
  return result;
}

}  // namespace

TEST_CASE("dense and selected attention over pages") {
  for (const ElementType type : {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::q8_0, ElementType::fp8_e4m3}) {
    const Batch batch = prompts(type, false);
    ThreadExecutor executor(2);
    const DecodeResult all = dense(batch, runs_of(batch), executor), some = selected(batch, runs_of(batch), executor);
    for (const float x : all.output) CHECK_FALSE(std::isnan(x));
    CHECK_FALSE(all.same_bits(some));
    for (const PoolSpec& spec : pools()) {
      const PagedPool pool = pool_of(spec, batch);
      CAPTURE(std::string(element_name(type)));
      CAPTURE(spec.page_size);
      CAPTURE(std::string(test::layout_name(spec.layout)));
      CHECK(dense(batch, pool.sequences(), executor).same_bits(all));
      CHECK(selected(batch, pool.sequences(), executor).same_bits(some));
    }
  }
}

TEST_CASE("build, append and decode over pages, by clusters and by codes, with a certificate") {
  for (const bool codes : {false, true})
    for (const ElementType type : {ElementType::f16, ElementType::q8_0, ElementType::fp8_e4m3}) {
      const Batch batch = prompts(type, codes);
      DecodeOptions options;
      options.dense_below = 0;
      options.target_ratio = 0.7f;
      options.certificate.enabled = true;
      SerialExecutor executor;
      const DecodeResult want = decoded(batch, runs_of(batch), options, executor);
      REQUIRE(want.status == DecodeStatus::ok);
      CHECK(want.reports[0].path == (codes ? DecodePath::sparse_tokens : DecodePath::sparse));
      int sampled = 0, unread = 0;
      for (const HeadReport& head : want.reports) sampled += head.tokens_sampled;
      for (int h = 0; h < 4; ++h) unread += 900 - want.reports[size_t(h)].tokens_read;
      CHECK(sampled > 0);
      CHECK(unread > 0);
      for (const PoolSpec& spec : {PoolSpec{1, Layout::nhd, true, kShared}, PoolSpec{3, Layout::hnd, false, kShared},
                                   PoolSpec{16, Layout::interleaved, true, kShared}, PoolSpec{256, Layout::hnd, false, kShared}}) {
        const PagedPool pool = pool_of(spec, batch);
        CAPTURE(codes);
        CAPTURE(std::string(element_name(type)));
        CAPTURE(spec.page_size);
        const DecodeResult got = decoded(batch, pool.sequences(), options, executor);
        REQUIRE(got.status == DecodeStatus::ok);
        CHECK(got.same_bits(want));
        int different = 0;
        for (size_t i = 0; i < want.reports.size(); ++i)
          different += got.reports[i].tokens_read != want.reports[i].tokens_read || got.reports[i].path != want.reports[i].path ||
                       got.reports[i].attained_ratio_lower_bound != want.reports[i].attained_ratio_lower_bound;
        CHECK(different == 0);
      }
    }
}

TEST_CASE("pages that sequences share are the same memory") {
  const Batch batch = prompts(ElementType::f16, false);
  const PagedPool pool = pool_of({16, Layout::nhd, false, kShared}, batch);
  const auto sequences = pool.sequences();
  for (const int t : {0, kShared - 1}) CHECK(sequences[0].pages[t / 16] == sequences[2].pages[t / 16]);
  CHECK(sequences[0].pages[kShared / 16] != sequences[2].pages[kShared / 16]);
}
