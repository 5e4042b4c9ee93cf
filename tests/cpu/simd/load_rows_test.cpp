// Elements of rows of every type as vectors.
#include "quorum/cpu/simd/load_rows.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/cache.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using simd::kVectorSize;
using simd::RowChunk;

namespace {

// Number of elements that vectors of `Count` at a time, single chunks and partial loads get wrong.
template <class T, int Count>
int wrong_elements(int head_dim) {
  test::ElementBlock block(ElementTypeOf<T>::value, 3 * head_dim);
  block.set_row(head_dim, test::gaussian_floats(head_dim, uint64_t(head_dim + Count)).data(), head_dim);
  const std::byte* row = block.at(head_dim);
  int wrong = 0;
  const auto compare = [&](simd::Vector v, int c, int count) {
    float lanes[kVectorSize];
    simd::store(lanes, v);
    for (int i = 0; i < count; ++i) wrong += !(double(lanes[i]) == block.get(head_dim + c + i));
  };
  for (int c = 0; c + Count * kVectorSize <= head_dim; c += Count * kVectorSize) {
    simd::Vector vectors[Count];
    simd::load_vectors<T>(row, c, 1.0f, vectors);
    for (int j = 0; j < Count; ++j) compare(vectors[j], c + j * kVectorSize, kVectorSize);
  }
  constexpr int kStep = RowChunk<T>::kVectors * kVectorSize;
  for (int c = 0; c + kStep <= head_dim; c += kStep) {
    const RowChunk<T> chunk(row, c, 1.0f);
    for (int v = 0; v < RowChunk<T>::kVectors; ++v) compare(chunk.load(v), c + v * kVectorSize, kVectorSize);
  }
  if constexpr (RowChunk<T>::kAnyDim) compare(RowChunk<T>(row, 0, 1.0f).load_first(kVectorSize - 1), 0, kVectorSize - 1);
  return wrong;
}

}  // namespace

TEST_CASE_TEMPLATE("vectors hold the elements exactly", T, float, f16, bf16, q8_0, fp8_e4m3) {
  for (const int head_dim : {64, 96, 128, 256}) {
    CAPTURE(head_dim);
    CHECK(wrong_elements<T, 1>(head_dim) == 0);
    CHECK(wrong_elements<T, 2>(head_dim) == 0);
    CHECK(wrong_elements<T, 4>(head_dim) == 0);
  }
}

TEST_CASE("q8_0: every scale and every integer, at any address") {
  std::vector<std::byte> bytes(sizeof(q8_0) + 1);
  int wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    q8_0 block{{uint16_t(bits)}, {}};
    for (int i = 0; i < q8_0::kElements; ++i) block.q[i] = int8_t(-128 + (i * 8 + int(bits)) % 256);
    std::memcpy(bytes.data() + 1, &block, sizeof(block));
    const RowChunk<q8_0> chunk(bytes.data() + 1, 0, 1.0f);
    for (int v = 0; v < RowChunk<q8_0>::kVectors; ++v) {
      float lanes[kVectorSize];
      simd::store(lanes, chunk.load(v));
      for (int i = 0; i < kVectorSize; ++i) {
        const double want = reference::decode_f16(uint16_t(bits)) * double(block.q[v * kVectorSize + i]), got = double(lanes[i]);
        wrong += std::isnan(want) ? !std::isnan(got) : !(got == want);
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("fp8_e4m3: every pattern times a scale, at any address, in whole and in part") {
  std::vector<std::byte> bytes(256 + 2 * kVectorSize);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(i);
  int wrong = 0;
  for (const float scale : {1.0f, 0.3f, -2.0f})
    for (int first = 0; first < 256; ++first) {
      const RowChunk<fp8_e4m3> chunk(bytes.data() + first, 0, scale);
      float whole[kVectorSize], part[kVectorSize];
      simd::store(whole, chunk.load(0));
      simd::store(part, chunk.load_first(kVectorSize - 1));
      for (int i = 0; i < kVectorSize; ++i) {
        const double element = reference::decode_e4m3(uint8_t(first + i));
        const float want = scale * float(element);
        const auto differs = [&](float got) { return std::isnan(element) ? !std::isnan(got) : !(got == want); };
        wrong += differs(whole[i]) + (i + 1 < kVectorSize ? differs(part[i]) : part[i] != 0.0f);
      }
    }
  CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("prefetches of whole rows may be asked for from anywhere", T, float, f16, bf16, q8_0, fp8_e4m3) {
  const std::vector<std::byte> bytes(4096);
  for (int start = 0; start < 64; start += 2) {
    const std::byte* rows[2] = {bytes.data() + start, bytes.data() + 2048 + start};
    for (int c = 0; c < 64; c += kVectorSize) simd::prefetch_elements<T, kVectorSize>(rows, c);
    simd::prefetch_elements<T, 64>(rows, 0);
  }
}
