// One decode step of a recorded attention layer on a GPU, next to the same step on the CPU. Run it in the root of the repository.
#include <cstdio>
#include <vector>

#include "cuda_decode/recorded_layer.hpp"
#include "quorum/cuda.cuh"

template <class T>
quorum::cuda::DeviceBuffer on_device(const T* from, size_t count) {
  quorum::cuda::DeviceBuffer buffer(int64_t(count * sizeof(T)));
  quorum::cuda::check(cudaMemcpy(buffer.as<>(), from, count * sizeof(T), cudaMemcpyHostToDevice), "on_device", "cudaMemcpy");
  return buffer;
}

int main() {
  // A layer of a real model. The same step on the CPU, to compare with, needs headers that nvcc does not read, so it is in a file of its
  // own.
  const RecordedLayer layer("examples/data/smollm2_135m_kjv_8k_layer12.safetensors");
  const quorum::AttentionShape shape = layer.shape();
  const int32_t num_tokens = layer.num_tokens();

  // An engine has its cache and queries on the device already: [sequence][token][kv_head][head_dim] here, pages as well (PagedKvView).
  const size_t cache_bytes = size_t(num_tokens) * size_t(shape.num_kv_heads * shape.head_dim) * 2;
  const size_t num_outputs = size_t(shape.num_qo_heads * shape.head_dim), num_heads = size_t(shape.num_qo_heads);
  const auto keys = on_device(layer.keys(), cache_bytes), values = on_device(layer.values(), cache_bytes);
  const auto query = on_device(layer.query(), num_outputs * 2), lengths = on_device(&num_tokens, 1);
  const quorum::cuda::DeviceBuffer output(int64_t(num_outputs * sizeof(float))), reports(int64_t(num_heads * sizeof(quorum::HeadReport)));

  // After the prompt: build the index where keys and values are, in a metric from a sample of the prompt's queries, which an engine has
  // there too. Both are stream-ordered with memory of the caller; this build has its own and waits.
  const quorum::IndexOptions index_options = layer.index_options();
  quorum::QueryView prompt_queries = layer.prompt_queries();
  const auto prompt = on_device(prompt_queries.data, size_t(prompt_queries.num_rows * prompt_queries.row_stride));
  prompt_queries.data = prompt.as<>();
  const quorum::cuda::DeviceBuffer metric_memory(quorum::cuda::metric_bytes(shape));
  const auto metric = quorum::cuda::build_metric(shape, index_options, prompt_queries, metric_memory.as<>(), nullptr);
  const auto kv =
      quorum::KvCacheView::nhd(keys.as<quorum::f16>(), values.as<quorum::f16>(), num_tokens, shape.num_kv_heads, shape.head_dim);
  const quorum::cuda::ClusterIndex index = quorum::cuda::build_index(shape, index_options, kv, metric);

  // Once: validate, allocate, load the kernels.
  const quorum::DecodeOptions options = layer.options();
  const quorum::DecodeLimits limits{1, num_tokens, quorum::cuda::num_cluster_slots(shape, index_options, num_tokens), 1};
  quorum::cuda::Decoder decoder(shape, quorum::ElementType::f16, options, limits);

  // Every step: enqueued on a stream, or captured once in a graph and replayed.
  quorum::cuda::DecodeBatch batch;
  batch.queries = {query.as<>(), quorum::ElementType::f16, 1, int64_t(num_outputs) * 2, int64_t(shape.head_dim) * 2};
  batch.kv = quorum::PagedKvView::nhd(keys.as<quorum::f16>(), values.as<quorum::f16>(), lengths.as<int32_t>(), num_tokens,
                                      shape.num_kv_heads, shape.head_dim);
  batch.heads = index.heads();
  batch.num_sequences = 1;
  const auto status = decoder.decode(batch, {output.as<float>(), nullptr}, reports.as<quorum::HeadReport>(), nullptr);
  quorum::cuda::check(cudaDeviceSynchronize(), "main", "cudaDeviceSynchronize");

  std::vector<float> outputs(num_outputs);
  std::vector<quorum::HeadReport> read(num_heads);
  quorum::cuda::check(cudaMemcpy(outputs.data(), output.as<>(), num_outputs * sizeof(float), cudaMemcpyDeviceToHost), "main", "cudaMemcpy");
  quorum::cuda::check(cudaMemcpy(read.data(), reports.as<>(), num_heads * sizeof read[0], cudaMemcpyDeviceToHost), "main", "cudaMemcpy");
  std::printf("%s\n", status_message(status));
  return status == quorum::DecodeStatus::ok && layer.compare(outputs, read) ? 0 : 1;
}
