// Shapes, their head mapping and the errors of wrong ones.
#include "quorum/core/shape.hpp"

#include <doctest/doctest.h>

#include "tests/support/error_message.hpp"

using namespace quorum;

namespace {

std::string error_of(const AttentionShape& shape) {
  return test::argument_error([&] { validate(shape, "plan"); });
}

}  // namespace

TEST_CASE("query heads map to KV heads in order") {
  const AttentionShape gqa{12, 3, 64, 0.0f};
  CHECK(gqa.group_size() == 4);
  for (int h = 0; h < 12; ++h) CHECK(gqa.kv_head_of(h) == h / 4);
  const AttentionShape mha{5, 5, 64, 0.0f};
  for (int h = 0; h < 5; ++h) CHECK(mha.kv_head_of(h) == h);
  const AttentionShape mqa{7, 1, 64, 0.0f};
  for (int h = 0; h < 7; ++h) CHECK(mqa.kv_head_of(h) == 0);
}

TEST_CASE("softmax scale: 0 means 1 / sqrt(head_dim)") {
  CHECK(AttentionShape{1, 1, 64, 0.0f}.softmax_scale() == 0.125f);
  CHECK(AttentionShape{1, 1, 64, 0.3f}.softmax_scale() == 0.3f);
  CHECK(AttentionShape{1, 1, 80, 0.0f}.softmax_scale() == 1.0f / std::sqrt(80.0f));
}

TEST_CASE("padded length is a whole number of cache lines") {
  CHECK(padded_dim(8) == 16);
  CHECK(padded_dim(16) == 16);
  CHECK(padded_dim(72) == 80);
  CHECK(padded_dim(512) == 512);
}

TEST_CASE("all head_dims that are multiples of 8 up to 512 are valid") {
  for (int d = 8; d <= 512; d += 8) CHECK(error_of({8, 2, d, 0.0f}) == "no error");
  CHECK(error_of({16, 1, 64, 0.0f}) == "no error");
  CHECK(error_of({1, 1, 64, 2.5f}) == "no error");
}

TEST_CASE("errors name the member, its rule and its value") {
  CHECK(error_of({4, 0, 64, 0.0f}) == "plan: shape.num_kv_heads must be at least 1, got 0");
  CHECK(error_of({4, -2, 64, 0.0f}) == "plan: shape.num_kv_heads must be at least 1, got -2");
  CHECK(error_of({0, 1, 64, 0.0f}) == "plan: shape.num_qo_heads must be at least 1, got 0");
  CHECK(error_of({7, 2, 64, 0.0f}) == "plan: shape.num_qo_heads must be a multiple of shape.num_kv_heads, got 7");
  CHECK(error_of({17, 1, 64, 0.0f}) == "plan: shape.num_qo_heads / shape.num_kv_heads must be at most 16, got 17");
  for (const int d : {0, 4, 12, 65, 520, -8})
    CHECK(error_of({2, 1, d, 0.0f}) == "plan: shape.head_dim must be a multiple of 8 from 8 to 512, got " + std::to_string(d));
  CHECK(error_of({2, 1, 64, -0.5f}) == "plan: shape.sm_scale must be finite and not negative, got -0.5");
  CHECK(error_of({2, 1, 64, kInfinity}) == "plan: shape.sm_scale must be finite and not negative, got inf");
  CHECK(error_of({2, 1, 64, kNan}) == "plan: shape.sm_scale must be finite and not negative, got nan");
  AttentionShape shape{2, 1, 64, 0.0f};
  shape.logit_softcap = -1.0f;
  CHECK(error_of(shape) == "plan: shape.logit_softcap must be finite and not negative, got -1");
  shape.logit_softcap = kNan;
  CHECK(error_of(shape) == "plan: shape.logit_softcap must be finite and not negative, got nan");
  shape.logit_softcap = 50.0f;
  CHECK(error_of(shape) == "no error");
  shape.sliding_window = -3;
  CHECK(error_of(shape) == "plan: shape.sliding_window must be at least 0, got -3");
  shape.sliding_window = 4096;
  CHECK(error_of(shape) == "no error");
}
