// Dispatch from element type and group size to kernels, and rows as floats.
#include "quorum/cpu/row_kernels.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/support/cache.hpp"
#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

constexpr ElementType kTypes[] = {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::q8_0, ElementType::fp8_e4m3};

// Rows of random elements, NaN between them.
struct Rows {
  int64_t stride;
  test::ElementBlock block;
  const std::byte* pointers[kTileRows];

  Rows(ElementType type, int dim, uint64_t seed) : stride(dim + block_elements(type)), block(type, kTileRows * stride) {
    for (int r = 0; r < kTileRows; ++r) {
      pointers[r] = block.at(r * stride);
      block.set_row(r * stride, test::gaussian_floats(dim, seed * kTileRows + uint64_t(r)).data(), dim);
    }
  }
  double get(int row, int c) const { return block.get(row * stride + c); }
};

}  // namespace

TEST_CASE("kernels of every type and group size up to 16 do all heads") {
  for (const ElementType type : kTypes)
    for (int heads = 1; heads <= kMaxGroupSize; ++heads) {
      const int d = type == ElementType::q8_0 ? 96 : 72, stride = padded_dim(d);
      CAPTURE(std::string(element_name(type)));
      CAPTURE(heads);
      const Rows rows(type, d, uint64_t(heads));
      const RowKernels kernels = row_kernels(type, heads);
      CHECK(kernels.num_heads == heads);
      std::vector<float> queries(size_t(heads * stride), 0.0f), scores(size_t(heads * kTileRows), kNan), out(size_t(heads * stride), 0.0f);
      const auto values = test::gaussian_floats(heads * d, 7);
      for (int g = 0; g < heads; ++g)
        for (int c = 0; c < d; ++c) queries[size_t(g * stride + c)] = values[size_t(g * d + c)];
      const int num_rows = 29;
      const RowTile tile{rows.pointers, rows.pointers, num_rows, num_rows, d};
      kernels.score(tile, {queries.data(), stride}, {scores.data(), kTileRows});
      kernels.accumulate(tile, {scores.data(), kTileRows}, {out.data(), stride});
      // In units of what a sum of n products may be off: (n + 2) * 2^-24 * sum of magnitudes.
      double worst_score = 0.0, worst_sum = 0.0;
      for (int g = 0; g < heads; ++g) {
        for (int r = 0; r < num_rows; ++r) {
          double want = 0.0, size = 0.0;
          for (int c = 0; c < d; ++c) {
            const double product = double(queries[size_t(g * stride + c)]) * rows.get(r, c);
            want += product;
            size += std::fabs(product);
          }
          const double error = std::fabs(want - double(scores[size_t(g * kTileRows + r)]));
          worst_score = test::larger_error(worst_score, error / ((d + 2) * 0x1p-24 * size));
        }
        for (int c = 0; c < d; ++c) {
          double want = 0.0, size = 0.0;
          for (int r = 0; r < num_rows; ++r) {
            const double product = double(scores[size_t(g * kTileRows + r)]) * rows.get(r, c);
            want += product;
            size += std::fabs(product);
          }
          const double error = std::fabs(want - double(out[size_t(g * stride + c)]));
          worst_sum = test::larger_error(worst_sum, error / ((num_rows + 2) * 0x1p-24 * size));
        }
      }
      CHECK(worst_score <= 1.0);
      CHECK(worst_sum <= 1.0);
    }
}

TEST_CASE("rows become floats times a factor, zero in the padding") {
  for (const ElementType type : kTypes)
    for (const int d : {8, 24, 32, 64, 72, 96}) {
      if (d % block_elements(type) != 0) continue;
      CAPTURE(std::string(element_name(type)));
      CAPTURE(d);
      const Rows rows(type, d, 3);
      std::vector<float> out(size_t(padded_dim(d)) + 1, -5.0f);
      load_row(rows.pointers[1], type, d, 0.25f, out.data());
      for (int c = 0; c < d; ++c) CHECK(double(out[size_t(c)]) == 0.25 * rows.get(1, c));
      for (int c = d; c < padded_dim(d); ++c) CHECK(out[size_t(c)] == 0.0f);
      CHECK(out.back() == -5.0f);
    }
}

TEST_CASE("rows need no alignment") {
  std::vector<std::byte> bytes(1 + 4 * 8);
  const float element = 1.5f;
  for (int c = 0; c < 8; ++c) std::memcpy(bytes.data() + 1 + 4 * c, &element, 4);
  float out[16];
  load_row(bytes.data() + 1, ElementType::f32, 8, 2.0f, out);
  for (int c = 0; c < 8; ++c) CHECK(out[c] == 3.0f);
}

TEST_CASE("NaN and infinity pass") {
  test::ElementBlock block(ElementType::bf16, 8);
  for (int64_t i = 0; i < 8; ++i) block.set(i, 1.0f);
  block.set(2, kNan);
  block.set(5, -kInfinity);
  float out[16];
  load_row(block.at(0), ElementType::bf16, 8, 1.0f, out);
  CHECK(std::isnan(out[2]));
  CHECK(out[5] == -kInfinity);
  CHECK(out[7] == 1.0f);
}
