// Numbers and arrays as bytes, one after the other, for saved indexes.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "quorum/core/error.hpp"
#include "quorum/core/random.hpp"

namespace quorum::cpu {

// Any changed bit changes it. Not meant to withstand forgery.
inline uint64_t checksum_of(std::span<const std::byte> bytes) {
  uint64_t sum = bytes.size();
  for (size_t at = 0; at < bytes.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<size_t>(8, bytes.size() - at));
    sum = mix_bits(sum ^ word);
  }
  return sum;
}

// Values one after the other; arrays begin with their length and end at a multiple of 8 bytes.
class ByteWriter {
 public:
  template <class T>
  void put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    append(&value, sizeof(T));
  }
  template <class T>
  void put_array(const T* values, int64_t count) {
    put(int64_t{count});
    if (count > 0) append(values, size_t(count) * sizeof(T));
    bytes_.resize(size_t(round_up(int64_t(bytes_.size()), 8)));
  }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  void append(const void* from, size_t count) {
    const size_t at = bytes_.size();
    bytes_.resize(at + count);
    std::memcpy(bytes_.data() + at, from, count);
  }
  std::vector<std::byte> bytes_;
};

[[noreturn]] inline void refuse_index(const char* field, const char* rule, const std::string& value) {
  throw_error(ErrorCode::invalid_file, "ClusterIndex::load", field, rule, value);
}
inline void require_index(bool holds, const char* field, const char* rule, int64_t value) {
  if (!holds) refuse_index(field, rule, std::to_string(value));
}

// Errors: Error(invalid_file) where the bytes end too early or a length is not the one that is asked for.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  T get(const char* field) {
    T value;
    need(sizeof(T), field);
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  // An array of any length up to `most`.
  template <class Vector>
  void get_array(Vector& out, int64_t most, const char* field) {
    const auto count = get<int64_t>(field);
    require_index(count >= 0 && count <= most, field, "of a length that fits the index", count);
    const size_t size = size_t(count) * sizeof(typename Vector::value_type);
    need(size, field);
    out.resize(size_t(count));
    if (size > 0) std::memcpy(out.data(), bytes_.data() + at_, size);
    at_ = size_t(round_up(int64_t(at_ + size), 8));
  }
  int64_t size() const { return int64_t(bytes_.size()); }
  bool at_end() const { return at_ == bytes_.size(); }

 private:
  void need(size_t count, const char* field) const {
    if (at_ > bytes_.size() || count > bytes_.size() - at_)
      refuse_index(field, "within the bytes", std::to_string(bytes_.size()) + " bytes");
  }
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

}  // namespace quorum::cpu
