// Counter-based random numbers.
#include "quorum/core/random.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <set>
#include <vector>

using namespace quorum;

TEST_CASE("values depend on their key alone and are known at compile time") {
  static_assert(mix_bits(0) == 0xe220a8397b1dcdafull);  // first output of SplitMix64 seeded with 0
  static_assert(uniform_unit(1, 2) == uniform_unit(1, 2));
  static_assert(uniform_unit(1, 2) != uniform_unit(2, 1));
}

TEST_CASE("uniform in [0, 1), by chi squared over 64 bins, for several streams") {
  for (const uint64_t stream : {uint64_t(0), uint64_t(1), uint64_t(2), uint64_t(1) << 32, ~uint64_t(0)}) {
    CAPTURE(stream);
    constexpr int kBins = 64, kDraws = 64000;
    std::vector<int> bins(kBins, 0);
    bool in_range = true;
    double sum = 0.0;
    for (int i = 0; i < kDraws; ++i) {
      const float x = uniform_unit(stream, uint64_t(i));
      in_range = in_range && x >= 0.0f && x < 1.0f;
      ++bins[size_t(x * kBins)];
      sum += double(x);
    }
    CHECK(in_range);
    double chi_squared = 0.0;
    for (const int n : bins) chi_squared += double(n - kDraws / kBins) * (n - kDraws / kBins) / (kDraws / kBins);
    CHECK(chi_squared < 63.0 + 5.0 * std::sqrt(2.0 * 63.0));  // mean and five standard deviations of chi squared with 63 degrees
    CHECK(std::fabs(sum / kDraws - 0.5) < 5.0 * std::sqrt(1.0 / 12.0 / kDraws));
  }
}

TEST_CASE("neighbouring streams and counters are uncorrelated") {
  constexpr int kDraws = 50000;
  double across_counters = 0.0, across_streams = 0.0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = double(uniform_unit(7, uint64_t(i))) - 0.5;
    across_counters += x * (double(uniform_unit(7, uint64_t(i) + 1)) - 0.5);
    across_streams += x * (double(uniform_unit(8, uint64_t(i))) - 0.5);
  }
  const double five_sigma = 5.0 / 12.0 / std::sqrt(double(kDraws));
  CHECK(std::fabs(across_counters / kDraws) < five_sigma);
  CHECK(std::fabs(across_streams / kDraws) < five_sigma);
}

TEST_CASE("mixing is a bijection in practice: no collision among many keys") {
  std::set<uint64_t> seen;
  for (uint64_t key = 0; key < 100000; ++key) seen.insert(mix_bits(key));
  CHECK(seen.size() == 100000);
}
