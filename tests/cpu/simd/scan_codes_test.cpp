// Tables and scanning of residual codes: entries to half a step, exact integers on every instruction set, and both against plain sums.
#include "quorum/cpu/simd/scan_codes.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "tests/support/near.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

constexpr int kGap = 48;  // bytes after the tables of a head, so that a wrong stride shows
constexpr int32_t kSentinel = -12345;

// Rounding of a product with 1 / step, 127 * 2^-23, on top of half a step.
constexpr double kHalfStep = 0.5 + 1e-4;

// Sum of the four coordinates of a part with the signs of a pattern: bit i set is +.
double signed_sum(const std::vector<float>& query, size_t first, int pattern) {
  double sum = 0.0;
  for (size_t i = 0; i < 4; ++i) sum += (pattern >> i & 1) != 0 ? double(query[first + i]) : -double(query[first + i]);
  return sum;
}

// Largest error of a head's table entries in steps; infinite if an entry beyond head_dim is not the zero point, a pattern and its opposite
// do not cancel, the step is not 1/127 of the largest sum, or a byte beyond the tables was written.
double table_error(const std::vector<float>& query) {
  const double infinite = double(kInfinity);
  const int dim = int(query.size()), bytes = code_table_bytes(dim);
  std::vector<uint8_t> tables(size_t(bytes + kGap), 77);
  const double step = double(simd::fill_code_tables(query.data(), dim, tables.data()));
  double largest = 0.0, worst = 0.0;
  for (size_t c = 0; c < query.size(); c += 4)
    for (int pattern = 0; pattern < 16; ++pattern) largest = std::max(largest, signed_sum(query, c, pattern));
  if (!test::near(step, largest / 127.0, 1e-6 * step)) return infinite;
  for (int part = 0; part < bytes / 16; ++part)
    for (int pattern = 0; pattern < 16; ++pattern) {
      const int entry = int(tables[size_t(part * 16 + pattern)]) - kCodeTableZero;
      const double want = part * 4 < dim ? signed_sum(query, size_t(part * 4), pattern) / step : 0.0;
      if (part * 4 >= dim && entry != 0) return infinite;
      if (entry + int(tables[size_t(part * 16 + 15 - pattern)]) != kCodeTableZero) return infinite;
      worst = test::larger_error(worst, std::fabs(entry - want));
    }
  for (int i = bytes; i < bytes + kGap; ++i)
    if (tables[size_t(i)] != 77) return infinite;
  return worst;
}

// Number of wrong integers of a block for G heads; code(lane) and entry(pattern) give the bytes. Whole lines count, with what lies in them
// beyond head_dim: the tables decide.
template <int G, class Code, class Entry>
int wrong_sums(int head_dim, Code&& code, Entry&& entry) {
  const int lines = code_lines(head_dim), stride = code_table_bytes(head_dim) + kGap;
  std::vector<uint8_t> codes(size_t(code_block_bytes(head_dim) + 1)), tables(size_t(G * stride + 1), 200);
  for (size_t i = 1; i < codes.size(); ++i) codes[i] = code(int((i - 1) % kCodeLineBytes / 4));
  for (int g = 0; g < G; ++g)
    for (int i = 0; i < code_table_bytes(head_dim); ++i) tables[size_t(g * stride + i + 1)] = entry(i % kCodeTableEntries);
  const uint8_t *block = codes.data() + 1, *own = tables.data() + 1;  // nothing is aligned
  std::vector<int32_t> sums(size_t(G * 16 + 1), kSentinel);
  simd::scan_code_block<G>(block, lines, own, stride, sums.data(), block);
  int wrong = sums.back() != kSentinel;
  for (int g = 0; g < G; ++g)
    for (int lane = 0; lane < kCodeBlock; ++lane) {
      int32_t want = 0;
      for (int c = 0; c < lines * kCodeLineDim; c += 4) {
        int pattern = 0;
        for (int i = 0; i < 4; ++i) pattern |= (block[code_bit(c + i, lane).byte] >> code_bit(c + i, lane).shift & 1) << i;
        want += own[g * stride + c / 4 * kCodeTableEntries + pattern];
      }
      wrong += sums[size_t(g * 16 + lane)] != want;
    }
  return wrong;
}

