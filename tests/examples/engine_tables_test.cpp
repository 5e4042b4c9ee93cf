// The tables in which vLLM, SGLang, TensorRT-LLM and FlashInfer keep caches and pass selections, filled here as those engines fill them:
// the conversions that docs/vllm_sglang.md shows.
#include <doctest/doctest.h>

#include <numeric>
#include <set>

#include "quorum/core/paged_kv_view.hpp"
#include "quorum/quorum.hpp"
#include "tests/reference/attention_reference.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

constexpr int kHeads = 4, kKvHeads = 2, kDim = 32, kBlock = 16, kBlocks = 128, kTableRow = 40;

// A worker's state as vLLM has it: kv_cache [2][num_blocks][block_size][num_kv_heads][head_dim] in bf16, block_table, seq_lens.
struct VllmWorker {
  std::vector<bf16> kv_cache = std::vector<bf16>(2 * kBlocks * kBlock * kKvHeads * kDim, bf16{0x7fc0});  // NaN where nothing was written
  std::vector<int32_t> block_table;                                                                      // [num_reqs][kTableRow]
  std::vector<int32_t> seq_lens;
  std::vector<int32_t> free_blocks;
  test::Random random{11};

  explicit VllmWorker(const std::vector<int>& lengths) : free_blocks(kBlocks) {
    std::iota(free_blocks.begin(), free_blocks.end(), 0);
    for (int i = kBlocks - 1; i > 0; --i) std::swap(free_blocks[size_t(i)], free_blocks[size_t(random.below(i + 1))]);
    for (const int length : lengths) {
      seq_lens.push_back(0);
      block_table.resize(block_table.size() + kTableRow, -1);
      for (int t = 0; t < length; ++t) write_token(int(seq_lens.size()) - 1);
    }
  }
  // slot_mapping: the place of a token that is to be written, block * block_size + offset.
  int64_t next_slot(int request) {
    const int length = seq_lens[size_t(request)];
    int32_t& block = block_table[size_t(request * kTableRow + length / kBlock)];
    if (block < 0) {
      block = free_blocks.back();
      free_blocks.pop_back();
    }
    return int64_t(block) * kBlock + length % kBlock;
  }
  void write_token(int request) {
    const int64_t slot = next_slot(request), half = int64_t(kBlocks) * kBlock * kKvHeads * kDim;
    // Keys in eight directions, so that there is something to choose.
    for (int64_t i = 0; i < kKvHeads * kDim; ++i) {
      const bool ahead = i % kDim / 4 == seq_lens[size_t(request)] % 8;
      kv_cache[size_t(slot * kKvHeads * kDim + i)] = from_float<bf16>((ahead ? 3.0f : 0.0f) + 0.3f * float(random.gaussian()));
      kv_cache[size_t(half + slot * kKvHeads * kDim + i)] = from_float<bf16>(float(random.gaussian()));
    }
    ++seq_lens[size_t(request)];
  }
  PagedKvView view() const {
    PagedKvView kv = PagedKvView::nhd(kv_cache.data(), kv_cache.data() + kv_cache.size() / 2, seq_lens.data(), kBlock, kKvHeads, kDim);
    kv.page_indices = block_table.data();
    kv.pages_per_sequence = kTableRow;
    kv.page_size = kBlock;
    return kv;
  }
  int num_requests() const { return int(seq_lens.size()); }
};

// Keys, or values with `half` 1, of one request and KV head, read as the tables say and not through the library's views.
reference::Matrix rows_of(const VllmWorker& worker, int request, int kv_head, int half) {
  reference::Matrix rows(worker.seq_lens[size_t(request)], kDim);
  for (int t = 0; t < rows.num_rows(); ++t) {
    const int64_t block = worker.block_table[size_t(request * kTableRow + t / kBlock)];
    const int64_t at = (((half * kBlocks + block) * kBlock + t % kBlock) * kKvHeads + kv_head) * kDim;
    for (int c = 0; c < kDim; ++c) rows.row(t)[c] = reference::element(worker.kv_cache.data(), reference::Format::bf16, at + c);
  }
  return rows;
}

// A decode step of all requests.
struct StepData {
  AttentionShape shape{kHeads, kKvHeads, kDim};
  std::vector<float> query, output, lse;
  std::vector<ClusterIndex> indexes;
  std::vector<SequenceView> sequences;
  std::vector<KvCacheView> caches;
  SerialExecutor executor;

