// What is supported, and the one sentence that says why something is not.
#include "quorum/core/supports.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace quorum;

namespace {

std::string reason(const AttentionFeatures& features, Backend backend = Backend::cpu) {
  const char* text = unsupported_reason(features, backend);
  return text == nullptr ? "supported" : text;
}

// The reason after a change of a layer that is supported everywhere.
template <class Change>
std::string reason_after(Change&& change, Backend backend = Backend::cpu) {
  AttentionFeatures features;
  features.shape = {8, 2, 128, 0.0f};
  change(features);
  return reason(features, backend);
}

}  // namespace

#define REASON(change) reason_after([](AttentionFeatures& f) { change; })
#define CUDA_REASON(change) reason_after([](AttentionFeatures& f) { change; }, Backend::cuda)

TEST_CASE("a plain layer is supported everywhere") {
  CHECK(REASON((void)f) == "supported");
  CHECK(CUDA_REASON((void)f) == "supported");
  CHECK(REASON(f.value_head_dim = 128) == "supported");
}

TEST_CASE("on a CPU: masks, rows, soft-capping, windows, sinks") {
  static const float sinks[8] = {};
  CHECK(REASON(f.mask = true; f.num_rows = 1024) == "supported");
  CHECK(REASON(f.shape.logit_softcap = 50.0f; f.shape.sliding_window = 4096; f.shape.sink_logits = sinks) == "supported");
  CHECK(REASON(f.kv_type = ElementType::f32; f.shape.head_dim = 72) == "supported");
}

TEST_CASE("what no backend does") {
  CHECK(REASON(f.shape.num_kv_heads = 0) == "shape: num_qo_heads must be a positive multiple of num_kv_heads");
  CHECK(REASON(f.shape.num_qo_heads = 3) == "shape: num_qo_heads must be a positive multiple of num_kv_heads");
  CHECK(REASON(f.shape.num_qo_heads = 34) == "shape: at most 16 query heads for a KV head are supported");
  CHECK(REASON(f.shape.head_dim = 60) == "shape: head_dim must be a multiple of 8 from 8 to 512");
  CHECK(REASON(f.shape.sm_scale = -1.0f) == "shape: sm_scale must be finite and not negative");
  CHECK(REASON(f.shape.logit_softcap = -1.0f) == "shape: logit_softcap must be finite and not negative");
  CHECK(REASON(f.shape.sliding_window = -1) == "shape: sliding_window must be at least 0");
  CHECK(REASON(f.value_head_dim = 64) == "value_head_dim: keys and values must have the same length");
  CHECK(REASON(f.alibi_max_bias = 8.0f) == "alibi_max_bias: position biases are not supported, it must be 0");
  CHECK(REASON(f.additive_bias = true) == "additive_bias: masks must hide or show a token, biases are not supported");
  CHECK(REASON(f.encoder = true) == "encoder: attention without a KV cache is not supported");
  for (const int rows : {0, 1025}) {
    AttentionFeatures features;
    features.shape = {8, 2, 128, 0.0f};
    features.num_rows = rows;
    CHECK(reason(features) == "num_rows: 1 to 1024 query rows of a sequence are supported, prefill is not");
  }
}

TEST_CASE("what a GPU does not do") {
  static const float sinks[8] = {};
  CHECK(CUDA_REASON(f.shape.head_dim = 72) == "shape: head_dim must be 64, 96, 128 or 256 on this device");
  CHECK(CUDA_REASON(f.kv_type = ElementType::f32) == "kv_type: must be f16, bf16 or fp8_e4m3 on this device");
  CHECK(CUDA_REASON(f.kv_type = ElementType::fp8_e4m3) == "supported");
  CHECK(CUDA_REASON(f.num_rows = 16; f.shape.logit_softcap = 1.0f; f.shape.sliding_window = 1; f.shape.sink_logits = sinks) == "supported");
  CHECK(CUDA_REASON(f.mask = true) == "mask: masks are not supported on this device");
}

TEST_CASE("a supported shape is a valid one, an invalid one is not supported") {
  for (const int kv_heads : {0, 1, 2, 5})
    for (const int heads : {0, 1, 8, 34})
      for (const int dim : {0, 8, 60, 512, 520}) {
        AttentionFeatures features;
        features.shape = {heads, kv_heads, dim, 0.0f};
        bool valid = true;
        try {
          validate(features.shape, "plan");
        } catch (const Error&) {
          valid = false;
        }
        CHECK((unsupported_reason(features) == nullptr) == valid);
      }
}