template <class Code, class Entry>
int wrong_for_all_groups(int head_dim, Code&& code, Entry&& entry) {
  return wrong_sums<1>(head_dim, code, entry) + wrong_sums<2>(head_dim, code, entry) + wrong_sums<3>(head_dim, code, entry) +
         wrong_sums<4>(head_dim, code, entry);
}

// Random residuals of one block, and random queries of four heads.
struct Block {
  int head_dim;
  std::vector<float> residuals;  // [16][head_dim]
  std::vector<uint8_t> codes;
  std::vector<std::vector<float>> queries;

  Block(int dim, uint64_t seed) : head_dim(dim), residuals(test::gaussian_floats(16 * dim, seed)), codes(size_t(code_block_bytes(dim)), 0) {
    for (int lane = 0; lane < kCodeBlock; ++lane)
      for (int c = 0; c < dim; ++c) {
        const CodeBit bit = code_bit(c, lane);
        if (residual(lane, c) > 0.0f) codes[size_t(bit.byte)] = uint8_t(codes[size_t(bit.byte)] | 1 << bit.shift);
      }
    for (uint64_t g = 0; g < 4; ++g) queries.push_back(test::gaussian_floats(dim, seed + 1 + g, float(g + 1)));
  }
  float residual(int lane, int c) const { return residuals[size_t(lane * head_dim + c)]; }
  // Dot product of a token's signs with a query whose coordinate c is taken from c ^ turned.
  double sign_dot(const std::vector<float>& query, int lane, int turned = 0) const {
    double sum = 0.0;
    for (int c = 0; c < head_dim; ++c) sum += double(residual(lane, c) > 0.0f ? 1 : -1) * double(query[size_t(c ^ turned)]);
    return sum;
  }
};

// What tables and scanning together make of a block: sign dots, and the value of a step of each head.
struct Scanned {
  double dots[4][16];
  double step[4];

  explicit Scanned(const Block& block) {
    const int dim = block.head_dim, bytes = code_table_bytes(dim);
    std::vector<uint8_t> tables(size_t(4 * bytes));
    for (int g = 0; g < 4; ++g) step[g] = double(simd::fill_code_tables(block.queries[size_t(g)].data(), dim, tables.data() + g * bytes));
    int32_t sums[4 * 16];
    simd::scan_code_block<4>(block.codes.data(), code_lines(dim), tables.data(), bytes, sums, block.codes.data());
    for (int g = 0; g < 4; ++g)
      for (int lane = 0; lane < 16; ++lane) dots[g][lane] = step[g] * (sums[g * 16 + lane] - kCodeTableZero * (bytes / kCodeTableEntries));
  }
};

}  // namespace

TEST_CASE("tables: every entry within half a step of its sum, the zero point beyond head_dim, all head_dims") {
  const uint64_t seed = 151;
  CAPTURE(seed);
  for (int head_dim = 8; head_dim <= 512; head_dim += 8) {
    CAPTURE(head_dim);
    for (const float size : {1e-6f, 1.0f, 1e6f}) CHECK(table_error(test::gaussian_floats(head_dim, seed, size)) <= kHalfStep);
    auto one_large = test::gaussian_floats(head_dim, seed + 1);
    one_large[size_t(head_dim - 1)] = -1000.0f;
    CHECK(table_error(one_large) <= kHalfStep);
  }
}

TEST_CASE("tables by hand: the first coordinate is the lowest bit of a pattern, set means plus") {
  const std::vector<float> query{64.0f, 32.0f, 16.0f, 15.0f, 0.0f, 0.0f, 0.0f, -8.0f};  // the largest sum is 127
  uint8_t tables[128];
  CHECK(simd::fill_code_tables(query.data(), 8, tables) == 1.0f);
  CHECK(tables[0b0000] == 128 - 127);
  CHECK(tables[0b1111] == 128 + 127);
  CHECK(tables[0b0001] == 128 + 64 - 32 - 16 - 15);
  CHECK(tables[0b0010] == 128 - 64 + 32 - 16 - 15);
  CHECK(tables[0b0100] == 128 - 64 - 32 + 16 - 15);
  CHECK(tables[0b1000] == 128 - 64 - 32 - 16 + 15);
  CHECK(tables[16 + 0b0111] == 128 + 8);
  CHECK(tables[16 + 0b1000] == 128 - 8);
}

