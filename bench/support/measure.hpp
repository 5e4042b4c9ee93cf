// What the benchmarks and the comparisons measure by.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace quorum::bench {

template <class Work>
double seconds_of(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  if (values.empty()) throw std::logic_error("median of nothing");
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Mean over heads of |a - b| / |b|, both [heads][head_dim]; NaN if anything is.
inline double mean_error(int heads, int head_dim, const float* a, const float* b) {
  double sum = 0.0;
  for (int head = 0; head < heads; ++head) {
    double difference = 0.0, norm = 0.0;
    for (int c = head * head_dim; c < (head + 1) * head_dim; ++c) {
      difference += std::pow(double(a[c]) - double(b[c]), 2);
      norm += std::pow(double(b[c]), 2);
    }
    sum += std::sqrt(difference / norm);
  }
  return sum / heads;
}

}  // namespace quorum::bench
