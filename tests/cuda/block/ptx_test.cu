// The PTX wrappers against plain loops; natively this tests the PTX, on the host its emulation.
#include "quorum/cuda/block/ptx.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "quorum/cuda/support/launch.cuh"
#include "quorum/cuda/support/shared_memory.cuh"
#include "tests/cuda/support/device_array.cuh"

using namespace quorum;
using namespace quorum::cuda;
using test::DeviceArray;

namespace {

// Fragments of a 16 x kInner matrix A and a kInner x 8 matrix B whose elements lie one to a T, as the PTX manual lays them out.
template <class T>
struct Fragments {
  static constexpr int kPerWord = 4 / int(sizeof(T)), kInner = 8 * kPerWord;
  std::vector<uint32_t> a, b;
};

template <class T>
void put(std::vector<uint32_t>& words, size_t word, int place, T value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  words[word] |= bits << (8 * sizeof(T) * size_t(place));
}

template <class T, class U>
Fragments<T> make_fragments(const std::vector<T>& a, const std::vector<U>& b) {
  constexpr int kPerWord = Fragments<T>::kPerWord, kInner = Fragments<T>::kInner;
  Fragments<T> result{std::vector<uint32_t>(32 * 4), std::vector<uint32_t>(32 * 2)};
  for (int lane = 0; lane < 32; ++lane) {
    for (int word = 0; word < 4; ++word) {
      for (int i = 0; i < kPerWord; ++i) {
        const int row = lane / 4 + (word % 2) * 8, k = lane % 4 * kPerWord + word / 2 * 4 * kPerWord + i;
        put(result.a, size_t(lane * 4 + word), i, a[size_t(row * kInner + k)]);
        if (word < 2) put(result.b, size_t(lane * 2 + word), i, b[size_t((lane % 4 * kPerWord + word * 4 * kPerWord + i) * 8 + lane / 4)]);
      }
    }
  }
  return result;
}

template <class T, class Sum>
__global__ void multiply_kernel(const uint32_t* a, const uint32_t* b, Sum* d) {
  const int lane = int(threadIdx.x);
  uint32_t own_a[4], own_b[2];
  Sum own_d[4];
  for (int i = 0; i < 4; ++i) own_a[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) own_b[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) own_d[i] = d[lane * 4 + i];
  if constexpr (sizeof(T) == 1) {
    mma_m16n8k32_u8s8(own_d, own_a, own_b);
  } else {
    mma_m16n8k16<T>(own_d, own_a, own_b);
  }
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = own_d[i];
}

// The product of A and B on top of `start`, element (row, column) at row * 8 + column.
template <class Sum, class T, class U>
std::vector<Sum> multiply(const std::vector<T>& a, const std::vector<U>& b, Sum start) {
  const Fragments<T> fragments = make_fragments(a, b);
  const DeviceArray<uint32_t> device_a(fragments.a), device_b(fragments.b);
  const DeviceArray<Sum> device_d(std::vector<Sum>(32 * 4, start));
  REQUIRE(launch({.threads = 32}, multiply_kernel<T, Sum>, static_cast<const uint32_t*>(device_a.data()),
                 static_cast<const uint32_t*>(device_b.data()), device_d.data()) == cudaSuccess);
  const std::vector<Sum> fragment = device_d.values();
  std::vector<Sum> result(16 * 8);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) result[size_t((lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2)] = fragment[size_t(lane * 4 + i)];
  }
  return result;
}

template <class T>
void check_half_product() {
  std::vector<T> a(16 * 16), b(16 * 8);
  uint32_t state = 1;
  const auto next = [&] { return float(int((state = state * 1664525u + 1013904223u) >> 24) - 128) / 16; };  // few bits: sums are exact
  for (T& x : a) x = from_float<T>(next());
  for (T& x : b) x = from_float<T>(next());
  const std::vector<float> product = multiply<float>(a, b, 0.5f);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 0.5f;
      for (int k = 0; k < 16; ++k) expected += to_float(a[size_t(row * 16 + k)]) * to_float(b[size_t(k * 8 + column)]);
      CAPTURE(row);
      CAPTURE(column);
      CHECK(product[size_t(row * 8 + column)] == expected);
    }
  }
}

// 8 x 8 elements, four matrices below one another: row r of matrix m is row 8 m + r of a 32 x 8 array.
__global__ void matrices_kernel(const uint16_t* elements, uint32_t* plain, uint32_t* transposed, uint32_t* moved) {
  const int lane = int(threadIdx.x);
  QUORUM_SHARED(uint4[32], rows);
  rows[lane] = reinterpret_cast<const uint4*>(elements)[lane];
  __syncwarp();
  uint32_t words[4];
  ldmatrix_x4(words, &rows[lane]);
  for (int i = 0; i < 4; ++i) plain[lane * 4 + i] = words[i];
  for (int i = 0; i < 4; ++i) moved[lane * 4 + i] = movmatrix_trans(words[i]);
  ldmatrix_x4_trans(words, &rows[lane]);
  for (int i = 0; i < 4; ++i) transposed[lane * 4 + i] = words[i];
}

