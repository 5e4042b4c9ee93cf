// A named array inside a file: what the readers of safetensors and npy hand out.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "quorum/core/element.hpp"
#include "quorum/core/error.hpp"

namespace quorum::io {

static_assert(std::endian::native == std::endian::little, "the readers hand out the file's little-endian bytes as they are");

enum class Dtype : uint8_t { boolean, u8, i8, u16, i16, u32, i32, u64, i64, f16, bf16, f32, f64 };

constexpr const char* dtype_name(Dtype dtype) {
  constexpr const char* kNames[] = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64"};
  return kNames[int(dtype)];
}
constexpr int dtype_bytes(Dtype dtype) {
  constexpr int kBytes[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};
  return kBytes[int(dtype)];
}

// One array, row-major, little-endian, owned by the file it came from.
//
// Caller: `data` may lie at any address: files promise no alignment. Read elements with memcpy, as to_floats does, or copy them.
struct Tensor {
  std::string file;  // for messages
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;  // empty: one element
  const std::byte* data = nullptr;
  size_t bytes = 0;

  int64_t num_elements() const { return int64_t(bytes / size_t(dtype_bytes(dtype))); }
  // "file: tensor 'name'", the beginning of every message about it.
  std::string label() const { return file + ": tensor '" + name + "'"; }
};

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// Bytes of an array of this shape; -1 if a dimension is negative or the product does not fit into int64.
inline int64_t shape_bytes(const std::vector<int64_t>& shape, Dtype dtype) {
  int64_t bytes = dtype_bytes(dtype);
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return -1;
    if (size == 0) {
      empty = true;  // still multiply the others: a shape with an overflow is broken even when it holds nothing
    } else if (bytes > std::numeric_limits<int64_t>::max() / size) {
      return -1;
    } else {
      bytes *= size;
    }
  }
  return empty ? 0 : bytes;
}

// Element `index` as raw bits; memcpy makes any address safe.
template <class T>
T load_element(const Tensor& tensor, int64_t index) {
  T value;
  std::memcpy(&value, tensor.data + index * int64_t(sizeof(T)), sizeof(T));
  return value;
}

namespace detail {

// Calls visit(index, float) for every element of an f32, f16 or bf16 tensor.
template <class Visit>
void for_each_float(const Tensor& tensor, const char* function, Visit visit) {
  const int64_t count = tensor.num_elements();
  switch (tensor.dtype) {
    case Dtype::f32:
      for (int64_t i = 0; i < count; ++i) visit(i, load_element<float>(tensor, i));
      return;
    case Dtype::f16:
      for (int64_t i = 0; i < count; ++i) visit(i, to_float(load_element<f16>(tensor, i)));
      return;
    case Dtype::bf16:
      for (int64_t i = 0; i < count; ++i) visit(i, to_float(load_element<bf16>(tensor, i)));
      return;
    default:
      throw_error(ErrorCode::invalid_file, function, tensor.label() + ", dtype,", "F32, F16 or BF16", dtype_name(tensor.dtype));
  }
}

}  // namespace detail

// Checks that an f32, f16 or bf16 tensor holds neither NaN nor infinity.
//
// Errors: Error(invalid_file) naming the file, the tensor and the index of its first such element. Cost: one pass.
inline void require_finite(const Tensor& tensor) {
  detail::for_each_float(tensor, "require_finite", [&](int64_t index, float value) {
    if (value - value == 0.0f) return;
    throw_error(ErrorCode::invalid_file, "require_finite", tensor.label() + ", element " + std::to_string(index) + ",", "finite", value);
  });
}

enum class NonFinite : uint8_t { accept, reject };

// All elements of an f32, f16 or bf16 tensor as floats, exactly.
//
// Errors: Error(invalid_file) naming file and tensor: another dtype; with NonFinite::reject also NaN and infinity.
// Memory: owned by the result. Cost: one pass, two when rejecting.
inline std::vector<float> to_floats(const Tensor& tensor, NonFinite non_finite = NonFinite::accept) {
  if (non_finite == NonFinite::reject) require_finite(tensor);
  std::vector<float> out;
  out.reserve(size_t(tensor.num_elements()));
  detail::for_each_float(tensor, "to_floats", [&](int64_t, float value) { out.push_back(value); });
  return out;
}

}  // namespace quorum::io
