#include "quorum/io/tensor.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "io_test_support.hpp"

using quorum::io::Dtype;
using quorum::io::NonFinite;
using quorum::io::Tensor;
using namespace quorum::test;

namespace {

Tensor tensor_of(const std::string& bytes, Dtype dtype) {
  return {"f.bin", "x", dtype, {int64_t(bytes.size()) / quorum::io::dtype_bytes(dtype)}, as_bytes(bytes).data(), bytes.size()};
}

}  // namespace

TEST_CASE("tensor: names and sizes of the dtypes") {
  const std::pair<const char*, int> expected[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"U16", 2},  {"I16", 2}, {"U32", 4}, {"I32", 4},
                                                  {"U64", 8},  {"I64", 8}, {"F16", 2}, {"BF16", 2}, {"F32", 4}, {"F64", 8}};
  for (int i = 0; i <= int(Dtype::f64); ++i) {
    CHECK(std::string(quorum::io::dtype_name(Dtype(i))) == expected[i].first);
    CHECK(quorum::io::dtype_bytes(Dtype(i)) == expected[i].second);
  }
}

TEST_CASE("tensor: bytes of a shape") {
  using quorum::io::shape_bytes;
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  CHECK(shape_bytes({}, Dtype::f32) == 4);
  CHECK(shape_bytes({3, 5}, Dtype::f16) == 30);
  CHECK(shape_bytes({3, 0}, Dtype::f64) == 0);
  CHECK(shape_bytes({kMax}, Dtype::u8) == kMax);
  CHECK(shape_bytes({kMax}, Dtype::f16) == -1);
  CHECK(shape_bytes({kMax, 0, kMax}, Dtype::u8) == -1);
  CHECK(shape_bytes({-1}, Dtype::u8) == -1);
  CHECK(shape_bytes({0, -1}, Dtype::u8) == -1);
  CHECK(quorum::io::shape_text({2, 3}) == "[2, 3]");
  CHECK(quorum::io::shape_text({}) == "[]");
}

TEST_CASE("tensor: floats at every address") {
  const std::string bytes = "abc" + raw(1.5f) + raw(-2.0f);
  const Tensor tensor{"f.bin", "x", Dtype::f32, {2}, as_bytes(bytes).data() + 3, 8};
  CHECK(to_floats(tensor) == std::vector<float>{1.5f, -2.0f});
  CHECK(quorum::io::load_element<float>(tensor, 1) == -2.0f);
  CHECK(to_floats(tensor_of(raw(uint16_t(0x3e00)), Dtype::f16)) == std::vector<float>{1.5f});
  CHECK(to_floats(tensor_of(raw(uint16_t(0x3fc0)), Dtype::bf16)) == std::vector<float>{1.5f});
}

TEST_CASE("tensor: NaN and infinity are found in every float dtype and named") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(message_of([&] { require_finite(tensor_of(raw(0.0f) + raw(nan), Dtype::f32)); }) ==
        "require_finite: f.bin: tensor 'x', element 1, must be finite, got nan");
  CHECK(message_of([] { require_finite(tensor_of(raw(uint16_t(0xfc00)), Dtype::f16)); }).find("element 0, must be finite, got -inf") !=
        std::string::npos);
  CHECK(message_of([] { to_floats(tensor_of(raw(uint16_t(0x7f80)), Dtype::bf16), NonFinite::reject); }).find("must be finite, got inf") !=
        std::string::npos);
  CHECK(std::isnan(to_floats(tensor_of(raw(nan), Dtype::f32), NonFinite::accept)[0]));
  require_finite(tensor_of(raw(std::numeric_limits<float>::max()) + raw(std::numeric_limits<float>::denorm_min()), Dtype::f32));
}

TEST_CASE("tensor: other dtypes are no floats") {
  CHECK(message_of([] { to_floats(tensor_of(raw(1.0), Dtype::f64)); }) ==
        "to_floats: f.bin: tensor 'x', dtype, must be F32, F16 or BF16, got F64");
  CHECK(message_of([] { require_finite(tensor_of(raw(1), Dtype::i32)); }).find("require_finite: f.bin: tensor 'x', dtype,") == 0);
}