  explicit StepData(const VllmWorker& worker) {
    test::Random random(5);
    const auto rows = size_t(worker.num_requests() * kHeads);
    query.resize(rows * kDim);
    for (size_t i = 0; i < query.size(); ++i) query[i] = int(i) % kDim / 4 == int(i) / kDim % 8 ? 2.0f : 0.2f * float(random.gaussian());
    output.resize(rows * kDim);
    lse.resize(rows);
    IndexOptions options;
    options.segment_tokens = 128;
    options.cluster_size = 8;
    for (int s = 0; s < worker.num_requests(); ++s) indexes.emplace_back(shape, options);
    refresh(worker);
    for (int s = 0; s < worker.num_requests(); ++s) indexes[size_t(s)].build(caches[size_t(s)], executor);
  }
  // Views are made anew from the tables at each step; making one costs nothing.
  void refresh(const VllmWorker& worker) {
    caches.clear();
    sequences.clear();
    for (int s = 0; s < worker.num_requests(); ++s) {
      caches.push_back(worker.view().sequence(s));
      sequences.push_back({caches.back(), &indexes[size_t(s)].view()});
    }
  }
  QueryView queries() const { return QueryView::contiguous(query.data(), int(sequences.size()), kHeads, kDim); }
  AttentionOutput out() { return {output.data(), lse.data()}; }
};

Decoder decoder_of(const StepData& step, float target_ratio) {
  DecodeOptions options;
  options.target_ratio = target_ratio;
  options.dense_below = 0;
  return Decoder(step.shape, options, {int(step.sequences.size()), kTableRow * kBlock, 4096, 1});
}

// Largest difference between the step's output and attention over the listed tokens of each (request, KV head).
template <class TokensOf>
double worst(const VllmWorker& worker, const StepData& step, TokensOf&& tokens_of) {
  double difference = 0.0;
  for (int s = 0; s < worker.num_requests(); ++s)
    for (int h = 0; h < kHeads; ++h) {
      const int kv_head = step.shape.kv_head_of(h);
      const size_t row = size_t(s * kHeads + h);
      std::vector<double> query(step.query.begin() + std::ptrdiff_t(row * kDim), step.query.begin() + std::ptrdiff_t((row + 1) * kDim));
      const auto want = reference::attention(query.data(), rows_of(worker, s, kv_head, 0), rows_of(worker, s, kv_head, 1),
                                             double(step.shape.softmax_scale()), tokens_of(s, kv_head));
      for (size_t c = 0; c < kDim; ++c) difference = std::max(difference, std::abs(want.output[c] - double(step.output[row * kDim + c])));
      difference = std::max(difference, std::abs(want.lse - double(step.lse[row])));
    }
  return difference;
}

// select() for all requests, padded rows.
struct Chosen {
  int64_t capacity = kTableRow * kBlock;
  std::vector<int32_t> tokens, counts;

  Chosen(StepData& step, float target_ratio) {
    const size_t rows = step.sequences.size() * kKvHeads;
    tokens.assign(rows * size_t(capacity), -7);
    counts.assign(rows, -7);
    Decoder decoder = decoder_of(step, target_ratio);
    REQUIRE(decoder.select(step.queries(), step.sequences, {tokens.data(), counts.data(), capacity}, {}, step.executor) ==
            DecodeStatus::ok);
  }
  SelectionView view(const StepData& step) const {
    return SelectionOutput{const_cast<int32_t*>(tokens.data()), const_cast<int32_t*>(counts.data()), capacity}.view(
        int(step.sequences.size()), kKvHeads);
  }
};

std::vector<int> listed(const SelectionView& selection, int sequence, int kv_head) {
  const int32_t* row = selection.row(sequence, kv_head);
  return {row, row + selection.num_tokens(sequence, kv_head)};
}

}  // namespace

TEST_CASE("engine tables: a step over vLLM's block_table and seq_lens, while slot_mapping writes on") {
  VllmWorker worker({300, 33, 517, 1});
  StepData step(worker);
  Decoder decoder = decoder_of(step, 1.0f);
  for (int token = 0; token < 20; ++token) {
    for (int s = 0; s < worker.num_requests(); ++s) worker.write_token(s);
    step.refresh(worker);
    for (int s = 0; s < worker.num_requests(); ++s) step.indexes[size_t(s)].append(step.caches[size_t(s)], step.executor);
    REQUIRE(decoder.decode(step.queries(), step.sequences, step.out(), {}, step.executor) == DecodeStatus::ok);
    CHECK(worst(worker, step, [&](int s, int) { return reference::all_tokens(worker.seq_lens[size_t(s)]); }) < 1e-4);
  }
}