TEST_CASE("tables of a query of zeros, or all but: the zero point throughout, and a step that can be divided by") {
  for (const float element : {0.0f, 1e-30f}) {
    const std::vector<float> query(72, element);
    std::vector<uint8_t> tables(size_t(code_table_bytes(72)), 77);
    const float step = simd::fill_code_tables(query.data(), 72, tables.data());
    CHECK(step > 0.0f);
    CHECK(std::isfinite(1.0f / step));
    CHECK(std::count(tables.begin(), tables.end(), uint8_t(kCodeTableZero)) == code_table_bytes(72));
  }
}

TEST_CASE("random codes and tables, all head_dims: exact integers") {
  const uint64_t seed = 152;
  CAPTURE(seed);
  test::Random random(seed);
  for (int head_dim = 8; head_dim <= 512; head_dim += 8) {
    CAPTURE(head_dim);
    const auto byte = [&](int) { return uint8_t(random.below(256)); };
    CHECK(wrong_for_all_groups(head_dim, byte, byte) == 0);
  }
}

TEST_CASE("extremes neither saturate nor carry from one token into another") {
  for (const int entry : {0, 1, 127, 128, 255})
    for (const int code : {0x00, 0xff, 0x0f, 0xf0}) {
      CAPTURE(entry);
      CAPTURE(code);
      CHECK(wrong_for_all_groups(
                512, [&](int) { return uint8_t(code); }, [&](int) { return uint8_t(entry); }) == 0);
    }
  // Tokens with the largest sum beside tokens with none.
  for (int period = 1; period <= 8; period *= 2)
    for (const int phase : {0, 1})
      for (const int high : {0xff, 0x0f, 0xf0}) {
        CAPTURE(period);
        CAPTURE(phase);
        CHECK(wrong_for_all_groups(
                  512, [&](int lane) { return uint8_t(lane / period % 2 == phase ? high : 0); },
                  [](int pattern) { return uint8_t(pattern == 0 ? 0 : 255); }) == 0);
      }
}

TEST_CASE("codes and tables give the dot product of query and signs within head_dim / 8 steps, typically far closer") {
  const uint64_t seed = 153;
  CAPTURE(seed);
  for (int head_dim = 8; head_dim <= 512; head_dim += 8) {
    double worst = 0.0, square = 0.0;  // in steps
    for (uint64_t i = 0; i < 4; ++i) {
      const Block block(head_dim, seed + 10 * i + 1000 * uint64_t(head_dim));
      const Scanned scanned(block);
      for (int g = 0; g < 4; ++g)
        for (int lane = 0; lane < 16; ++lane) {
          const double error = std::fabs(scanned.dots[g][lane] - block.sign_dot(block.queries[size_t(g)], lane)) / scanned.step[g];
          worst = test::larger_error(worst, error);
          square += error * error / (4 * 4 * 16);
        }
    }
    CAPTURE(head_dim);
    const double bound = head_dim / 4 * kHalfStep;
    CHECK(worst <= bound);
    // Rounding errors of head_dim / 4 entries are nearly independent, each 1 / sqrt(12) = 0.29 steps.
    CHECK(std::sqrt(square) <= 0.4 * std::sqrt(head_dim / 4.0));
    if (head_dim >= 64) CHECK(std::sqrt(square) <= 0.25 * bound);
  }
}

TEST_CASE("a wrong order of the coordinates would show: within a half byte, between bytes, halves, and lines") {
  for (const int head_dim : {64, 128, 256, 512}) {
    const Block block(head_dim, 154);
    const Scanned scanned(block);
    for (const int turned : {1, 2, 4, 8, 16, 32}) {
      CAPTURE(head_dim);
      CAPTURE(turned);
      for (int g = 0; g < 4; ++g) {
        double square = 0.0;
        for (int lane = 0; lane < 16; ++lane)
          square += std::pow(scanned.dots[g][lane] - block.sign_dot(block.queries[size_t(g)], lane, turned), 2) / 16;
        CHECK(std::sqrt(square) > 1.5 * head_dim / 8 * scanned.step[g]);
      }
    }
  }
}
