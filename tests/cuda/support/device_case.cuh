// A HostCase on the device, and what decoding it there gives.
#pragma once

#include <memory>

#include "quorum/cuda.cuh"
#include "tests/cuda/support/host_case.hpp"

namespace quorum::test {

template <class T>
cuda::DeviceBuffer upload(const std::vector<T>& from) {
  cuda::DeviceBuffer buffer(int64_t(from.size() * sizeof(T)));
  if (!from.empty())
    cuda::check(cudaMemcpy(buffer.as<>(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "upload", "cudaMemcpy");
  return buffer;
}
template <class T>
std::vector<T> download(const T* from, size_t count) {
  std::vector<T> values(count);
  if (count > 0) cuda::check(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "download", "cudaMemcpy");
  return values;
}

// All kernels are compiled where these are defined, device_case.cu; a test that calls cuda::Decoder itself compiles them once more.
std::unique_ptr<cuda::Decoder> make_decoder(const AttentionShape& shape, ElementType kv_type, const DecodeOptions& options,
                                            const DecodeLimits& limits, std::byte* workspace = nullptr);
DecodeStatus decode(cuda::Decoder& decoder, const cuda::DecodeBatch& batch, const AttentionOutput& out, HeadReport* reports,
                    cudaStream_t stream);
int64_t workspace_bytes(const AttentionShape& shape, ElementType kv_type, const DecodeOptions& options, const DecodeLimits& limits);

class DeviceCase {
 public:
  explicit DeviceCase(const HostCase& host)
      : host_(host),
        keys_(upload(host.keys())),
        values_(upload(host.values())),
        queries_(upload(host.query_bytes())),
        num_tokens_(upload(host.num_tokens())),
        page_indices_(upload(host.page_indices())),
        page_indptr_(upload(host.page_indptr())),
        sink_logits_(upload(host.options().sink_logits)),
        key_scales_(upload(host.key_scales())),
        value_scales_(upload(host.value_scales())) {
    std::vector<FlatHeadView> heads;
    for (int s = 0; s < host.num_sequences(); ++s) {
      indexes_.emplace_back(host.index(s));
      const auto own = download(indexes_.back().heads(), size_t(host.options().shape.num_kv_heads));
      heads.insert(heads.end(), own.begin(), own.end());
    }
    heads_ = upload(heads);
  }

  cuda::DecodeBatch batch(bool with_index = true) const {
    cuda::DecodeBatch batch;
    batch.queries = host_.queries();
    batch.queries.data = queries_.as<>();
    batch.kv = host_.kv();
    batch.kv.keys = keys_.as<>();
    batch.kv.values = values_.as<>();
    batch.kv.num_tokens = num_tokens_.as<int32_t>();
    if (batch.kv.page_indices != nullptr) batch.kv.page_indices = page_indices_.as<int32_t>();
    if (batch.kv.page_indptr != nullptr) batch.kv.page_indptr = page_indptr_.as<int32_t>();
    if (batch.kv.key_scales != nullptr) batch.kv.key_scales = key_scales_.as<float>();
    if (batch.kv.value_scales != nullptr) batch.kv.value_scales = value_scales_.as<float>();
    batch.heads = with_index ? heads_.as<FlatHeadView>() : nullptr;
    batch.num_sequences = host_.num_sequences();
    batch.num_rows = host_.options().num_rows;
    batch.causal = host_.options().causal;
    return batch;
  }
  DecodeLimits limits() const {
    DecodeLimits limits;
    limits.max_sequences = host_.num_sequences();
    for (const int n : host_.num_tokens()) limits.max_tokens = std::max(limits.max_tokens, n);
    limits.max_clusters = host_.max_cluster_slots();
    limits.max_rows = host_.options().num_rows;
    return limits;
  }
  // With the sinks' logits on the device.
  AttentionShape shape() const {
    AttentionShape shape = host_.options().shape;
    if (shape.sink_logits != nullptr) shape.sink_logits = sink_logits_.as<float>();
    return shape;
  }

  CaseResult decode(const DecodeOptions& options, bool with_index = true) const;
  CaseResult decode(cuda::Decoder& decoder, bool with_index = true) const;
  std::unique_ptr<cuda::Decoder> decoder(const DecodeOptions& options) const;

 private:
  const HostCase& host_;
  cuda::DeviceBuffer keys_, values_, queries_, num_tokens_, page_indices_, page_indptr_, sink_logits_, key_scales_, value_scales_, heads_;
  std::vector<cuda::ClusterIndex> indexes_;
};

}  // namespace quorum::test