TEST_CASE("engine tables: a request that is preempted and comes back in other blocks keeps its index") {
  VllmWorker worker({400});
  StepData step(worker);
  // Its blocks move; the tokens keep their numbers, so there is nothing to tell the index.
  const std::vector<bf16> before = worker.kv_cache;
  for (int page = 0; page * kBlock < 400; ++page) {
    const int32_t from = worker.block_table[size_t(page)], to = worker.free_blocks.front();
    worker.free_blocks.erase(worker.free_blocks.begin());
    worker.block_table[size_t(page)] = to;
    const auto size = std::ptrdiff_t(kBlock * kKvHeads * kDim), half = std::ptrdiff_t(before.size() / 2);
    for (const auto part : {std::ptrdiff_t(0), half}) {
      std::copy_n(before.begin() + part + from * size, size, worker.kv_cache.begin() + part + to * size);
      std::fill_n(worker.kv_cache.begin() + part + from * size, size, bf16{0x7fc0});
    }
  }
  step.refresh(worker);
  Chosen chosen(step, 0.9f);
  CHECK(chosen.counts[0] < 400);
  sparse_attention(step.shape, step.queries(), step.caches, chosen.view(step), step.out(), step.executor);
  CHECK(worst(worker, step, [&](int s, int h) { return listed(chosen.view(step), s, h); }) < 1e-4);
}

TEST_CASE("engine tables: SGLang's SelectionResult, one row a request, padded with -1, and slots through req_to_token") {
  VllmWorker worker({300, 517});
  StepData step(worker);
  Chosen chosen(step, 0.9f);
  // Heads share a row in SGLang: the union.
  const TokenSelection shared = union_over_heads(chosen.view(step));
  const int64_t cap = 600;
  std::vector<int32_t> logical_indices(2 * size_t(cap), -1), valid_lengths(2);
  for (int s = 0; s < 2; ++s) {
    valid_lengths[size_t(s)] = shared.view().num_tokens(s, 0);
    std::copy_n(shared.view().row(s, 0), valid_lengths[size_t(s)], logical_indices.begin() + std::ptrdiff_t(s * cap));
  }
  // req_to_token: the slot of each token of a request. Its pool has no blocks: pages of one token.
  std::vector<int32_t> req_to_token(2 * 600);
  for (int s = 0; s < 2; ++s)
    for (int t = 0; t < worker.seq_lens[size_t(s)]; ++t)
      req_to_token[size_t(s * 600 + t)] = worker.block_table[size_t(s * kTableRow + t / kBlock)] * kBlock + t % kBlock;
  PagedKvView pool = worker.view();
  pool.page_indices = req_to_token.data();
  pool.pages_per_sequence = 600;
  pool.page_size = 1;
  pool.key_page_stride = pool.value_page_stride = kKvHeads * kDim * 2;
  const std::vector<KvCacheView> caches{pool.sequence(0), pool.sequence(1)};
  // And back: what an engine chose in this form, attended by the library. A row for each KV head.
  std::vector<int32_t> tokens, counts;
  for (int s = 0; s < 2; ++s)
    for (int h = 0; h < kKvHeads; ++h) {
      tokens.insert(tokens.end(), logical_indices.begin() + std::ptrdiff_t(s * cap),
                    logical_indices.begin() + std::ptrdiff_t((s + 1) * cap));
      counts.push_back(valid_lengths[size_t(s)]);
    }
  sparse_attention(step.shape, step.queries(), caches, {tokens.data(), nullptr, counts.data(), cap, 2, kKvHeads}, step.out(),
                   step.executor);
  for (int s = 0; s < 2; ++s)
    for (int h = 0; h < kKvHeads; ++h) {
      const std::vector<int> own = listed(chosen.view(step), s, h), both = listed(shared.view(), s, 0);
      CHECK(std::includes(both.begin(), both.end(), own.begin(), own.end()));
    }
  CHECK(worst(worker, step, [&](int s, int) { return listed(shared.view(), s, 0); }) < 1e-4);
}

