// Elements of rows of every type as vectors of floats, and prefetches of them: what row kernels see of a type.
#pragma once

#include <type_traits>

#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// Neighbouring elements of a row that have their scale, if any, in common; made from the one at column c on. scale: of the row's elements
// in fp8_e4m3; the other types have none, or keep it in the row.
//
// Caller: c is a multiple of kVectorSize, and vectors asked for lie in the row, in q8_0 in the block of c.
template <class T>
class RowChunk {
 public:
  static constexpr int kVectors = 1;
  static constexpr bool kAnyDim = true;  // rows may end within a vector

  RowChunk() = default;
  QUORUM_ALWAYS_INLINE RowChunk(const std::byte* row, int c, float) : elements_(reinterpret_cast<const T*>(row) + c) {}
  QUORUM_ALWAYS_INLINE Vector load(int v) const { return load_as_float(elements_ + v * kVectorSize); }
  QUORUM_ALWAYS_INLINE Vector load_first(int count) const { return load_partial(elements_, count); }
  QUORUM_ALWAYS_INLINE void keep_address() { keep_in_register(elements_); }

 private:
  const T* elements_ = nullptr;
};
template <>
class RowChunk<q8_0> {
 public:
  static_assert(q8_0::kElements % kVectorSize == 0, "vectors do not cross blocks");
  static constexpr int kVectors = q8_0::kElements / kVectorSize;
  static constexpr bool kAnyDim = false;

  RowChunk() = default;
  QUORUM_ALWAYS_INLINE RowChunk(const std::byte* row, int c, float) {
    const std::byte* block = row + c / q8_0::kElements * int64_t(sizeof(q8_0));
    scale_ = broadcast_f16(block);
    q_ = reinterpret_cast<const int8_t*>(block) + offsetof(q8_0, q) + c % q8_0::kElements;
  }
  // Exact: 11 significant bits times 8.
  QUORUM_ALWAYS_INLINE Vector load(int v) const { return scale_ * load_as_float(q_ + v * kVectorSize); }
  QUORUM_ALWAYS_INLINE void keep_address() { keep_in_register(q_); }

 private:
  const int8_t* q_ = nullptr;
  Vector scale_ = Vector(0.0f);
};
template <>
class RowChunk<fp8_e4m3> {
 public:
  static constexpr int kVectors = 1;
  static constexpr bool kAnyDim = true;

  RowChunk() = default;
  QUORUM_ALWAYS_INLINE RowChunk(const std::byte* row, int c, float scale)
      : elements_(reinterpret_cast<const fp8_e4m3*>(row) + c), factor_(scale / kFp8AsF16) {}
  QUORUM_ALWAYS_INLINE Vector load(int v) const { return Vector(factor_) * load_as_float(elements_ + v * kVectorSize); }
  QUORUM_ALWAYS_INLINE Vector load_first(int count) const { return Vector(factor_) * load_partial(elements_, count); }
  QUORUM_ALWAYS_INLINE void keep_address() { keep_in_register(elements_); }

 private:
  const fp8_e4m3* elements_ = nullptr;
  float factor_ = 1.0f;
};

// Elements [c, c + Count vectors) of a row.
template <class T, int Count>
QUORUM_ALWAYS_INLINE void load_vectors(const std::byte* row, int c, float scale, Vector (&out)[Count]) {
  constexpr int kStep = RowChunk<T>::kAnyDim || Count < RowChunk<T>::kVectors ? Count : RowChunk<T>::kVectors;
  for (int j = 0; j < Count; j += kStep) {
    RowChunk<T> chunk(row, c + j * kVectorSize, scale);
    chunk.keep_address();
    for (int v = 0; v < kStep; ++v) out[j + v] = chunk.load(v);
  }
}

// Asks for the lines that elements [c, c + Elements) of each row touch, about once per line as c goes through the row.
template <class T, int Elements, int Rows>
QUORUM_ALWAYS_INLINE void prefetch_elements(const std::byte* const (&rows)[Rows], int c) {
  if constexpr (std::is_same_v<T, q8_0>) {
    // Rows begin anywhere in a line: the first byte, then the last one of every block, touch them all.
    if (c % q8_0::kElements != 0) return;
    constexpr int kBlocks = Elements > q8_0::kElements ? Elements / q8_0::kElements : 1;
    const int64_t offset = c / q8_0::kElements * int64_t(sizeof(q8_0));
    for (int r = 0; r < Rows; ++r) {
      if (c == 0) prefetch(rows[r]);
      for (int b = 1; b <= kBlocks; ++b) prefetch(rows[r] + offset + b * int64_t(sizeof(q8_0)) - 1);
    }
  } else {
    constexpr int kBytes = Elements * int(sizeof(T));
    const int64_t offset = int64_t(c) * int64_t(sizeof(T));
    if (offset % 64 != 0 && kBytes < 64) return;
    for (int line = 0; line < kBytes; line += 64)
      for (int r = 0; r < Rows; ++r) prefetch(rows[r] + offset + line);
  }
}

}  // namespace quorum::simd
