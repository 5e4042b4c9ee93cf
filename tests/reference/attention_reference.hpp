// What attention is, written down naively in double precision. Shares nothing with the library, so that an error there cannot hide here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace reference {

// A table of doubles, row by row.
struct Matrix {
  int num_cols = 0;
  std::vector<double> data;

  Matrix() = default;
  Matrix(int rows, int cols) : num_cols(cols), data(std::size_t(rows) * std::size_t(cols), 0.0) {}
  double* row(int i) { return data.data() + std::size_t(i) * std::size_t(num_cols); }
  const double* row(int i) const { return data.data() + std::size_t(i) * std::size_t(num_cols); }
  int num_rows() const { return num_cols == 0 ? 0 : int(data.size() / std::size_t(num_cols)); }
};

// Value of an IEEE 754 binary number with the given field widths, by its definition.
inline double decode_binary(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const std::uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const std::uint32_t exponent = (bits >> mantissa_bits) & ((1u << exponent_bits) - 1);
  const double sign = (bits >> (mantissa_bits + exponent_bits)) != 0 ? -1.0 : 1.0;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (exponent == (1u << exponent_bits) - 1)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(double(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(double(mantissa + (1u << mantissa_bits)), int(exponent) - bias - mantissa_bits);
}
inline double decode_f16(std::uint16_t bits) { return decode_binary(bits, 5, 10); }
inline double decode_bf16(std::uint16_t bits) { return decode_binary(bits, 8, 7); }
// OCP 8-bit E4M3: bias 7, no infinities, exponent and mantissa of all ones are NaN.
inline double decode_e4m3(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude = exponent == 0 ? std::ldexp(double(mantissa), -9) : std::ldexp(double(8 + mantissa), exponent - 10);
  return bits >= 128 ? -magnitude : magnitude;
}

enum class Format { f32, f16, bf16, q8_0, fp8_e4m3 };

// Element i of an array that lies anywhere in memory.
inline double element(const void* array, Format format, std::int64_t i) {
  const char* bytes = static_cast<const char*>(array);
  if (format == Format::f32) {
    float x;
    std::memcpy(&x, bytes + 4 * i, 4);
    return double(x);
  }
  if (format == Format::q8_0) {  // of 34 bytes 2 are the scale of the 32 that follow
    const char* block = bytes + i / 32 * 34;
    std::uint16_t scale;
    std::memcpy(&scale, block, 2);
    return decode_f16(scale) * double(static_cast<signed char>(block[2 + i % 32]));
  }
  if (format == Format::fp8_e4m3) return decode_e4m3(std::uint8_t(bytes[i]));
  std::uint16_t x;
  std::memcpy(&x, bytes + 2 * i, 2);
  return format == Format::f16 ? decode_f16(x) : decode_bf16(x);
}

// Scores scale * (query . key) of every key.
inline std::vector<double> scores(const double* query, const Matrix& keys, double scale) {
  std::vector<double> out;
  for (int i = 0; i < keys.num_rows(); ++i) {
    double sum = 0.0;
    for (int c = 0; c < keys.num_cols; ++c) sum += query[c] * keys.row(i)[c];
    out.push_back(scale * sum);
  }
  return out;
}

// Log of the sum of exp(score) over a list of tokens; -inf for an empty list or if all are -inf. NaN in, NaN out.
inline double lse(const std::vector<double>& scores, const std::vector<int>& tokens) {
  double max = -std::numeric_limits<double>::infinity();
  for (const int i : tokens) {
    if (std::isnan(scores[std::size_t(i)])) return scores[std::size_t(i)];
    if (scores[std::size_t(i)] > max) max = scores[std::size_t(i)];
  }
  if (std::isinf(max) && max < 0.0) return max;
  double sum = 0.0;
  for (const int i : tokens) sum += std::exp(scores[std::size_t(i)] - max);  // a score of +inf makes this NaN, as in the library
  return max + std::log(sum);
}

inline std::vector<int> all_tokens(int count) {
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(i);
  return tokens;
}

struct Attention {
  std::vector<double> output;  // zeros if nothing was attended
  double lse = -std::numeric_limits<double>::infinity();
};

// Attention of one query over a list of tokens.
inline Attention attention(const double* query, const Matrix& keys, const Matrix& values, double scale, const std::vector<int>& tokens) {
  Attention out;
  out.output.assign(std::size_t(values.num_cols), 0.0);
  const std::vector<double> score = scores(query, keys, scale);
  out.lse = lse(score, tokens);
  if (std::isinf(out.lse) && out.lse < 0.0) return out;
  for (const int i : tokens) {
    const double weight = std::exp(score[std::size_t(i)] - out.lse);
    for (int c = 0; c < values.num_cols; ++c) out.output[std::size_t(c)] += weight * values.row(i)[c];
  }
  return out;
}
inline Attention attention(const double* query, const Matrix& keys, const Matrix& values, double scale) {
  return attention(query, keys, values, scale, all_tokens(keys.num_rows()));
}

// Tokens that the row at place `row` of num_rows sees. Causal: the last row stands at the last token, the one before it a token earlier.
// window > 0: the row's own token and the window - 1 before it. mask: empty, or whether each token may be seen at all.
inline std::vector<int> visible_tokens(int num_tokens, int num_rows, int row, bool causal, int window, const std::vector<bool>& mask) {
  std::vector<int> tokens;
  const int own = causal ? num_tokens - 1 - (num_rows - 1 - row) : num_tokens - 1;
  for (int i = 0; i < num_tokens; ++i) {
    if (i > own) continue;
    if (window > 0 && own - i >= window) continue;
    if (!mask.empty() && !mask[std::size_t(i)]) continue;
    tokens.push_back(i);
  }
  return tokens;
}

// A layer that bounds its scores and has a sink: softcap > 0: cap * tanh(score / cap); sink: a logit without a value, -inf for none.
struct Layer {
  double scale = 1.0;
  double softcap = 0.0;
  double sink = -std::numeric_limits<double>::infinity();
};
inline std::vector<double> scores(const double* query, const Matrix& keys, const Layer& layer) {
  std::vector<double> out = scores(query, keys, layer.scale);
  for (double& score : out)
    if (layer.softcap > 0.0) score = layer.softcap * std::tanh(score / layer.softcap);
  return out;
}
// Attention over a list of tokens by that layer.
inline Attention attention(const double* query, const Matrix& keys, const Matrix& values, const Layer& layer,
                           const std::vector<int>& tokens) {
  Attention out;
  out.output.assign(std::size_t(values.num_cols), 0.0);
  const std::vector<double> score = scores(query, keys, layer);
  double max = layer.sink;
  for (const int i : tokens) max = score[std::size_t(i)] > max ? score[std::size_t(i)] : max;
  if (std::isinf(max) && max < 0.0) return out;
  double sum = std::exp(layer.sink - max);
  for (const int i : tokens) sum += std::exp(score[std::size_t(i)] - max);
  for (const int i : tokens)
    for (int c = 0; c < values.num_cols; ++c) out.output[std::size_t(c)] += std::exp(score[std::size_t(i)] - max) / sum * values.row(i)[c];
  out.lse = max + std::log(sum);
  return out;
}

// Share of the softmax weight that a list of tokens holds; 1 if there are no tokens at all.
inline double attained_ratio(const double* query, const Matrix& keys, double scale, const std::vector<int>& tokens) {
  if (keys.num_rows() == 0) return 1.0;
  const std::vector<double> score = scores(query, keys, scale);
  return std::exp(lse(score, tokens) - lse(score, all_tokens(keys.num_rows())));
}

}  // namespace reference