TEST_CASE("engine tables: TensorRT-LLM's sparse_attn_predict, indices and offsets of each KV head") {
  VllmWorker worker({300, 129, 517});
  StepData step(worker);
  Chosen chosen(step, 0.9f);
  // indices [num_kv_heads][total of all requests], offsets [num_kv_heads][num_requests + 1].
  std::vector<std::vector<int32_t>> indices(kKvHeads), offsets(kKvHeads, {0});
  for (int h = 0; h < kKvHeads; ++h)
    for (int s = 0; s < 3; ++s) {
      const std::vector<int> tokens = listed(chosen.view(step), s, h);
      indices[size_t(h)].insert(indices[size_t(h)].end(), tokens.begin(), tokens.end());
      offsets[size_t(h)].push_back(int32_t(indices[size_t(h)].size()));
    }
  // And back, into compressed rows of (sequence, KV head).
  std::vector<int32_t> tokens;
  std::vector<int64_t> indptr{0};
  for (int s = 0; s < 3; ++s)
    for (int h = 0; h < kKvHeads; ++h) {
      const auto& own = indices[size_t(h)];
      tokens.insert(tokens.end(), own.begin() + offsets[size_t(h)][size_t(s)], own.begin() + offsets[size_t(h)][size_t(s + 1)]);
      indptr.push_back(int64_t(tokens.size()));
    }
  const SelectionView compressed{tokens.data(), indptr.data(), nullptr, 0, 3, kKvHeads};
  sparse_attention(step.shape, step.queries(), step.caches, compressed, step.out(), step.executor);
  CHECK(worst(worker, step, [&](int s, int h) { return listed(chosen.view(step), s, h); }) < 1e-4);
  CHECK(chosen.counts[4] < 517);
}

TEST_CASE("engine tables: whole pages for kernels that read no single tokens, block_tables [num_kv_heads][batch][pages]") {
  VllmWorker worker({300, 517});
  StepData step(worker);
  Chosen chosen(step, 0.7f);
  std::vector<int32_t> block_tables(kKvHeads * 2 * kTableRow, -1), num_pages(kKvHeads * 2, 0);
  std::vector<std::vector<int>> covered(kKvHeads * 2);
  for (int h = 0; h < kKvHeads; ++h)
    for (int s = 0; s < 2; ++s) {
      std::set<int> pages;
      for (const int token : listed(chosen.view(step), s, h)) pages.insert(token / kBlock);
      pages.insert((worker.seq_lens[size_t(s)] - 1) / kBlock);  // the page that is being written, last and perhaps not full
      for (const int page : pages) {
        const size_t row = size_t(h * 2 + s);
        block_tables[row * kTableRow + size_t(num_pages[row]++)] = worker.block_table[size_t(s * kTableRow + page)];
        for (int t = page * kBlock; t < std::min((page + 1) * kBlock, worker.seq_lens[size_t(s)]); ++t) covered[row].push_back(t);
      }
    }
  // The pages in the library's own words: every one is full but the last, so a length says it all. One KV head a call.
  for (int h = 0; h < kKvHeads; ++h) {
    std::vector<int32_t> lengths(2);
    for (int s = 0; s < 2; ++s) lengths[size_t(s)] = int32_t(covered[size_t(h * 2 + s)].size());
    PagedKvView pages = worker.view();
    pages.keys += h * kDim * 2;
    pages.values += h * kDim * 2;
    pages.num_tokens = lengths.data();
    pages.page_indices = block_tables.data() + h * 2 * kTableRow;
    const AttentionShape one{kHeads / kKvHeads, 1, kDim};
    std::vector<float> output(2 * 2 * kDim), lse(4);
    QueryView queries = step.queries();
    queries.data += h * (kHeads / kKvHeads) * queries.head_stride;
    const std::vector<KvCacheView> caches{pages.sequence(0), pages.sequence(1)};
    dense_attention(one, queries, caches, {output.data(), lse.data()}, step.executor);
    for (int s = 0; s < 2; ++s)
      for (int g = 0; g < 2; ++g) {
        const size_t to = size_t(s * kHeads + h * 2 + g), from = size_t(s * 2 + g);
        std::copy_n(output.begin() + std::ptrdiff_t(from * kDim), kDim, step.output.begin() + std::ptrdiff_t(to * kDim));
        step.lse[to] = lse[from];
      }
  }
  CHECK(worst(worker, step, [&](int s, int h) { return covered[size_t(h * 2 + s)]; }) < 1e-4);
}
