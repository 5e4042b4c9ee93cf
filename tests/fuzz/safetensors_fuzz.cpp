// SafetensorsFile: the tensors of an accepted file tile its data without overlap, and writing them again gives the same file.
#include "quorum/io/safetensors.hpp"

#include <set>

#include "tests/fuzz/safetensors_input.hpp"

using namespace quorum;
using fuzz::expect;
using io::SafetensorsFile;
using io::Tensor;

namespace {

bool is_float(const Tensor& tensor) {
  return tensor.dtype == io::Dtype::f32 || tensor.dtype == io::Dtype::f16 || tensor.dtype == io::Dtype::bf16;
}

// Both readers of floats agree on whether the tensor has a non-finite element, and refuse other types.
void check_floats(const Tensor& tensor) {
  std::vector<float> floats;
  const bool converts = fuzz::accepts([&] { floats = io::to_floats(tensor); });
  expect(converts == is_float(tensor), "floats are converted, others refused");
  if (!converts) return;
  expect(int64_t(floats.size()) == tensor.num_elements(), "a float for each element");
  const bool finite = std::all_of(floats.begin(), floats.end(), [](float x) { return x - x == 0.0f; });
  expect(fuzz::accepts([&] { io::require_finite(tensor); }) == finite, "require_finite refuses NaN and infinity, nothing else");
}

void check(const SafetensorsFile& file, std::span<const std::byte> input) {
  std::set<std::string> names;
  size_t bytes = 0;
  for (const Tensor& tensor : file.tensors()) bytes += tensor.bytes;
  expect(bytes + 8 <= input.size(), "tensors lie within the file");
  const std::byte* end = file.tensors().empty() ? nullptr : file.tensors()[0].data;
  expect(bytes == 0 || std::memcmp(end, input.data() + input.size() - bytes, bytes) == 0, "tensors hold the file's last bytes");
  for (const Tensor& tensor : file.tensors()) {
    expect(names.insert(tensor.name).second, "distinct names");
    expect(file.find(tensor.name) == &tensor, "found by name");
    expect(io::shape_bytes(tensor.shape, tensor.dtype) == int64_t(tensor.bytes), "bytes of the shape");
    expect(tensor.data == end, "tensors follow one another");
    fuzz::touch(tensor.data, tensor.bytes);
    end += tensor.bytes;
    check_floats(tensor);
  }
}

bool plain(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c != '"' && c != '\\'; });
}

void check_written_again(const SafetensorsFile& file) {
  std::vector<fuzz::TensorSpec> tensors;
  for (const Tensor& tensor : file.tensors()) {
    if (!plain(tensor.name)) return;
    tensors.push_back({tensor.name, tensor.dtype, tensor.shape, {reinterpret_cast<const char*>(tensor.data), tensor.bytes}});
  }
  const std::string text = fuzz::safetensors_text(tensors, "");
  const SafetensorsFile again = SafetensorsFile::parse(std::as_bytes(std::span(text)), fuzz::kInputName);
  expect(again.tensors().size() == tensors.size(), "as many tensors again");
  for (const fuzz::TensorSpec& tensor : tensors) {
    const Tensor& found = again.tensor(tensor.name);
    expect(found.dtype == tensor.dtype && found.shape == tensor.shape && found.bytes == tensor.data.size(), "the same tensor again");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto input = fuzz::input_bytes(data, size);
  fuzz::accepts([&] {
    SafetensorsFile read = SafetensorsFile::parse(input, fuzz::kInputName);
    const SafetensorsFile file = std::move(read);
    ++fuzz::num_accepted;
    check(file, input);
    check_written_again(file);
    expect(!fuzz::accepts([&] { SafetensorsFile::parse(input.first(input.size() - 1), fuzz::kInputName); }), "one byte less is refused");
  });
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return fuzz::mutate_safetensors(data, size, max_size, seed, fuzz::random_safetensors);
}
