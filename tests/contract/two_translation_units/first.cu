// With second.cu: the CUDA umbrella in two translation units of one program. A function or variable of a header that is neither inline
// nor a template is defined twice then, and the link fails. Nothing is run on a device.
#include <quorum/cuda.cuh>

#include <typeinfo>

const std::type_info& decoder_type_of_second();
const void* constant_of_second();
cudaError_t (*launch_of_second())(const quorum::cuda::StepParams&, cudaStream_t);

int main() {
  const bool same_type = typeid(quorum::cuda::Decoder) == decoder_type_of_second();
  const bool same_constant = static_cast<const void*>(&quorum::cuda::kSelectThreads) == constant_of_second();
  const bool same_function = &quorum::cuda::select_tokens == launch_of_second();
  return same_type && same_constant && same_function ? 0 : 1;
}
