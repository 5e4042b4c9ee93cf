// Inputs in the safetensors format: made at random, taken apart, and changed with the length of the header kept true.
#pragma once

#include <vector>

#include "quorum/io/tensor.hpp"
#include "tests/fuzz/mutate.hpp"

namespace quorum::fuzz {

// One tensor of a file to be written.
struct TensorSpec {
  std::string name;
  io::Dtype dtype = io::Dtype::f32;
  std::vector<int64_t> shape;
  std::string data;
};

inline std::string random_data(Draw& draw, size_t size) {
  std::string out(size, '\0');
  if (draw.one_in(4))
    for (char& c : out) c = char(draw.bits());
  return out;
}
inline TensorSpec random_tensor(Draw& draw, std::string name, io::Dtype dtype, std::vector<int64_t> shape) {
  const auto bytes = size_t(io::shape_bytes(shape, dtype));
  return {std::move(name), dtype, std::move(shape), random_data(draw, bytes)};
}

inline std::string safetensors_text(const std::vector<TensorSpec>& tensors, const std::string& metadata) {
  std::string header = "{", data;
  if (!metadata.empty()) header += "\"__metadata__\":{" + metadata + "},";
  for (const TensorSpec& tensor : tensors) {
    header += "\"" + tensor.name + "\":{\"dtype\":\"" + io::dtype_name(tensor.dtype) + "\",\"shape\":" + io::shape_text(tensor.shape) +
              ",\"data_offsets\":[" + std::to_string(data.size()) + ',' + std::to_string(data.size() + tensor.data.size()) + "]},";
    data += tensor.data;
  }
  if (header.back() == ',') header.pop_back();
  header += '}';
  const uint64_t header_bytes = header.size();
  std::string length(8, '\0');
  std::memcpy(length.data(), &header_bytes, 8);
  return length + header + data;
}

// Up to four small tensors of any type.
inline std::string random_safetensors(Draw& draw) {
  std::vector<TensorSpec> tensors;
  for (size_t i = 0, count = draw.below(5); i < count; ++i) {
    std::vector<int64_t> shape(draw.below(4));
    for (int64_t& size : shape) size = int64_t(draw.below(5));
    tensors.push_back(random_tensor(draw, std::string(1, char('a' + i)), io::Dtype(draw.below(size_t(io::Dtype::f64) + 1)), shape));
  }
  return safetensors_text(tensors, draw.one_in(2) ? "\"k\":\"v\"" : "");
}

// A trace whose sizes agree, unless one of them is drawn again.
inline std::string random_trace(Draw& draw) {
  const auto size = [&](size_t largest) { return int64_t(1 + draw.below(largest)); };
  const auto again = [&](int64_t value) { return draw.one_in(16) ? size(3) : value; };
  constexpr io::Dtype kTypes[] = {io::Dtype::f16, io::Dtype::bf16, io::Dtype::f32};
  const int64_t tokens = size(6), kv_heads = size(2), dim = size(4), qo_heads = kv_heads * size(2), queries = size(3);
  const io::Dtype stored = kTypes[draw.below(3)], asked = kTypes[draw.below(3)];
  std::vector<TensorSpec> tensors;
  if (draw.one_in(4)) tensors.push_back(random_tensor(draw, "a", io::Dtype::u8, {1}));  // what follows lies unaligned
  tensors.push_back(random_tensor(draw, "keys", stored, {tokens, again(kv_heads), dim}));
  tensors.push_back(random_tensor(draw, "values", stored, {again(tokens), kv_heads, again(dim)}));
  tensors.push_back(random_tensor(draw, "queries", asked, {queries, again(qo_heads), dim}));
  if (draw.one_in(2)) tensors.push_back(random_tensor(draw, "prompt_queries", asked, {size(2), qo_heads, again(dim)}));
  tensors.push_back(random_tensor(draw, "query_positions", io::Dtype::i32, {again(queries)}));
  for (char& c : tensors.back().data) c = '\0';
  return safetensors_text(tensors, "\"sm_scale\":\"0.5\",\"layout\":\"NHD\"");
}

// A mutated file of the format, or a new one by `generate`. One in eight is mutated without regard to the format.
template <class Generate>
size_t mutate_safetensors(uint8_t* data, size_t size, size_t max_size, unsigned seed, Generate&& generate) {
  Draw draw(seed);
  if (draw.one_in(8)) return LLVMFuzzerMutate(data, size, max_size);
  std::string whole(reinterpret_cast<const char*>(data), size);
  if (size < 8 || draw.one_in(4)) whole = generate(draw);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), 8);
  const size_t split = 8 + size_t(std::min<uint64_t>(header_bytes, whole.size() - 8));
  std::string header = whole.substr(8, split - 8), content = whole.substr(split);
  if (draw.one_in(4)) {
    mutate_bytes(content);
  } else {
    for (size_t i = draw.below(3); i > 0; --i) mutate_json(header, draw);
  }
  header_bytes = header.size();
  std::memcpy(whole.data(), &header_bytes, 8);
  return put(whole.substr(0, 8) + header + content, data, max_size);
}

}  // namespace quorum::fuzz
