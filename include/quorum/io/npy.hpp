// Strict reader of NumPy's .npy files, format versions 1 to 3.
#pragma once

#include <charconv>
#include <string>
#include <string_view>
#include <vector>

#include "quorum/io/mapped_file.hpp"
#include "quorum/io/tensor.hpp"

namespace quorum::io {

// Longest header that is read; NumPy writes 128 bytes for the arrays this reader accepts.
inline constexpr uint32_t kMaxNpyHeaderBytes = 1 << 20;

namespace detail {

// The header of an .npy file: a Python dictionary literal with the keys descr, fortran_order and shape, each once, in any order.
class NpyHeaderParser {
 public:
  NpyHeaderParser(std::string_view text, const std::string& file) : text_(text), file_(file) {}

  // Fills dtype and shape.
  void parse(Tensor& tensor) {
    bool seen[3] = {};
    expect('{', "'{'");
    while (!accept('}')) {
      const std::string key = parse_string("a key in quotes");
      const int which = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : -1;
      if (which < 0) fail("header", "only the keys descr, fortran_order and shape", "'" + key + "'");
      if (seen[which]) fail("header", "a dictionary with distinct keys", "'" + key + "' twice");
      seen[which] = true;
      expect(':', "':' after a key");
      if (which == 0) tensor.dtype = parse_dtype();
      if (which == 1) parse_order();
      if (which == 2) tensor.shape = parse_shape();
      if (accept(',')) continue;
      expect('}', "',' or '}'");
      break;
    }
    skip_space();
    if (position_ != text_.size()) fail_here("only white space after '}'");
    constexpr const char* kKeys[] = {"descr", "fortran_order", "shape"};
    for (int i = 0; i < 3; ++i) {
      if (!seen[i]) fail(std::string("header, ") + kKeys[i] + ",", "present", "nothing");
    }
  }

 private:
  Dtype parse_dtype() {
    const std::string descr = parse_string("a plain dtype such as '<f4'");
    constexpr std::string_view kDescr[] = {"<f2", "<f4", "<f8", "<i4", "<i8", "|u1"};
    constexpr Dtype kDtypes[] = {Dtype::f16, Dtype::f32, Dtype::f64, Dtype::i32, Dtype::i64, Dtype::u8};
    for (size_t i = 0; i < std::size(kDescr); ++i) {
      if (descr == kDescr[i]) return kDtypes[i];
    }
    fail("header, descr,", "one of <f2 <f4 <f8 <i4 <i8 |u1 (little-endian)", "'" + descr + "'");
  }

  void parse_order() {
    if (accept_word("False")) return;
    if (accept_word("True")) fail("header, fortran_order,", "False: rows must be contiguous (save np.ascontiguousarray(x))", "True");
    fail_here("True or False");
  }

  std::vector<int64_t> parse_shape() {
    std::vector<int64_t> shape;
    expect('(', "'(' of a tuple");
    while (!accept(')')) {
      shape.push_back(parse_size());
      if (accept(',')) continue;
      if (shape.size() == 1) fail_here("',' in a tuple of one");
      expect(')', "',' or ')'");
      break;
    }
    return shape;
  }

  int64_t parse_size() {
    skip_space();
    int64_t size = 0;
    const char* begin = text_.data() + position_;
    const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), size);
    if (error != std::errc() || size < 0) fail_here("a non-negative integer of 64 bits");
    position_ += size_t(end - begin);
    return size;
  }

  std::string parse_string(const char* rule) {
    skip_space();
    const char quote = position_ < text_.size() ? text_[position_] : '\0';
    const size_t end = quote == '\'' || quote == '"' ? text_.find(quote, position_ + 1) : std::string_view::npos;
    if (end == std::string_view::npos) fail_here(rule);
    std::string out(text_.substr(position_ + 1, end - position_ - 1));
    position_ = end + 1;
    return out;
  }

  void skip_space() {
    while (position_ < text_.size() && std::string_view(" \t\n\r").find(text_[position_]) != std::string_view::npos) ++position_;
  }
  bool accept_word(std::string_view word) {
    skip_space();
    if (text_.substr(position_, word.size()) != word) return false;
    position_ += word.size();
    return true;
  }
  bool accept(char c) { return accept_word(std::string_view(&c, 1)); }
  void expect(char c, const char* rule) {
    if (!accept(c)) fail_here(rule);
  }

