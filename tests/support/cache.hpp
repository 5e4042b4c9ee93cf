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
  switch (type) {
    case ElementType::f32:
      return reference::Format::f32;
    case ElementType::f16:
      return reference::Format::f16;
    case ElementType::bf16:
      return reference::Format::bf16;
    case ElementType::q8_0:
      return reference::Format::q8_0;
    case ElementType::fp8_e4m3:
      return reference::Format::fp8_e4m3;
  }
  return reference::Format::f32;
}
// Elements that follow every row, NaN: whole blocks.
inline int64_t gap_of(ElementType type) { return type == ElementType::q8_0 ? q8_0::kElements : 8; }

// Elements of one type at any offset of a block that starts full of NaN. In q8_0 elements [32 i, 32 i + 32) share a scale.
class ElementBlock {
 public:
  ElementBlock(ElementType type, int64_t count) : type_(type), bytes_(size_t(offset(count)), std::byte(0xff)) {}

  // In q8_0 the others that share its scale keep what they are, rounded to the new one; a NaN or infinity makes them all NaN.
  void set(int64_t i, float x) {
    if (type_ == ElementType::q8_0) {
      float block[q8_0::kElements];
      const int64_t first = i / q8_0::kElements * q8_0::kElements;
      for (int64_t c = 0; c < q8_0::kElements; ++c) block[c] = first + c == i ? x : float(get(first + c));
      set_row(first, block, q8_0::kElements);
    } else if (type_ == ElementType::f32) {
      std::memcpy(bytes_.data() + 4 * i, &x, 4);
    } else if (type_ == ElementType::fp8_e4m3) {
      bytes_[size_t(i)] = std::byte(from_float<fp8_e4m3>(x).bits);
    } else {
      const uint16_t bits = type_ == ElementType::f16 ? from_float<f16>(x).bits : from_float<bf16>(x).bits;
      std::memcpy(bytes_.data() + 2 * i, &bits, 2);
    }
  }
  // Elements [i, i + count), in q8_0 whole blocks.
  void set_row(int64_t i, const float* x, int count) {
    if (type_ == ElementType::q8_0) {
      std::vector<q8_0> blocks(size_t(count / q8_0::kElements));
      quantise_q8_0(x, count, blocks.data());
      set_blocks(i, blocks.data(), count);
    } else {
      for (int c = 0; c < count; ++c) set(i + c, x[c]);
    }
  }
  // The same by their bits. Only in q8_0.
  void set_blocks(int64_t i, const q8_0* blocks, int count) {
    std::memcpy(bytes_.data() + offset(i), blocks, size_t(count / q8_0::kElements) * sizeof(q8_0));
  }
  double get(int64_t i) const { return reference::element(bytes_.data(), reference_format(type_), i); }
  const std::byte* at(int64_t i) const { return bytes_.data() + offset(i); }
  // In bytes, of element i; in q8_0 a multiple of 32.
  int64_t offset(int64_t i) const { return i / block_elements(type_) * row_bytes(type_, block_elements(type_)); }
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

// Owns the keys and values of one sequence. A gap of 8 elements (q8_0: a block) follows every row and three rows every array, all NaN. In
// fp8_e4m3 every head has scales of its own.
class TestCache {
 public:
  // keys, values: [num_tokens][num_kv_heads][head_dim]
  TestCache(const CacheShape& shape, const std::vector<float>& keys, const std::vector<float>& values)
      : shape_(shape),
        block_(shape.type, 2 * plane()),
        keys_(size_t(shape.num_kv_heads), reference::Matrix(shape.num_tokens, shape.head_dim)),
        values_(keys_) {
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      const bool scaled = shape.type == ElementType::fp8_e4m3;
      key_scales_.push_back(scaled ? 0.017f * float(h + 1) : 1.0f);
      value_scales_.push_back(scaled ? 0.02f / float(h + 1) : 1.0f);
    }
    size_t from = 0;
    for (int i = 0; i < shape.num_tokens; ++i)
      for (int h = 0; h < shape.num_kv_heads; ++h, from += size_t(shape.head_dim)) {
        std::vector<float> row(size_t(shape.head_dim));
        const auto set_row = [&](int64_t place, const std::vector<float>& rows, float scale) {
          for (size_t c = 0; c < row.size(); ++c) row[c] = rows[from + c] / scale;
          block_.set_row(place, row.data(), shape.head_dim);
        };
        set_row(at(i, h), keys, key_scales_[size_t(h)]);
        set_row(value_offset() + at(i, h), values, value_scales_[size_t(h)]);
        refresh(i, h);
      }
  }

