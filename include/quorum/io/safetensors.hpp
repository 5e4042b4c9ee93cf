// Strict reader of safetensors files: everything the header claims is checked before a tensor is handed out.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "quorum/io/json.hpp"
#include "quorum/io/mapped_file.hpp"
#include "quorum/io/tensor.hpp"

namespace quorum::io {

// Longest header that is read; the format's own limit.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// A safetensors file: 8 bytes header length, a JSON header, then the tensors' bytes.
//
// Memory: `open` maps the file, `parse` copies the bytes; tensors point into them and live as long as the object (moving it keeps them).
// Errors: Error(io_failure) if the file cannot be read; Error(invalid_file) naming the file and the field: shorter than its header says,
//   header over 100 MB, JSON that breaks the rules (see parse_json) or has other fields than the format, unknown dtype, negative or
//   overflowing shape, bytes that do not fit the shape, offsets beyond the file, overlaps, and gaps between tensors.
// Caller: see MappedFile about changing a mapped file, and Tensor about alignment.
// Cost: linear in the header; data is not touched.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path) { return SafetensorsFile(MappedFile::open(path), path); }
  static SafetensorsFile parse(std::span<const std::byte> bytes, std::string name) {
    return SafetensorsFile(MappedFile::copy(bytes), std::move(name));
  }