// A pipeline of two stages over tiles of 128 x 16 bytes: each thread sums what its neighbour loaded.
__global__ void pipeline_kernel(const float* input, float* output, int num_tiles) {
  float* stages = dynamic_shared<float>();
  const int thread = int(threadIdx.x);
  const auto load = [&](int tile) {
    if (tile < num_tiles) {
      cp_async_16(stages + (tile % 2) * 512 + thread * 4, input + int64_t(tile) * 512 + thread * 4, tile != 1);
    }
    cp_async_commit();
  };
  load(0);
  float sum = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    load(tile + 1);
    cp_async_wait<1>();
    __syncthreads();
    sum += stages[(tile % 2) * 512 + (thread * 4 + 5) % 512];
    __syncthreads();
  }
  output[thread] = sum;
}

__global__ void scalars_kernel(const float* input, float* exponentials, uint32_t* packed) {
  const int thread = int(threadIdx.x);
  exponentials[thread] = exp2_approx(input[thread]);
  packed[thread * 2] = pack<bf16>(input[thread], 1.0f);
  packed[thread * 2 + 1] = pack<f16>(1.0f, input[thread]);
}

}  // namespace

TEST_CASE("mma: 16-bit elements") {
  check_half_product<bf16>();
  check_half_product<f16>();
}

TEST_CASE("mma: bytes") {
  std::vector<uint8_t> a(16 * 32);
  std::vector<int8_t> b(32 * 8);
  uint32_t state = 2;
  const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 24; };
  for (uint8_t& x : a) x = uint8_t(next());
  for (int8_t& x : b) x = int8_t(next());
  const std::vector<int32_t> product = multiply<int32_t>(a, b, int32_t(-7));
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int32_t expected = -7;
      for (int k = 0; k < 32; ++k) expected += int32_t(a[size_t(row * 32 + k)]) * b[size_t(k * 8 + column)];
      CHECK(product[size_t(row * 8 + column)] == expected);
    }
  }
}

TEST_CASE("ldmatrix and movmatrix") {
  std::vector<uint16_t> elements(32 * 8);
  for (size_t i = 0; i < elements.size(); ++i) elements[i] = uint16_t(i * 257 + 1);
  const DeviceArray<uint16_t> input(elements);
  const DeviceArray<uint32_t> plain(128), transposed(128), moved(128);
  REQUIRE(launch({.threads = 32}, matrices_kernel, static_cast<const uint16_t*>(input.data()), plain.data(), transposed.data(),
                 moved.data()) == cudaSuccess);
  const std::vector<uint32_t> got = plain.values(), got_transposed = transposed.values(), got_moved = moved.values();
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto at = [&](int row, int column) { return uint32_t(elements[size_t((matrix * 8 + row) * 8 + column)]); };
      const int row = lane / 4, column = lane % 4 * 2;
      const size_t place = size_t(lane * 4 + matrix);
      CHECK(got[place] == (at(row, column) | at(row, column + 1) << 16));
      CHECK(got_transposed[place] == (at(column, row) | at(column + 1, row) << 16));
      CHECK(got_moved[place] == got_transposed[place]);
    }
  }
}

TEST_CASE("cp.async: a pipeline of two stages, one tile of zeros") {
  constexpr int kTiles = 5;
  std::vector<float> values(kTiles * 512);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i % 13);
  const DeviceArray<float> input(values), output(128);
  REQUIRE(launch({.threads = 128, .dynamic_shared = 2 * 512 * 4}, pipeline_kernel, static_cast<const float*>(input.data()), output.data(),
                 kTiles) == cudaSuccess);
  const std::vector<float> got = output.values();
  for (size_t thread = 0; thread < 128; ++thread) {
    float expected = 0;
    for (size_t tile = 0; tile < kTiles; ++tile) expected += tile == 1 ? 0.0f : values[tile * 512 + (thread * 4 + 5) % 512];
    CHECK(got[thread] == expected);
  }
}

TEST_CASE("exp2 and packing") {
  const std::vector<float> values = {0,          1,        -1,    0.3f,      -20.25f,   10.5f, -126, -150,
                                     -kInfinity, 3.14159f, 1e-3f, 0x1.01p0f, 0x1.03p0f, -2.0f, 7,    100};
  const DeviceArray<float> input(values), exponentials(values.size());
  const DeviceArray<uint32_t> packed(values.size() * 2);
  REQUIRE(launch({.threads = int(values.size())}, scalars_kernel, static_cast<const float*>(input.data()), exponentials.data(),
                 packed.data()) == cudaSuccess);
  const std::vector<float> got = exponentials.values();
  const std::vector<uint32_t> words = packed.values();
  for (size_t i = 0; i < values.size(); ++i) {
    const double expected = values[i] < -126 ? 0 : std::exp2(double(values[i]));
    CAPTURE(values[i]);
    CHECK(std::fabs(got[i] - expected) <= 0x1p-22 * expected);
    CHECK(words[2 * i] == (uint32_t(from_float<bf16>(values[i]).bits) | uint32_t(from_float<bf16>(1.0f).bits) << 16));
    CHECK(words[2 * i + 1] == (uint32_t(from_float<f16>(values[i]).bits) << 16 | uint32_t(from_float<f16>(1.0f).bits)));
  }
}