  KvCacheView view() const {
    const int64_t token = block_.offset(token_stride()), head = block_.offset(head_stride());
    KvCacheView view{block_.at(0), block_.at(value_offset()), shape_.type, shape_.num_tokens, token, head, token, head};
    if (shape_.type == ElementType::fp8_e4m3) {
      view.key_scales = key_scales_.data();
      view.value_scales = value_scales_.data();
    }
    return view;
  }
  void set_key(int token, int kv_head, int c, float x) {
    block_.set(at(token, kv_head) + c, x / key_scales_[size_t(kv_head)]);
    refresh(token, kv_head);
  }
  void set_value(int token, int kv_head, int c, float x) {
    block_.set(value_offset() + at(token, kv_head) + c, x / value_scales_[size_t(kv_head)]);
    refresh(token, kv_head);
  }
  // The rows of a token as another cache of this shape holds them, bit for bit.
  void copy_token(int token, const TestCache& from) {
    const size_t bytes = size_t(row_bytes(shape_.type, shape_.head_dim));
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      std::memcpy(const_cast<std::byte*>(view().key_row(token, h)), from.view().key_row(token, h), bytes);
      std::memcpy(const_cast<std::byte*>(view().value_row(token, h)), from.view().value_row(token, h), bytes);
      refresh(token, h);
    }
  }
  // The block of 32 elements from c on, by its bits. Only in q8_0.
  void set_key_block(int token, int kv_head, int c, const q8_0& block) {
    block_.set_blocks(at(token, kv_head) + c, &block, q8_0::kElements);
    refresh(token, kv_head);
  }
  void set_value_block(int token, int kv_head, int c, const q8_0& block) {
    block_.set_blocks(value_offset() + at(token, kv_head) + c, &block, q8_0::kElements);
    refresh(token, kv_head);
  }

  // What the cache really holds, after rounding to its type, in double.
  const reference::Matrix& keys(int kv_head) const { return keys_[size_t(kv_head)]; }
  const reference::Matrix& values(int kv_head) const { return values_[size_t(kv_head)]; }
  const CacheShape& shape() const { return shape_; }

 private:
  int64_t row() const { return shape_.head_dim + gap_of(shape_.type); }
  int64_t plane() const { return (int64_t(shape_.num_tokens) + 3) * shape_.num_kv_heads * row(); }
  int64_t token_stride() const {
    return shape_.layout == Layout::hnd ? row() : (shape_.layout == Layout::nhd ? 1 : 2) * shape_.num_kv_heads * row();
  }
  int64_t head_stride() const { return shape_.layout == Layout::hnd ? (int64_t(shape_.num_tokens) + 3) * row() : row(); }
  int64_t value_offset() const { return shape_.layout == Layout::interleaved ? shape_.num_kv_heads * row() : plane(); }
  int64_t at(int token, int kv_head) const { return token * token_stride() + kv_head * head_stride(); }

  void refresh(int token, int kv_head) {
    for (int c = 0; c < shape_.head_dim; ++c) {
      keys_[size_t(kv_head)].row(token)[c] = double(key_scales_[size_t(kv_head)]) * block_.get(at(token, kv_head) + c);
      values_[size_t(kv_head)].row(token)[c] = double(value_scales_[size_t(kv_head)]) * block_.get(value_offset() + at(token, kv_head) + c);
    }
  }

  CacheShape shape_;
  ElementBlock block_;
  std::vector<float> key_scales_, value_scales_;  // [num_kv_heads]
  std::vector<reference::Matrix> keys_, values_;  // [num_kv_heads]
};

// Owns query vectors [num_rows][num_qo_heads][head_dim], a gap as in TestCache after each.
class TestQueries {
 public:
  TestQueries(ElementType type, int num_rows, int num_qo_heads, int head_dim, const std::vector<float>& queries)
      : num_rows_(num_rows),
        num_qo_heads_(num_qo_heads),
        head_dim_(head_dim),
        row_(head_dim + gap_of(type)),
        block_(type, int64_t(num_rows) * num_qo_heads * row_) {
    for (int r = 0; r < num_rows; ++r)
      for (int h = 0; h < num_qo_heads; ++h)
        block_.set_row(at(r, h), queries.data() + (int64_t(r) * num_qo_heads + h) * head_dim, head_dim);
  }
  QueryView view() const {
    const int64_t bytes = block_.offset(row_);
    return {block_.at(0), block_.type(), num_rows_, bytes * num_qo_heads_, bytes};
  }
  void set(int index, int qo_head, int c, float x) { block_.set(at(index, qo_head) + c, x); }
  std::vector<double> get(int index, int qo_head) const {
    std::vector<double> out;
    for (int c = 0; c < head_dim_; ++c) out.push_back(block_.get(at(index, qo_head) + c));
    return out;
  }

 private:
  int64_t at(int index, int qo_head) const { return (int64_t(index) * num_qo_heads_ + qo_head) * row_; }

  int num_rows_, num_qo_heads_, head_dim_;
  int64_t row_;
  ElementBlock block_;
};

}  // namespace quorum::test
