// From a shape known at run time to the kernels compiled for it.
#pragma once

#include <type_traits>

#include "quorum/core/supports.hpp"

namespace quorum::cuda {

// Calls run(head_dim, head_tiles) with both as integral constants; a head tile is 8 columns of a row. Returns what run returns.
template <class Run>
auto dispatch_shape(int head_dim, int group, Run&& run) {
  const auto with_tiles = [&](auto dim) {
    return group <= 8 ? run(dim, std::integral_constant<int, 1>()) : run(dim, std::integral_constant<int, 2>());
  };
  switch (head_dim) {
    case 64:
      return with_tiles(std::integral_constant<int, 64>());
    case 96:
      return with_tiles(std::integral_constant<int, 96>());
    case 128:
      return with_tiles(std::integral_constant<int, 128>());
    default:
      return with_tiles(std::integral_constant<int, 256>());
  }
}

// Calls run(T()) for keys and values of type T.
template <class Run>
auto dispatch_element(ElementType type, Run&& run) {
  switch (type) {
    case ElementType::bf16:
      return run(bf16());
    case ElementType::fp8_e4m3:
      return run(fp8_e4m3());
    default:
      return run(f16());
  }
}

}  // namespace quorum::cuda
