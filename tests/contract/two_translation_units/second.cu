#include <quorum/cuda.cuh>

#include <typeinfo>

const std::type_info& decoder_type_of_second() { return typeid(quorum::cuda::Decoder); }
const void* constant_of_second() { return &quorum::cuda::kSelectThreads; }
cudaError_t (*launch_of_second())(const quorum::cuda::StepParams&, cudaStream_t) { return &quorum::cuda::select_tokens; }
