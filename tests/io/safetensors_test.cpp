#include "quorum/io/safetensors.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <type_traits>

#include "io_test_support.hpp"

using quorum::Error;
using quorum::ErrorCode;
using quorum::io::Dtype;
using quorum::io::NonFinite;
using quorum::io::SafetensorsFile;
using quorum::io::Tensor;
using namespace quorum::test;

namespace {

SafetensorsFile parse(const std::string& bytes) { return SafetensorsFile::parse(as_bytes(bytes), "t.safetensors"); }

// The message of a file with this header and so many bytes of data.
std::string failure(const std::string& header, size_t data_bytes) {
  return message_of([&] { parse(safetensors_bytes(header, std::string(data_bytes, '\0'))); });
}

const std::string kTwoTensors = R"({"__metadata__":{"model":"m","note":"\u00e9"},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},)"
                                R"("a":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}})";

std::string two_tensors() { return safetensors_bytes(kTwoTensors, raw(uint16_t(0x3c00)) + raw(uint16_t(0xc000)) + raw(1.5f) + raw(-3.0f)); }

}  // namespace

TEST_CASE("safetensors: tensors, metadata and values of a good file") {
  const SafetensorsFile file = parse(two_tensors());
  CHECK(file.metadata().at("model") == "m");
  CHECK(file.metadata().at("note") == "\xc3\xa9");
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.tensors()[0].name == "a");
  const Tensor& a = file.tensor("a");
  CHECK(a.dtype == Dtype::f16);
  CHECK(a.shape == std::vector<int64_t>{1, 2});
  CHECK(a.num_elements() == 2);
  CHECK(a.bytes == 4);
  CHECK(to_floats(a) == std::vector<float>{1.0f, -2.0f});
  CHECK(to_floats(file.tensor("b"), NonFinite::reject) == std::vector<float>{1.5f, -3.0f});
  CHECK(file.find("c") == nullptr);
}

TEST_CASE("safetensors: moving the file keeps its tensors; it cannot be copied") {
  static_assert(!std::is_copy_constructible_v<SafetensorsFile> && std::is_nothrow_move_constructible_v<SafetensorsFile>);
  SafetensorsFile first = parse(two_tensors());
  const SafetensorsFile second = std::move(first);
  CHECK(to_floats(second.tensor("b")) == std::vector<float>{1.5f, -3.0f});
}

TEST_CASE("safetensors: unaligned data, scalars and empty tensors") {
  const std::string header =
      R"({"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"s":{"dtype":"F32","shape":[],"data_offsets":[1,5]},)"
      R"("h":{"dtype":"BF16","shape":[1],"data_offsets":[5,7]},"e":{"dtype":"F64","shape":[0,3],"data_offsets":[7,7]}})";
  const SafetensorsFile file = parse(safetensors_bytes(header, "x" + raw(0.25f) + raw(uint16_t(0x4040))));
  CHECK(to_floats(file.tensor("s")) == std::vector<float>{0.25f});
  CHECK(to_floats(file.tensor("h")) == std::vector<float>{3.0f});
  CHECK(file.tensor("e").num_elements() == 0);
  CHECK(parse(safetensors_bytes("{}", "")).tensors().empty());
}

TEST_CASE("safetensors: a broken length or header names the file and the field") {
  CHECK(message_of([] { parse("1234567"); }) ==
        "SafetensorsFile: t.safetensors: header length must be 8 bytes, got 7 bytes in the whole file");
  CHECK(message_of([] { parse(raw(uint64_t(3)) + "{}"); }) ==
        "SafetensorsFile: t.safetensors: header length must be within the file's 10 bytes, got 3");
  CHECK(message_of([] { parse(raw(uint64_t(1) << 31) + "{}"); }) ==
        "SafetensorsFile: t.safetensors: header length must be at most 100000000, got 2147483648");
  CHECK(message_of([] { parse(raw(std::numeric_limits<uint64_t>::max()) + "{}"); }).find("header length must be at most") !=
        std::string::npos);
  CHECK(failure("", 0).find("t.safetensors: header must be a JSON object") != std::string::npos);
  CHECK(failure("[]", 0).find("t.safetensors: header must be a JSON object") != std::string::npos);
  CHECK(failure(R"({"a":)", 0).find("t.safetensors: header, byte 5, must be a value") != std::string::npos);
  CHECK(failure(R"({"a":1,"a":2})", 0).find("distinct keys (twice: 'a')") != std::string::npos);
  CHECK(failure(R"({"__metadata__":[]})", 0).find("'__metadata__' must be an object, got an array") != std::string::npos);
  CHECK(failure(R"({"__metadata__":{"k":1}})", 0).find("'__metadata__', field 'k', must be a string, got a number") != std::string::npos);
}