  [[noreturn]] void fail_here(const char* rule) const {
    const std::string got = position_ < text_.size() ? "'" + std::string(text_.substr(position_, 16)) + "'" : "the end";
    fail("header, byte " + std::to_string(position_) + ",", rule, got);
  }
  [[noreturn]] void fail(const std::string& field, const std::string& rule, const std::string& got) const {
    throw_error(ErrorCode::invalid_file, "NpyFile", file_ + ": " + field, rule, got);
  }

  std::string_view text_;
  const std::string& file_;
  size_t position_ = 0;
};

}  // namespace detail

// An .npy file: one array in C order, little-endian f2, f4, f8, i4, i8 or u1.
//
// Memory: `open` maps the file, `parse` copies the bytes; the tensor points into them and lives as long as the object (moving it keeps it).
// Errors: Error(io_failure) if the file cannot be read; Error(invalid_file) naming the file and the field: no .npy file, unknown version,
//   header beyond the file or over 1 MB, a header that is no dictionary of the three keys, another dtype, big-endian or structured data,
//   Fortran order, negative or overflowing shape, more or fewer bytes than the shape needs.
// Caller: see MappedFile about changing a mapped file, and Tensor about alignment.
// Cost: linear in the header; data is not touched.
class NpyFile {
 public:
  static NpyFile open(const std::string& path) { return NpyFile(MappedFile::open(path), path); }
  static NpyFile parse(std::span<const std::byte> bytes, std::string name) { return NpyFile(MappedFile::copy(bytes), std::move(name)); }

  const Tensor& tensor() const { return tensor_; }

 private:
  NpyFile(MappedFile file, std::string name) : file_(std::move(file)) {
    tensor_.file = std::move(name);
    tensor_.name = "array";
    const std::span<const std::byte> bytes = file_.bytes();
    const size_t prefix = check_prefix(bytes);
    uint32_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data() + 8, prefix - 8);
    if (header_bytes > kMaxNpyHeaderBytes) fail("header length", "at most 1048576", std::to_string(header_bytes));
    if (header_bytes > bytes.size() - prefix) {
      fail("header length", "within the file's " + std::to_string(bytes.size()) + " bytes", std::to_string(header_bytes));
    }
    const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + prefix, header_bytes);
    detail::NpyHeaderParser(header, tensor_.file).parse(tensor_);
    const std::span<const std::byte> data = bytes.subspan(prefix + header_bytes);
    const int64_t wanted = shape_bytes(tensor_.shape, tensor_.dtype);
    if (wanted < 0) fail("header, shape,", "such that its bytes fit into 63 bits", shape_text(tensor_.shape));
    if (uint64_t(wanted) != data.size()) {
      fail("data", std::to_string(wanted) + " bytes for shape " + shape_text(tensor_.shape), std::to_string(data.size()) + " bytes");
    }
    tensor_.data = data.data();
    tensor_.bytes = data.size();
  }

  // Bytes before the header text: magic, version and the header's length, which has 2 bytes in version 1 and 4 in 2 and 3.
  size_t check_prefix(std::span<const std::byte> bytes) const {
    constexpr unsigned char kMagic[] = {0x93, 'N', 'U', 'M', 'P', 'Y'};
    if (bytes.size() < 8 || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) fail("magic", "\\x93NUMPY", "something else");
    const int major = int(bytes[6]), minor = int(bytes[7]);
    if (major < 1 || major > 3 || minor != 0) {
      fail("version", "1.0, 2.0 or 3.0", std::to_string(major) + "." + std::to_string(minor));
    }
    const size_t prefix = major == 1 ? 10 : 12;
    if (bytes.size() < prefix) fail("header length", "present", "the end of the file");
    return prefix;
  }

  [[noreturn]] void fail(const std::string& field, const std::string& rule, const std::string& got) const {
    throw_error(ErrorCode::invalid_file, "NpyFile", tensor_.file + ": " + field, rule, got);
  }

  MappedFile file_;
  Tensor tensor_;
};

}  // namespace quorum::io
