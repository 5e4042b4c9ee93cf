// One decode step of a recorded attention layer, sparse and dense. Run it in the root of the repository.
#include <cmath>
#include <cstdio>
#include <vector>

#include "quorum/io/trace.hpp"
#include "quorum/quorum.hpp"

int main() {
  // A layer of a real model. A view of your own cache: quorum::KvCacheView::nhd(keys, values, num_tokens, num_kv_heads, head_dim).
  const auto trace = quorum::io::Trace::open("examples/data/smollm2_135m_kjv_8k_layer12.safetensors");
  const quorum::AttentionShape shape{trace.num_qo_heads, trace.num_kv_heads, trace.head_dim, trace.sm_scale};
  const quorum::KvCacheView kv = trace.kv_cache();
  const quorum::QueryView prompt_queries = trace.prompt_query_view();
  quorum::ThreadExecutor executor(2);

  // After the prompt: cluster its keys. Tokens that are not indexed are always read; append() takes them in as the cache grows.
  quorum::ClusterIndex index(shape, quorum::IndexOptions{});
  index.build(kv.first(kv.num_tokens - 64), &prompt_queries, executor);

  // Once: validate and allocate. The certificate reads on while the bound of what was attained misses the target.
  quorum::DecodeOptions options;
  options.target_ratio = 0.9f;
  options.certificate.enabled = true;
  quorum::Decoder decoder(shape, options, {1, kv.num_tokens, index.num_cluster_slots(), executor.num_workers()});

  // Every step: one query a sequence, here the last recorded one, which stands at the last token.
  quorum::QueryView query = trace.query_view();
  query.data += (query.num_rows - 1) * query.row_stride;
  query.num_rows = 1;
  const quorum::SequenceView sequence{kv, &index.view()};
  std::vector<float> output(size_t(shape.num_qo_heads * shape.head_dim)), dense(output.size());
  std::vector<quorum::HeadReport> reports(size_t(shape.num_qo_heads));
  const auto status = decoder.decode(query, {&sequence, 1}, {output.data(), nullptr}, reports, executor);
  quorum::dense_attention(shape, query, {&kv, 1}, {dense.data(), nullptr}, executor);

  for (const quorum::HeadReport& head : reports)
    std::printf("%4d of %d tokens, %4.1f %% of the bytes; attained %.3f, at least %.3f\n", head.tokens_read, kv.num_tokens,
                100.0 * double(head.bytes_read) / double(head.bytes_dense), double(head.attained_ratio_estimate),
                double(head.attained_ratio_lower_bound));
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < output.size(); ++i) {
    difference += std::pow(double(output[i] - dense[i]), 2);
    norm += std::pow(double(dense[i]), 2);
  }
  std::printf("relative difference from dense attention: %.3f\n", std::sqrt(difference / norm));
  return status == quorum::DecodeStatus::ok && difference < 0.01 * norm ? 0 : 1;
}
