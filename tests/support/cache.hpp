// KV caches and queries in every element type and layout, with NaN wherever no element lies.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "quorum/core/kv_cache_view.hpp"
#include "tests/reference/attention_reference.hpp"

namespace quorum::test {

enum class Layout { nhd, hnd, interleaved };

inline const char* layout_name(Layout layout) { return layout == Layout::nhd ? "nhd" : layout == Layout::hnd ? "hnd" : "interleaved"; }
inline reference::Format reference_format(ElementType type) {
  return type == ElementType::f32 ? reference::Format::f32 : type == ElementType::f16 ? reference::Format::f16 : reference::Format::bf16;
}

// Elements of one type at any offset of a block that starts full of NaN.
class ElementBlock {
 public:
  ElementBlock(ElementType type, int64_t count) : type_(type), bytes_(size_t(count * element_bytes(type))) {
    for (int64_t i = 0; i < count; ++i) set(i, kNan);
  }
  void set(int64_t i, float x) {
    if (type_ == ElementType::f32) {
      std::memcpy(bytes_.data() + 4 * i, &x, 4);
    } else {
      const uint16_t bits = type_ == ElementType::f16 ? from_float<f16>(x).bits : from_float<bf16>(x).bits;
      std::memcpy(bytes_.data() + 2 * i, &bits, 2);
    }
  }
  double get(int64_t i) const { return reference::element(bytes_.data(), reference_format(type_), i); }
  const std::byte* at(int64_t i) const { return bytes_.data() + i * element_bytes(type_); }
  ElementType type() const { return type_; }

 private:
  ElementType type_;
  std::vector<std::byte> bytes_;
};

struct CacheShape {
  int num_tokens = 0;
  int num_kv_heads = 1;
  int head_dim = 64;
  ElementType type = ElementType::f16;
  Layout layout = Layout::nhd;
};

// Owns the keys and values of one sequence. A gap of 8 elements follows every row and three rows every array, all NaN.
class TestCache {
 public:
  // keys, values: [num_tokens][num_kv_heads][head_dim]
  TestCache(const CacheShape& shape, const std::vector<float>& keys, const std::vector<float>& values)
      : shape_(shape),
        block_(shape.type, 2 * plane()),
        keys_(size_t(shape.num_kv_heads), reference::Matrix(shape.num_tokens, shape.head_dim)),
        values_(keys_) {
    size_t from = 0;
    for (int i = 0; i < shape.num_tokens; ++i)
      for (int h = 0; h < shape.num_kv_heads; ++h)
        for (int c = 0; c < shape.head_dim; ++c, ++from) {
          set_key(i, h, c, keys[from]);
          set_value(i, h, c, values[from]);
        }
  }

  KvCacheView view() const {
    const int64_t unit = element_bytes(shape_.type);
    return {block_.at(0),          block_.at(value_offset()), shape_.type,           shape_.num_tokens,
            unit * token_stride(), unit * head_stride(),      unit * token_stride(), unit * head_stride()};
  }
  void set_key(int token, int kv_head, int c, float x) { set(at(token, kv_head) + c, x, keys_[size_t(kv_head)].row(token)[c]); }
  void set_value(int token, int kv_head, int c, float x) {
    set(value_offset() + at(token, kv_head) + c, x, values_[size_t(kv_head)].row(token)[c]);
  }

  // What the cache really holds, after rounding to its type, in double.
  const reference::Matrix& keys(int kv_head) const { return keys_[size_t(kv_head)]; }
  const reference::Matrix& values(int kv_head) const { return values_[size_t(kv_head)]; }
  const CacheShape& shape() const { return shape_; }

 private:
  int64_t row() const { return shape_.head_dim + 8; }
  int64_t plane() const { return (int64_t(shape_.num_tokens) + 3) * shape_.num_kv_heads * row(); }
  int64_t token_stride() const {
    return shape_.layout == Layout::hnd ? row() : (shape_.layout == Layout::nhd ? 1 : 2) * shape_.num_kv_heads * row();
  }
  int64_t head_stride() const { return shape_.layout == Layout::hnd ? (int64_t(shape_.num_tokens) + 3) * row() : row(); }
  int64_t value_offset() const { return shape_.layout == Layout::interleaved ? shape_.num_kv_heads * row() : plane(); }
  int64_t at(int token, int kv_head) const { return token * token_stride() + kv_head * head_stride(); }

  void set(int64_t i, float x, double& held) {
    block_.set(i, x);
    held = block_.get(i);
  }

  CacheShape shape_;
  ElementBlock block_;
  std::vector<reference::Matrix> keys_, values_;  // [num_kv_heads]
};

// Owns query vectors [num_rows][num_qo_heads][head_dim], a NaN gap of 8 elements after each.
class TestQueries {
 public:
  TestQueries(ElementType type, int num_rows, int num_qo_heads, int head_dim, const std::vector<float>& queries)
      : num_rows_(num_rows), num_qo_heads_(num_qo_heads), head_dim_(head_dim), block_(type, int64_t(num_rows) * num_qo_heads * row()) {
    for (int r = 0; r < num_rows; ++r)
      for (int h = 0; h < num_qo_heads; ++h)
        for (int c = 0; c < head_dim; ++c) set(r, h, c, queries[size_t((int64_t(r) * num_qo_heads + h) * head_dim + c)]);
  }
  QueryView view() const {
    const int64_t bytes = row() * element_bytes(block_.type());
    return {block_.at(0), block_.type(), num_rows_, bytes * num_qo_heads_, bytes};
  }
  void set(int index, int qo_head, int c, float x) { block_.set(at(index, qo_head) + c, x); }
  std::vector<double> get(int index, int qo_head) const {
    std::vector<double> out;
    for (int c = 0; c < head_dim_; ++c) out.push_back(block_.get(at(index, qo_head) + c));
    return out;
  }

 private:
  int64_t row() const { return head_dim_ + 8; }
  int64_t at(int index, int qo_head) const { return (int64_t(index) * num_qo_heads_ + qo_head) * row(); }

  int num_rows_, num_qo_heads_, head_dim_;
  ElementBlock block_;
};

}  // namespace quorum::test
