// Residual codes: where each bit lies, what the arrays take, and what a code says of a score.
#include "quorum/core/residual_code.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

bool lies_at(CodeBit bit, int byte, int shift) { return bit.byte == byte && bit.shift == shift; }

}  // namespace

TEST_CASE("every coordinate of every token has a bit of its own inside the block, for every head_dim") {
  for (int head_dim = 8; head_dim <= 512; head_dim += 8) {
    std::vector<int> uses(size_t(code_block_bytes(head_dim) * 8), 0);
    int outside = 0, shared = 0;
    for (int c = 0; c < head_dim; ++c)
      for (int lane = 0; lane < kCodeBlock; ++lane) {
        const CodeBit bit = code_bit(c, lane);
        if (bit.byte < 0 || bit.byte >= code_block_bytes(head_dim) || bit.shift < 0 || bit.shift > 7)
          ++outside;
        else
          shared += uses[size_t(bit.byte * 8 + bit.shift)]++ > 0;
      }
    CAPTURE(head_dim);
    CHECK(outside == 0);
    CHECK(shared == 0);
    // At whole lines nothing is left over.
    if (head_dim % kCodeLineDim == 0) CHECK(int64_t(head_dim) * kCodeBlock == code_block_bytes(head_dim) * 8);
  }
}

TEST_CASE("documented places: lines of 32 coordinates, four bytes a token, low halves before high ones") {
  CHECK(lies_at(code_bit(0, 0), 0, 0));
  CHECK(lies_at(code_bit(3, 0), 0, 3));
  CHECK(lies_at(code_bit(4, 0), 1, 0));
  CHECK(lies_at(code_bit(15, 0), 3, 3));
  CHECK(lies_at(code_bit(16, 0), 0, 4));
  CHECK(lies_at(code_bit(31, 0), 3, 7));
  CHECK(lies_at(code_bit(0, 1), 4, 0));
  CHECK(lies_at(code_bit(0, 15), 60, 0));
  CHECK(lies_at(code_bit(32, 0), 64, 0));
  CHECK(lies_at(code_bit(37, 2), 64 + 8 + 1, 1));
  CHECK(lies_at(code_bit(54, 7), 64 + 28 + 1, 6));
  CHECK(lies_at(code_bit(511, 15), 1023, 7));
}

TEST_CASE("four coordinates are one half byte, the first of them its lowest bit: an index into a table") {
  int wrong = 0;
  for (int c = 0; c < 512; c += 4)
    for (int lane = 0; lane < kCodeBlock; ++lane) {
      const CodeBit first = code_bit(c, lane);
      wrong += first.shift % 4 != 0;
      for (int i = 1; i < 4; ++i) wrong += !lies_at(code_bit(c + i, lane), first.byte, first.shift + i);
    }
  CHECK(wrong == 0);
}

TEST_CASE("sizes of blocks, codes and tables") {
  const struct {
    int head_dim, lines;
  } cases[] = {{8, 1}, {24, 1}, {32, 1}, {40, 2}, {64, 2}, {72, 3}, {80, 3}, {96, 3}, {128, 4}, {256, 8}, {504, 16}, {512, 16}};
  for (const auto& size : cases) {
    const int head_dim = size.head_dim, lines = size.lines;
    CAPTURE(head_dim);
    CHECK(code_lines(head_dim) == lines);
    CHECK(code_block_bytes(head_dim) == 64 * lines);
    CHECK(code_bytes_per_token(head_dim) == 4 * lines + 2);
    CHECK(code_table_bytes(head_dim) == 128 * lines);
  }
  // A bit a coordinate and an f16 where lines are full.
  for (int head_dim = 32; head_dim <= 512; head_dim += 32) CHECK(code_bytes_per_token(head_dim) == head_dim / 8 + 2);
}

TEST_CASE("blocks of a cluster: as many as its tokens fill, none for none") {
  CHECK(num_code_blocks(0) == 0);
  CHECK(num_code_blocks(1) == 1);
  CHECK(num_code_blocks(15) == 1);
  CHECK(num_code_blocks(16) == 1);
  CHECK(num_code_blocks(17) == 2);
  CHECK(num_code_blocks(32) == 2);
  CHECK(num_code_blocks(33) == 3);
  CHECK(num_code_blocks(65535) == 4096);
  CHECK(num_code_blocks(65536) == 4096);
  CHECK(num_code_blocks(65537) == 4097);
}

TEST_CASE("coded score: the centroid's plus scale times sign dot; a scale of zero leaves the centroid's") {
  CHECK(coded_score(1.0f, 0.5f, -3.0f) == -0.5f);
  CHECK(coded_score(2.0, 0.25, 8.0) == 4.0);
  CHECK(coded_score(-7.25f, 0.0f, 1e30f) == -7.25f);
  CHECK(coded_score(-7.25f, 65504.0f, 0.0f) == -7.25f);
}

TEST_CASE("coded scores of normal residuals are right on average, and take away most of a residual's part of the score") {
  const uint64_t seed = 131;
  CAPTURE(seed);
  test::Random random(seed);
  const int dim = 64, num_tokens = 20000;
  std::vector<double> query(dim);
  for (double& q : query) q = random.gaussian();
  double product = 0.0, coded_square = 0.0, exact_square = 0.0, error_square = 0.0;
  for (int i = 0; i < num_tokens; ++i) {
    const double size = random.uniform(0.5, 2.0);  // residuals of one cluster are not equally long
    double exact = 0.0, sign_dot = 0.0, scale = 0.0;
    for (const double q : query) {
      const double x = size * random.gaussian();
      exact += q * x;
      sign_dot += x > 0.0 ? q : -q;
      scale += std::fabs(x) / dim;
    }
    const double coded = coded_score(0.0, scale, sign_dot);
    product += coded * exact;
    coded_square += coded * coded;
    exact_square += exact * exact;
    error_square += (exact - coded) * (exact - coded);
  }
  // Slope of exact on coded scores. A sign tells 2 / pi of a normal coordinate's square, so the slope's standard deviation is about
  // sqrt((1 - 2 / pi) / (2 / pi) / 20000) = 0.0053.
  CHECK(test::near(product / coded_square, 1.0, 0.025));
  CHECK(test::near(error_square / exact_square, 1.0 - 2.0 / 3.141592653589793, 0.02));
}
