#include "quorum/cuda/dispatch/shape.cuh"

#include <doctest/doctest.h>

#include <vector>

namespace quorum::cuda {
namespace {

TEST_CASE("every shape that has kernels is dispatched to its own") {
  for (const int head_dim : {64, 96, 128, 256})
    for (int group = 1; group <= kMaxGroupSize; ++group) {
      const AttentionShape shape{3 * group, 3, head_dim, 0.0f};
      const std::vector<int> got = dispatch_shape(shape.head_dim, shape.group_size(), [](auto d, auto tiles) {
        return std::vector<int>{d(), tiles()};
      });
      CHECK(got == std::vector<int>{head_dim, group <= 8 ? 1 : 2});
      CHECK(8 * got[1] >= group);
    }
}

TEST_CASE("which sizes and types have kernels") {
  for (int head_dim = 1; head_dim <= 512; ++head_dim)
    CHECK(has_kernels(head_dim) == (head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256));
  CHECK(has_kernels(ElementType::f16));
  CHECK(has_kernels(ElementType::bf16));
  CHECK(!has_kernels(ElementType::f32));
  CHECK(!has_kernels(ElementType::q8_0));
}

TEST_CASE("elements are dispatched to their type") {
  const auto type_of = [](auto element) { return ElementTypeOf<decltype(element)>::value; };
  CHECK(dispatch_element(ElementType::bf16, type_of) == ElementType::bf16);
  CHECK(dispatch_element(ElementType::f16, type_of) == ElementType::f16);
  CHECK(dispatch_element(ElementType::fp8_e4m3, type_of) == ElementType::fp8_e4m3);
}

}  // namespace
}  // namespace quorum::cuda
