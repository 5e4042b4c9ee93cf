// Torch tensors as the library's views, without copies; the only file that knows what a dimension of a tensor means.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <string>

#include "quorum/core/attention_output.hpp"
#include "quorum/core/sequence_view.hpp"
#include "quorum/cpu/executor.hpp"

namespace quorum::torch_adapter {

// Runs work(); what the library throws becomes Python's ValueError with the same message.
template <class Work>
auto translate_errors(Work&& work) {
  try {
    return work();
  } catch (const Error& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

// Errors: ValueError "function: argument must be rule, got value".
template <class Value>
void check(bool holds, const char* function, const char* argument, const char* rule, const Value& value) {
  TORCH_CHECK_VALUE(holds, function, ": ", argument, " must be ", rule, ", got ", value);
}

inline bool is_supported(at::ScalarType type) { return type == at::kFloat || type == at::kHalf || type == at::kBFloat16; }
inline ElementType element_type(at::ScalarType type) {
  return type == at::kFloat ? ElementType::f32 : type == at::kHalf ? ElementType::f16 : ElementType::bf16;
}

// torch's own threads: they are awake where the model's other operators have just run, and no second set of threads competes with them.
// All workers of a parallel region run at once, as the library asks for. Inside one of torch's own regions the calling thread works alone.
inline int num_workers() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

// Keys and values of a batch: [batch][kv_head][token][head_dim], any strides but the last, which is 1.
struct KvTensors {
  const at::Tensor& key;
  const at::Tensor& value;

  KvTensors(const at::Tensor& keys, const at::Tensor& values, const char* function) : key(keys), value(values) {
    check(key.dim() == 4, function, "key", "[batch, kv_head, token, head_dim]", key.sizes());
    check(value.sizes() == key.sizes(), function, "value", "of the key's shape", value.sizes());
    check(is_supported(key.scalar_type()), function, "key", "float32, float16 or bfloat16", key.scalar_type());
    check(value.scalar_type() == key.scalar_type(), function, "value", "of the key's type", value.scalar_type());
    check(key.is_cpu() && value.is_cpu(), function, "key and value", "on the CPU", key.device());
    check(key.size(2) <= kMaxCount, function, "key", "at most 2^30 tokens", key.size(2));
    const bool rows = key.size(3) == 1 || (key.stride(3) == 1 && value.stride(3) == 1);
    check(rows, function, "key and value", "contiguous in head_dim", key.strides());
  }

  int batch() const { return int(key.size(0)); }
  int num_kv_heads() const { return int(key.size(1)); }
  int num_tokens() const { return int(key.size(2)); }
  int head_dim() const { return int(key.size(3)); }

  // Tokens [begin, end) of one entry of the batch, numbered from 0.
  KvCacheView sequence(int entry, int begin, int end) const {
    const int64_t size = key.element_size();
    KvCacheView view;
    view.keys = static_cast<const std::byte*>(key.const_data_ptr()) + size * (entry * key.stride(0) + begin * key.stride(2));
    view.values = static_cast<const std::byte*>(value.const_data_ptr()) + size * (entry * value.stride(0) + begin * value.stride(2));
    view.type = element_type(key.scalar_type());
    view.num_tokens = end - begin;
    view.key_token_stride = size * key.stride(2);
    view.key_head_stride = size * key.stride(1);
    view.value_token_stride = size * value.stride(2);
    view.value_head_stride = size * value.stride(1);
    return view;
  }
};

// Queries [batch][qo_head][row][head_dim] as rows batch * num_rows + row. Copied only where the strides of batch and row do not fit
// together.
struct QueryTensor {
  at::Tensor query;

  QueryTensor(const at::Tensor& queries, const char* function) : query(queries) {
    check(query.dim() == 4, function, "query", "[batch, qo_head, row, head_dim]", query.sizes());
    check(is_supported(query.scalar_type()), function, "query", "float32, float16 or bfloat16", query.scalar_type());
    check(query.is_cpu(), function, "query", "on the CPU", query.device());
    const bool linear = query.size(0) == 1 || query.size(2) == 1 || query.stride(0) == query.size(2) * query.stride(2);
    if (!linear || (query.stride(3) != 1 && query.size(3) != 1)) query = query.transpose(1, 2).contiguous().transpose(1, 2);
  }

  int batch() const { return int(query.size(0)); }
  int num_qo_heads() const { return int(query.size(1)); }
  int num_rows() const { return int(query.size(2)); }
  int head_dim() const { return int(query.size(3)); }

  QueryView view() const {
    const int64_t size = query.element_size();
    const int64_t row = query.size(2) == 1 ? query.stride(0) : query.stride(2);
    return {static_cast<const std::byte*>(query.const_data_ptr()), element_type(query.scalar_type()), batch() * num_rows(), size * row,
            size * query.stride(1)};
  }
};

// A number for each entry of the batch, or the same for all where no tensor is given.
struct BatchNumbers {
  const int64_t* numbers = nullptr;
  int64_t common = 0;

  BatchNumbers(const std::optional<at::Tensor>& tensor, int batch, int64_t otherwise, const char* function, const char* argument)
      : common(otherwise) {
    if (!tensor.has_value()) return;
    const bool fits = tensor->dim() == 1 && tensor->size(0) == batch && tensor->scalar_type() == at::kLong && tensor->is_contiguous();
    check(fits && tensor->is_cpu(), function, argument, "contiguous int64 [batch] on the CPU", tensor->sizes());
    numbers = tensor->const_data_ptr<int64_t>();
  }
  int64_t operator[](int entry) const { return numbers == nullptr ? common : numbers[entry]; }
};

// Masks [batch or 1][1][row or 1][token], true where a token is visible, as words of bits.
struct MaskTensor {
  const bool* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;

  MaskTensor(const std::optional<at::Tensor>& mask, int batch, int num_rows, int num_tokens, const char* function) {
    if (!mask.has_value()) return;
    const at::Tensor& m = *mask;
    const bool shape = m.dim() == 4 && (m.size(0) == batch || m.size(0) == 1) && m.size(1) == 1 &&
                       (m.size(2) == num_rows || m.size(2) == 1) && m.size(3) == num_tokens;
    check(shape, function, "mask", "[batch or 1, 1, row or 1, token]", m.sizes());
    check(m.scalar_type() == at::kBool, function, "mask", "bool, true where a token is visible", m.scalar_type());
    check(m.is_cpu() && (m.stride(3) == 1 || num_tokens <= 1), function, "mask", "on the CPU and contiguous in its tokens", m.strides());
    data = m.const_data_ptr<bool>();
    batch_stride = m.size(0) == 1 ? 0 : m.stride(0);
    row_stride = m.size(2) == 1 ? 0 : m.stride(2);
  }

  const bool* row(int entry, int r) const { return data + entry * batch_stride + r * row_stride; }
};

// Bits of `count` bools.
inline void pack_bits(const bool* visible, int count, uint64_t* words) {
  for (int first = 0; first < count; first += 64) {
    uint64_t word = 0;
    for (int i = first; i < count && i < first + 64; ++i) word |= uint64_t(visible[i]) << (i - first);
    words[first / 64] = word;
  }
}

}  // namespace quorum::torch_adapter
