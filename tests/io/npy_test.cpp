#include "quorum/io/npy.hpp"

#include <doctest/doctest.h>

#include "io_test_support.hpp"

using quorum::Error;
using quorum::io::Dtype;
using quorum::io::NpyFile;
using namespace quorum::test;

namespace {

std::string npy_bytes(const std::string& header, const std::string& data, int version = 1) {
  const std::string length = version == 1 ? raw(uint16_t(header.size())) : raw(uint32_t(header.size()));
  return std::string("\x93NUMPY") + char(version) + '\0' + length + header + data;
}

std::string header(const std::string& descr, const std::string& order, const std::string& shape) {
  return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

NpyFile parse(const std::string& bytes) { return NpyFile::parse(as_bytes(bytes), "a.npy"); }

std::string failure(const std::string& text, size_t data_bytes = 0) {
  return message_of([&] { parse(npy_bytes(text, std::string(data_bytes, '\0'))); });
}

}  // namespace

TEST_CASE("npy: versions 1 to 3, every dtype") {
  struct Case {
    const char* descr;
    Dtype dtype;
    int bytes;
  };
  const Case cases[] = {{"'<f2'", Dtype::f16, 2}, {"'<f4'", Dtype::f32, 4}, {"'<f8'", Dtype::f64, 8},
                        {"'<i4'", Dtype::i32, 4}, {"'<i8'", Dtype::i64, 8}, {"\"|u1\"", Dtype::u8, 1}};
  for (const Case& c : cases) {
    for (int version = 1; version <= 3; ++version) {
      const NpyFile file = parse(npy_bytes(header(c.descr, "False", "(2, 3)"), std::string(size_t(6 * c.bytes), '\1'), version));
      CHECK(file.tensor().dtype == c.dtype);
      CHECK(file.tensor().shape == std::vector<int64_t>{2, 3});
      CHECK(file.tensor().num_elements() == 6);
      CHECK(file.tensor().file == "a.npy");
    }
  }
}

TEST_CASE("npy: scalars, vectors, empty arrays and values") {
  CHECK(parse(npy_bytes(header("'<f4'", "False", "()"), raw(2.5f))).tensor().shape.empty());
  const NpyFile vector = parse(npy_bytes(header("'<f4'", "False", "(2,)"), raw(2.5f) + raw(-1.0f)));
  CHECK(to_floats(vector.tensor()) == std::vector<float>{2.5f, -1.0f});
  CHECK(parse(npy_bytes(header("'<f4'", "False", "(0, 7)"), "")).tensor().num_elements() == 0);
  CHECK(parse(npy_bytes("{'shape':(1,),'fortran_order':False,'descr':'|u1'}", "x")).tensor().bytes == 1);
}

TEST_CASE("npy: a broken prefix names the file and the field") {
  const std::string good = npy_bytes(header("'<f4'", "False", "(1,)"), raw(1.0f));
  CHECK(message_of([&] { parse(good.substr(0, 7)); }) == "NpyFile: a.npy: magic must be \\x93NUMPY, got something else");
  CHECK(message_of([&] { parse("PK" + good.substr(2)); }).find("a.npy: magic must be") != std::string::npos);
  CHECK(message_of([&] { parse(good.substr(0, 9)); }) == "NpyFile: a.npy: header length must be present, got the end of the file");
  CHECK(message_of([&] { parse(good.substr(0, 30)); }).find("a.npy: header length must be within the file's 30 bytes, got ") !=
        std::string::npos);
  CHECK(message_of([] { parse(npy_bytes("{}", "", 4)); }) == "NpyFile: a.npy: version must be 1.0, 2.0 or 3.0, got 4.0");
  const std::string huge = std::string("\x93NUMPY\x02", 7) + '\0' + raw(uint32_t(1) << 31) + "{}";
  CHECK(message_of([&] { parse(huge); }) == "NpyFile: a.npy: header length must be at most 1048576, got 2147483648");
}

TEST_CASE("npy: a broken header names the file and the field") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "header, byte 0, must be '{', got the end"},
      {"{'descr': '<f4', 'fortran_order': False}", "header, shape, must be present, got nothing"},
      {"{'fortran_order': False, 'shape': ()}", "header, descr, must be present, got nothing"},
      {"{'descr': '<f4', 'shape': ()}", "header, fortran_order, must be present, got nothing"},
      {"{'other': 1}", "only the keys descr, fortran_order and shape, got 'other'"},
      {"{'descr': '<f4', 'descr': '<f4'}", "distinct keys, got 'descr' twice"},
      {"{'descr' '<f4'}", "':' after a key"},
      {"{'descr': '<f4' 'shape': ()}", "',' or '}'"},
      {"{descr: '<f4'}", "a key in quotes"},
      {"{'descr", "a key in quotes"},
      {header("'>f4'", "False", "(1,)"), "header, descr, must be one of <f2 <f4 <f8 <i4 <i8 |u1 (little-endian), got '>f4'"},
      {header("'|O'", "False", "(1,)"), "got '|O'"},
      {header("[('x', '<f4')]", "False", "(1,)"), "a plain dtype such as '<f4'"},
      {header("'<f4'", "True", "(1,)"), "header, fortran_order, must be False: rows must be contiguous"},
      {header("'<f4'", "0", "(1,)"), "True or False"},
      {header("'<f4'", "False", "[1]"), "'(' of a tuple"},
      {header("'<f4'", "False", "(1)"), "',' in a tuple of one"},
      {header("'<f4'", "False", "(1 2)"), "',' in a tuple of one"},
      {header("'<f4'", "False", "(1, 2 3)"), "',' or ')'"},
      {header("'<f4'", "False", "(-1,)"), "a non-negative integer of 64 bits"},
      {header("'<f4'", "False", "(99999999999999999999,)"), "a non-negative integer of 64 bits"},
      {header("'<f4'", "False", "(4294967296, 4294967296)"), "header, shape, must be such that its bytes fit into 63 bits"},
      {header("'<f4'", "False", "(1,)") + "x", "only white space after '}'"},
  };
  for (const auto& entry : cases) {  // no structured binding: clang 14 cannot capture one
    const std::string &text = entry.first, &rule = entry.second;
    CAPTURE(text);
    const std::string message = failure(text, 4);
    CHECK_MESSAGE(message.find("NpyFile: a.npy: header") == 0, message);
    CHECK_MESSAGE(message.find(rule) != std::string::npos, message);
  }
}

TEST_CASE("npy: data shorter or longer than the shape") {
  CHECK(failure(header("'<f4'", "False", "(2,)"), 7) == "NpyFile: a.npy: data must be 8 bytes for shape [2], got 7 bytes");
  CHECK(failure(header("'<f4'", "False", "(2,)"), 9) == "NpyFile: a.npy: data must be 8 bytes for shape [2], got 9 bytes");
  CHECK(message_of([] { NpyFile::open("/nonexistent/a.npy"); }).find("'/nonexistent/a.npy' must be readable") != std::string::npos);
}

TEST_CASE("npy: mutated files never do worse than an Error") {
  for (int version = 1; version <= 2; ++version) {
    Mutator mutator(npy_bytes(header("'<f4'", "False", "(2, 1)"), raw(1.0f) + raw(2.0f), version), 3);
    for (int i = 0; i < 20000; ++i) {
      const std::string mutated = mutator.next();
      try {
        const NpyFile file = parse(mutated);
        if (file.tensor().dtype == Dtype::f32 || file.tensor().dtype == Dtype::f16) to_floats(file.tensor());
      } catch (const Error&) {
      }
    }
  }
}
