// Comparisons in which a NaN always fails, unless a NaN is what is wanted.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace quorum::test {

// |a - b| <= tolerance; equal infinities are near, NaN is near nothing.
inline bool near(double a, double b, double tolerance) { return a == b || std::fabs(a - b) <= tolerance; }

// The larger of two errors; NaN counts as infinite, where std::max would lose it.
inline double larger_error(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<double>::infinity();
  return a > b ? a : b;
}

// Largest |got - want|. Equal infinities and a NaN where a NaN is wanted count as 0, any other NaN as infinite.
template <class Got, class Want>
double largest_difference(const Got* got, const Want* want, int64_t count) {
  double largest = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const double a = double(got[i]), b = double(want[i]);
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    largest = larger_error(largest, std::fabs(a - b));
  }
  return largest;
}

// |got - want| / |want| as vectors; infinite if got holds a NaN.
template <class Got, class Want>
double relative_error(const Got* got, const Want* want, int64_t count) {
  double error = 0.0, norm = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    error += (double(got[i]) - double(want[i])) * (double(got[i]) - double(want[i]));
    norm += double(want[i]) * double(want[i]);
  }
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : std::sqrt(error / norm);
}
inline double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  return relative_error(got.data(), want.data(), int64_t(want.size()));
}

// Rounding of attention in single precision, for values of about unit size.
//
// A score is a sum of head_dim products in at least 4 interleaved chains: error at most 2^-24 * head_dim / 4 * sum |q k|, in practice
// its square root; `score_size` bounds sum |q k| * sm_scale. The weights' relative error is that plus exp's 4e-7; the sums over tokens
// add about 2^-24 * sqrt(num_tokens). Values reach 4, and numerator and denominator both err: factor 8.
inline double attention_tolerance(int head_dim, int num_tokens, double score_size) {
  return 8.0 * (0x1p-24 * std::sqrt(head_dim / 4.0) * score_size + 4e-7 + 0x1p-24 * std::sqrt(double(num_tokens)));
}

}  // namespace quorum::test
