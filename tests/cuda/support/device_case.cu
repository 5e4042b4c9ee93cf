#include "tests/cuda/support/device_case.cuh"

namespace quorum::test {

std::unique_ptr<cuda::Decoder> make_decoder(const AttentionShape& shape, ElementType kv_type, const DecodeOptions& options,
                                            const DecodeLimits& limits, std::byte* workspace) {
  return std::make_unique<cuda::Decoder>(shape, kv_type, options, limits, workspace);
}
DecodeStatus decode(cuda::Decoder& decoder, const cuda::DecodeBatch& batch, const AttentionOutput& out, HeadReport* reports,
                    cudaStream_t stream) {
  return decoder.decode(batch, out, reports, stream);
}
int64_t workspace_bytes(const AttentionShape& shape, ElementType kv_type, const DecodeOptions& options, const DecodeLimits& limits) {
  return cuda::Decoder::workspace_bytes(shape, kv_type, options, limits);
}

std::unique_ptr<cuda::Decoder> DeviceCase::decoder(const DecodeOptions& options) const {
  return make_decoder(shape(), host_.options().type, options, limits());
}
CaseResult DeviceCase::decode(const DecodeOptions& options, bool with_index) const { return decode(*decoder(options), with_index); }
CaseResult DeviceCase::decode(cuda::Decoder& decoder, bool with_index) const {
  const AttentionShape& shape = host_.options().shape;
  const size_t heads = size_t(host_.num_sequences() * host_.options().num_rows) * size_t(shape.num_qo_heads),
               elements = heads * size_t(shape.head_dim);
  const cuda::DeviceBuffer output = upload(std::vector<float>(elements, kNan)), lse = upload(std::vector<float>(heads, kNan));
  const cuda::DeviceBuffer reports = upload(std::vector<HeadReport>(heads));
  const DecodeStatus status = decoder.decode(batch(with_index), {output.as<float>(), lse.as<float>()}, reports.as<HeadReport>(), nullptr);
  if (status != DecodeStatus::ok) throw Error(ErrorCode::cuda_failure, status_message(status));
  cuda::check(cudaStreamSynchronize(nullptr), "DeviceCase::decode", "cudaStreamSynchronize");
  return {download(output.as<float>(), elements), download(lse.as<float>(), heads), download(reports.as<HeadReport>(), heads)};
}

}  // namespace quorum::test
