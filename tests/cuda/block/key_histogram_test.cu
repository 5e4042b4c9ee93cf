#include "quorum/cuda/block/key_histogram.cuh"

#include <doctest/doctest.h>

#include "quorum/cuda/support/launch.cuh"
#include "tests/cuda/support/device_array.cuh"

namespace quorum::test {
namespace {

using Sum = unsigned long long;

__global__ void threshold_kernel(const Sum* column, const Sum* wanted, int count, int32_t* buckets, Sum* sums) {
  for (int i = 0; i < count; ++i) {
    const int bucket = cuda::find_threshold(column, wanted[i]);
    const Sum sum = cuda::sum_through(column, bucket);
    if (threadIdx.x == 0) {
      buckets[i] = bucket;
      sums[i] = sum;
    }
  }
}

TEST_CASE("key histogram: the bucket at which a column has enough, beyond 32 bits too; the last one is never reached") {
  std::vector<Sum> values(kNumKeyBuckets, 0);
  for (const int bucket : {0, 1, 17, 18, 19, 300, 573, 574, 575}) values[size_t(bucket)] = (Sum(bucket) + 3) << 31;
  std::vector<Sum> wanted{
      0, 1, Sum(3) << 31, (Sum(3) << 31) + 1, Sum(7) << 31, Sum(27) << 31, (Sum(27) << 31) + 5, Sum(940) << 31, Sum(1) << 60};
  const DeviceArray<Sum> column(values), asked(wanted), sums(wanted.size());
  const DeviceArray<int32_t> output(wanted.size());
  REQUIRE(cuda::launch({.threads = 32}, threshold_kernel, static_cast<const Sum*>(column.data()), static_cast<const Sum*>(asked.data()),
                       int(wanted.size()), output.data(), sums.data()) == cudaSuccess);
  const std::vector<int32_t> buckets = output.values();
  const std::vector<Sum> through = sums.values();
  for (size_t i = 0; i < wanted.size(); ++i) {
    CAPTURE(i);
    int bucket = -1;
    Sum sum = 0;
    while (bucket < kNumKeyBuckets - 2 && sum < wanted[i]) sum += values[size_t(++bucket)];
    CHECK(buckets[i] == bucket);
    CHECK(through[i] == sum);
  }
}

__global__ void steps_kernel(const float* shares, int count, Sum* steps) {
  for (int i = int(threadIdx.x); i < count; i += 32) steps[i] = cuda::share_steps(shares[i], cuda::kShareUnit);
}

TEST_CASE("key histogram: steps of shares: none for nothing and NaN, more than a word for codes that flatter, bounded") {
  const std::vector<float> shares{0.0f, -1.0f, kNan, 0x1p-32f, 0x1p-30f, 0.25f, 1.0f, 3.0f, 57000.0f, kInfinity};
  const std::vector<Sum> expected{0, 0, 0, 0, 1, Sum(1) << 28, Sum(1) << 30, Sum(3) << 30, Sum(57000) << 30, Sum(1) << 46};
  const DeviceArray<float> input(shares);
  const DeviceArray<Sum> output(shares.size());
  REQUIRE(cuda::launch({.threads = 32}, steps_kernel, static_cast<const float*>(input.data()), int(shares.size()), output.data()) ==
          cudaSuccess);
  CHECK(output.values() == expected);
}

TEST_CASE("key histogram: an error is made of squares, in smaller steps") {
  DecodeOptions options;
  CHECK(cuda::token_unit(options) == cuda::kShareUnit);
  options.target_error = 0.1f;
  CHECK(cuda::token_unit(options) == cuda::kSquareUnit);
  CHECK(cuda::KeyHistogram<Sum>::bytes(3) == 3 * kNumKeyBuckets * 8);
}

}  // namespace
}  // namespace quorum::test