TEST_CASE("safetensors: a broken tensor names the file, the tensor and the field") {
  struct Case {
    const char* tensor;
    const char* message;
  };
  const Case cases[] = {
      {R"(1)", "tensor 'x' must be an object, got a number"},
      {R"({"shape":[1],"data_offsets":[0,4]})", "tensor 'x', dtype, must be one of"},
      {R"({"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]})", "F64, got 'F8_E4M3'"},
      {R"({"dtype":7,"shape":[1],"data_offsets":[0,4]})", "F64, got a number"},
      {R"({"dtype":"F32","data_offsets":[0,4]})", "tensor 'x', shape, must be an array, got nothing"},
      {R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})", "tensor 'x', shape, must be an array, got a number"},
      {R"({"dtype":"F32","shape":["1"],"data_offsets":[0,4]})", "tensor 'x', shape, must be integers of 64 bits, got a string"},
      {R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", "integers of 64 bits, got 1.0"},
      {R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]})", "integers of 64 bits, got 99999999999999999999"},
      {R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})",
       "tensor 'x', shape, must be non-negative and fit into 63 bits of bytes, got [-1]"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})",
       "fit into 63 bits of bytes, got [4294967296, 4294967296]"},
      {R"({"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})", "fit into 63 bits"},
      {R"({"dtype":"F32","shape":[1]})", "tensor 'x', data_offsets, must be an array, got nothing"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", "tensor 'x', data_offsets, must be [begin, end] within the file's 4 bytes"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})",
       "data_offsets, must be [begin, end] within the file's 4 bytes of data, got [-4, 0]"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", "[begin, end] within"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", "within the file's 4 bytes of data, got [0, 8]"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", "data_offsets, must be 8 bytes for shape [2] of F32, got 4 bytes"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1})", "only dtype, shape and data_offsets, got 'more'"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.tensor);
    const std::string message = failure(std::string(R"({"x":)") + c.tensor + "}", 4);
    CHECK_MESSAGE(message.find("SafetensorsFile: t.safetensors: tensor 'x'") == 0, message);
    CHECK_MESSAGE(message.find(c.message) != std::string::npos, message);
  }
}

TEST_CASE("safetensors: overlaps, gaps and spare bytes") {
  const auto pair = [](const char* first, const char* second) {
    return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + first + R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" +
           second + "}}";
  };
  CHECK(failure(pair("[0,4]", "[4,8]"), 8).empty());
  CHECK(failure(pair("[0,4]", "[2,6]"), 6) ==
        "SafetensorsFile: t.safetensors: tensor 'b', data_offsets, must be at byte 4, where the tensor before it ends, got 2 (overlap)");
  CHECK(failure(pair("[0,4]", "[0,4]"), 4).find("got 0 (overlap)") != std::string::npos);
  CHECK(failure(pair("[0,4]", "[6,10]"), 10).find("tensor 'b', data_offsets, must be at byte 4") != std::string::npos);
  CHECK(failure(pair("[0,4]", "[6,10]"), 10).find("got 6 (gap)") != std::string::npos);
  CHECK(failure(pair("[2,6]", "[6,10]"), 10).find("tensor 'a', data_offsets, must be at byte 0") != std::string::npos);
  CHECK(failure(pair("[0,4]", "[4,8]"), 9) == "SafetensorsFile: t.safetensors: data must be 8 bytes as the header says, got 9 bytes");
}

TEST_CASE("safetensors: missing tensors, other dtypes and non-finite data") {
  const float inf = std::numeric_limits<float>::infinity();
  const SafetensorsFile file = parse(
      safetensors_bytes(R"({"x":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"i":{"dtype":"I32","shape":[1],"data_offsets":[12,16]},)"
                        R"("h":{"dtype":"F16","shape":[2],"data_offsets":[16,20]}})",
                        raw(0.0f) + raw(1.0f) + raw(-inf) + raw(7) + raw(uint16_t(0)) + raw(uint16_t(0x7e01))));
  CHECK(message_of([&] { file.tensor("y"); }) == "SafetensorsFile: t.safetensors: tensor 'y' must be present, got a file without it");
  CHECK(message_of([&] { to_floats(file.tensor("i")); }) ==
        "to_floats: t.safetensors: tensor 'i', dtype, must be F32, F16 or BF16, got I32");
  CHECK(message_of([&] { require_finite(file.tensor("x")); }) ==
        "require_finite: t.safetensors: tensor 'x', element 2, must be finite, got -inf");
  CHECK(message_of([&] { to_floats(file.tensor("h"), NonFinite::reject); }).find("tensor 'h', element 1, must be finite") !=
        std::string::npos);
  CHECK(std::isnan(to_floats(file.tensor("h"))[1]));
}

TEST_CASE("safetensors: files on disk") {
  const auto folder = std::filesystem::temp_directory_path() / "quorum_safetensors_test";
  std::filesystem::create_directories(folder);
  const std::string path = (folder / "good.safetensors").string(), empty = (folder / "empty.safetensors").string();
  std::ofstream(path, std::ios::binary) << two_tensors();
  std::ofstream(empty, std::ios::binary).flush();
  CHECK(to_floats(SafetensorsFile::open(path).tensor("b")) == std::vector<float>{1.5f, -3.0f});
  CHECK(message_of([&] { SafetensorsFile::open(empty); }).find(empty + ": header length must be 8 bytes") != std::string::npos);
  CHECK(message_of([&] { SafetensorsFile::open(folder.string()); }).find("must be a regular file, got a directory") != std::string::npos);
  const std::string missing = (folder / "missing").string();
  CHECK(message_of([&] { SafetensorsFile::open(missing); }).find("'" + missing + "' must be readable, got No such file") !=
        std::string::npos);
  try {
    SafetensorsFile::open(missing);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::io_failure);
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("safetensors: mutated files never do worse than an Error") {
  Mutator mutator(two_tensors(), 2);
  int accepted = 0;
  double sum = 0.0;  // touches the data of files that were accepted
  for (int i = 0; i < 20000; ++i) {
    const std::string mutated = mutator.next();
    try {
      const SafetensorsFile file = parse(mutated);
      ++accepted;
      for (const Tensor& tensor : file.tensors()) {
        for (const float x : to_floats(tensor)) sum += x == x ? 1.0 : 0.0;
      }
    } catch (const Error&) {
    }
  }
  CHECK(accepted > 0);
  CHECK(sum > 0.0);
}
