// NpyFile: an accepted array has the bytes of its shape, they are the file's last, and its header written again is accepted.
#include "quorum/io/npy.hpp"

#include "tests/fuzz/mutate.hpp"

using namespace quorum;
using fuzz::expect;
using io::NpyFile;
using io::Tensor;

namespace {

constexpr std::string_view kPrefix("\x93NUMPY\x01\x00", 8);

// Magic, version 1, 2 bytes of length, header, data.
std::string npy_text(const std::string& header, std::string_view data) {
  const auto bytes = uint16_t(header.size());
  std::string length(2, '\0');
  std::memcpy(length.data(), &bytes, 2);
  return std::string(kPrefix) + length + header + std::string(data);
}

std::string header_text(std::string_view descr, const std::vector<int64_t>& shape) {
  std::string sizes;
  for (const int64_t size : shape) sizes += std::to_string(size) + ",";
  return "{'descr': '" + std::string(descr) + "', 'fortran_order': False, 'shape': (" + sizes + "), }\n";
}

std::string_view descr_of(io::Dtype dtype) {
  switch (dtype) {
    case io::Dtype::f16:
      return "<f2";
    case io::Dtype::f32:
      return "<f4";
    case io::Dtype::f64:
      return "<f8";
    case io::Dtype::i32:
      return "<i4";
    case io::Dtype::i64:
      return "<i8";
    default:
      return "|u1";
  }
}

std::string random_npy(fuzz::Draw& draw) {
  constexpr io::Dtype kTypes[] = {io::Dtype::f16, io::Dtype::f32, io::Dtype::f64, io::Dtype::i32, io::Dtype::i64, io::Dtype::u8};
  const io::Dtype dtype = kTypes[draw.below(6)];
  std::vector<int64_t> shape(draw.below(4));
  for (int64_t& size : shape) size = int64_t(draw.below(5));
  return npy_text(header_text(descr_of(dtype), shape), std::string(size_t(io::shape_bytes(shape, dtype)), '\1'));
}

void mutate_header(std::string& header, fuzz::Draw& draw) {
  const size_t from = draw.below(header.size());
  const size_t quote = header.find('\'', from), digit = header.find_first_of("0123456789", from);
  if (draw.one_in(3) && quote != std::string::npos) {
    const size_t end = std::min(header.find('\'', quote + 1), header.size() - 1);
    header.replace(quote, end + 1 - quote, draw.of("'descr' 'shape' 'fortran_order' False True '<f4' '<f2' '|u1' '>f4' '<i8'"));
  } else if (draw.one_in(3) && digit != std::string::npos) {
    header.replace(digit, 1, draw.of("0 1 2 3 -1 4294967296 9223372036854775807 9223372036854775808 "));
  } else if (draw.one_in(2)) {
    header.insert(from, draw.of("{ } ( ) , : \" ' \n () (1,) 1,  "));
  } else {
    fuzz::mutate_bytes(header);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto input = fuzz::input_bytes(data, size);
  fuzz::accepts([&] {
    NpyFile read = NpyFile::parse(input, fuzz::kInputName);
    const NpyFile file = std::move(read);
    ++fuzz::num_accepted;
    const Tensor& tensor = file.tensor();
    expect(io::shape_bytes(tensor.shape, tensor.dtype) == int64_t(tensor.bytes), "bytes of the shape");
    expect(tensor.bytes + 10 <= size, "data lie behind the header");
    fuzz::touch(tensor.data, tensor.bytes);
    expect(tensor.bytes == 0 || std::memcmp(tensor.data, data + size - tensor.bytes, tensor.bytes) == 0, "data are the file's last bytes");
    const std::string_view content(reinterpret_cast<const char*>(tensor.data), tensor.bytes);
    const std::string text = npy_text(header_text(descr_of(tensor.dtype), tensor.shape), content);
    const NpyFile again = NpyFile::parse(std::as_bytes(std::span(text)), fuzz::kInputName);
    expect(again.tensor().shape == tensor.shape && again.tensor().dtype == tensor.dtype, "the same array again");
    expect(!fuzz::accepts([&] { NpyFile::parse(input.first(size - 1), fuzz::kInputName); }), "one byte less is refused");
  });
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  fuzz::Draw draw(seed);
  std::string whole(reinterpret_cast<const char*>(data), size);
  if (size < 10 || draw.one_in(4)) whole = random_npy(draw);
  const bool wide = whole[6] == 2 || whole[6] == 3;  // 4 bytes of length
  const size_t prefix = wide ? 12 : 10;
  if (whole.size() < prefix || draw.one_in(8)) return LLVMFuzzerMutate(data, size, max_size);
  uint32_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data() + 8, prefix - 8);
  const size_t split = prefix + std::min<size_t>(header_bytes, whole.size() - prefix);
  std::string header = whole.substr(prefix, split - prefix), content = whole.substr(split);
  if (draw.one_in(4)) {
    fuzz::mutate_bytes(content);
  } else {
    for (size_t i = draw.below(3); i > 0; --i) mutate_header(header, draw);
  }
  header_bytes = uint32_t(header.size());
  if (draw.one_in(16)) whole[6] = char(1 + draw.below(3));  // another version, whose length may now be read differently
  std::memcpy(whole.data() + 8, &header_bytes, prefix - 8);
  return fuzz::put(whole.substr(0, prefix) + header + content, data, max_size);
}
