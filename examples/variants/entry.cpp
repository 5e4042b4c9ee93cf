// The file that is compiled once for each instruction set. All of quorum stays inside.
#include "examples/variants/entry.hpp"

#include <exception>
#include <vector>

#include "quorum/quorum.hpp"

namespace {

constexpr int kHeads = 4, kHeadDim = 64;

}  // namespace

const char* variant_instruction_set() { return quorum::simd::instruction_set(); }

int variant_decode(const float* keys, const float* values, const float* queries, int num_tokens, float* dense, float* sparse,
                   int32_t* tokens_read) {
  // An exception must not leave a module: its type would not be known outside.
  try {
    const quorum::AttentionShape shape{kHeads, 1, kHeadDim};
    const auto kv = quorum::KvCacheView::nhd(keys, values, num_tokens, 1, kHeadDim);
    const auto query = quorum::QueryView::contiguous(queries, 1, kHeads, kHeadDim);
    quorum::ThreadExecutor executor(2);
    quorum::dense_attention(shape, query, {&kv, 1}, {dense, nullptr}, executor);

    quorum::ClusterIndex index(shape, quorum::IndexOptions{});
    index.build(kv, executor);
    quorum::DecodeLimits limits;
    limits.max_tokens = num_tokens;
    limits.num_workers = 2;
    quorum::DecodeOptions options;
    options.target_ratio = 0.95f;
    quorum::Decoder decoder(shape, options, limits);
    const quorum::SequenceView sequence{kv, &index.view()};
    std::vector<quorum::HeadReport> reports(kHeads);
    const auto status = decoder.decode(query, {&sequence, 1}, {sparse, nullptr}, reports, executor);
    for (int head = 0; head < kHeads; ++head) tokens_read[head] = int32_t(reports[size_t(head)].tokens_read);
    return status == quorum::DecodeStatus::ok ? 0 : 1;
  } catch (const std::exception&) {
    return 1;
  }
}