  const std::string& name() const { return name_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  // in the order of their bytes
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // nullptr if there is no such tensor.
  const Tensor* find(std::string_view tensor_name) const {
    const auto it = std::find_if(tensors_.begin(), tensors_.end(), [&](const Tensor& t) { return t.name == tensor_name; });
    return it == tensors_.end() ? nullptr : &*it;
  }
  // Errors: Error(invalid_file) naming the file and the missing tensor.
  const Tensor& tensor(std::string_view tensor_name) const {
    const Tensor* found = find(tensor_name);
    if (found == nullptr) fail("tensor '" + std::string(tensor_name) + "'", "present", "a file without it");
    return *found;
  }

 private:
  SafetensorsFile(MappedFile file, std::string name) : file_(std::move(file)), name_(std::move(name)) {
    const std::span<const std::byte> bytes = file_.bytes();
    if (bytes.size() < 8) fail("header length", "8 bytes", std::to_string(bytes.size()) + " bytes in the whole file");
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), 8);
    if (header_bytes > kMaxSafetensorsHeaderBytes) fail("header length", "at most 100000000", std::to_string(header_bytes));
    if (header_bytes > bytes.size() - 8) {
      fail("header length", "within the file's " + std::to_string(bytes.size()) + " bytes", std::to_string(header_bytes));
    }
    const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, size_t(header_bytes));
    if (header.empty() || header.front() != '{') fail("header", "a JSON object starting with '{'", "something else");
    const JsonValue root = parse_json(header, name_ + ": header");
    const std::span<const std::byte> data = bytes.subspan(8 + size_t(header_bytes));
    tensors_.reserve(root.keys.size());
    for (size_t i = 0; i < root.keys.size(); ++i) {
      if (root.keys[i] == "__metadata__") {
        read_metadata(root.items[i]);
      } else {
        tensors_.push_back(read_tensor(root.keys[i], root.items[i], data));
      }
    }
    require_contiguous(data);
  }

  void read_metadata(const JsonValue& value) {
    if (value.kind != JsonValue::Kind::object) fail("'__metadata__'", "an object", json_kind_name(value.kind));
    for (size_t i = 0; i < value.keys.size(); ++i) {
      if (value.items[i].kind != JsonValue::Kind::string) {
        fail("'__metadata__', field '" + value.keys[i] + "',", "a string", json_kind_name(value.items[i].kind));
      }
      metadata_[value.keys[i]] = value.items[i].text;
    }
  }

  Tensor read_tensor(const std::string& tensor_name, const JsonValue& value, std::span<const std::byte> data) const {
    Tensor tensor{name_, tensor_name, {}, {}, nullptr, 0};
    const std::string label = "tensor '" + tensor_name + "'";
    if (value.kind != JsonValue::Kind::object) fail(label, "an object", json_kind_name(value.kind));
    for (const std::string& key : value.keys) {
      if (key != "dtype" && key != "shape" && key != "data_offsets") fail(label, "only dtype, shape and data_offsets", "'" + key + "'");
    }
    tensor.dtype = read_dtype(value.find("dtype"), label);
    tensor.shape = read_integers(value.find("shape"), label + ", shape,");
    const int64_t wanted = shape_bytes(tensor.shape, tensor.dtype);
    if (wanted < 0) fail(label + ", shape,", "non-negative and fit into 63 bits of bytes", shape_text(tensor.shape));
    const std::vector<int64_t> offsets = read_integers(value.find("data_offsets"), label + ", data_offsets,");
    if (offsets.size() != 2 || offsets[0] < 0 || offsets[0] > offsets[1] || offsets[1] > int64_t(data.size())) {
      fail(label + ", data_offsets,", "[begin, end] within the file's " + std::to_string(data.size()) + " bytes of data",
           shape_text(offsets));
    }
    if (offsets[1] - offsets[0] != wanted) {
      fail(label + ", data_offsets,",
           std::to_string(wanted) + " bytes for shape " + shape_text(tensor.shape) + " of " + dtype_name(tensor.dtype),
           std::to_string(offsets[1] - offsets[0]) + " bytes");
    }
    tensor.data = data.data() + offsets[0];
    tensor.bytes = size_t(wanted);
    return tensor;
  }

  Dtype read_dtype(const JsonValue* value, const std::string& label) const {
    const bool is_text = value != nullptr && value->kind == JsonValue::Kind::string;
    for (int i = 0; is_text && i <= int(Dtype::f64); ++i) {
      if (value->text == dtype_name(Dtype(i))) return Dtype(i);
    }
    const std::string got = value == nullptr ? "nothing" : is_text ? "'" + value->text + "'" : json_kind_name(value->kind);
    fail(label + ", dtype,", "one of BOOL, U8, I8, U16, I16, U32, I32, U64, I64, F16, BF16, F32, F64", got);
  }

  std::vector<int64_t> read_integers(const JsonValue* value, const std::string& label) const {
    if (value == nullptr || value->kind != JsonValue::Kind::array) {
      fail(label, "an array", value == nullptr ? "nothing" : json_kind_name(value->kind));
    }
    std::vector<int64_t> out(value->items.size());
    for (size_t i = 0; i < out.size(); ++i) {
      const JsonValue& item = value->items[i];
      if (!item.as_integer(out[i])) {
        fail(label, "integers of 64 bits", item.kind == JsonValue::Kind::number ? item.text : json_kind_name(item.kind));
      }
    }
    return out;
  }

  // Sorts the tensors by their bytes; neither overlaps nor gaps, so that no byte of the file is unaccounted for.
  void require_contiguous(std::span<const std::byte> data) {
    std::stable_sort(tensors_.begin(), tensors_.end(),
                     [](const Tensor& a, const Tensor& b) { return a.data != b.data ? a.data < b.data : a.bytes < b.bytes; });
    const std::byte* end = data.data();
    for (const Tensor& tensor : tensors_) {
      if (tensor.data != end) {
        const std::string rule = "at byte " + std::to_string(end - data.data()) + ", where the tensor before it ends";
        fail("tensor '" + tensor.name + "', data_offsets,", rule,
             std::to_string(tensor.data - data.data()) + (tensor.data < end ? " (overlap)" : " (gap)"));
      }
      end += tensor.bytes;
    }
    const auto used = size_t(end - data.data());
    if (used != data.size()) fail("data", std::to_string(used) + " bytes as the header says", std::to_string(data.size()) + " bytes");
  }

  [[noreturn]] void fail(const std::string& field, const std::string& rule, const std::string& got) const {
    throw_error(ErrorCode::invalid_file, "SafetensorsFile", name_ + ": " + field, rule, got);
  }

  MappedFile file_;
  std::string name_;
  std::vector<Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace quorum::io
