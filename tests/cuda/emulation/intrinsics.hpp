// Arithmetic that CUDA has and the host lacks. Approximate functions of the GPU are the exact ones here: tests compare with tolerances.
#pragma once

#include <vector_types.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}

using std::isfinite;
using std::isinf;
using std::isnan;

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }  // NaN becomes 0

constexpr unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
constexpr int __float_as_int(float x) { return std::bit_cast<int>(x); }
constexpr float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
constexpr float __int_as_float(int x) { return std::bit_cast<float>(x); }
constexpr long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
constexpr double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

namespace quorum::emulation {

// As on the GPU: NaN becomes 0, what lies outside of T's range its nearest end.
template <class T>
T convert(double x) {
  constexpr double kLowest = double(std::numeric_limits<T>::lowest()), kHighest = double(std::numeric_limits<T>::max());
  if (std::isnan(x)) return 0;
  return x <= kLowest ? std::numeric_limits<T>::lowest() : x >= kHighest ? std::numeric_limits<T>::max() : T(x);
}

}  // namespace quorum::emulation

inline int __float2int_rn(float x) { return quorum::emulation::convert<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return quorum::emulation::convert<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return quorum::emulation::convert<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return quorum::emulation::convert<int>(std::ceil(x)); }
inline unsigned __float2uint_rn(float x) { return quorum::emulation::convert<unsigned>(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return quorum::emulation::convert<unsigned>(std::trunc(x)); }
inline unsigned __float2uint_rd(float x) { return quorum::emulation::convert<unsigned>(std::floor(x)); }
inline unsigned __float2uint_ru(float x) { return quorum::emulation::convert<unsigned>(std::ceil(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

constexpr int __popc(unsigned x) { return std::popcount(x); }
constexpr int __popcll(unsigned long long x) { return std::popcount(x); }
constexpr int __clz(int x) { return std::countl_zero(unsigned(x)); }
constexpr int __clzll(long long x) { return std::countl_zero((unsigned long long)(x)); }
constexpr int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(unsigned(x)) + 1; }
constexpr int __ffsll(long long x) { return x == 0 ? 0 : std::countr_zero((unsigned long long)(x)) + 1; }
constexpr unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
  return reversed;
}
constexpr int __mulhi(int x, int y) { return int((int64_t(x) * y) >> 32); }
constexpr unsigned __umulhi(unsigned x, unsigned y) { return unsigned((uint64_t(x) * y) >> 32); }
constexpr unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
constexpr unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
// Four bytes of the eight of (x, y), chosen by the four lowest hexadecimal digits of the selector; the digit's high bit spreads the sign.
constexpr unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned digit = selector >> (4 * i) & 15, byte = unsigned(bytes >> (8 * (digit & 7))) & 0xff;
    result |= (digit & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
  }
  return result;
}

// Sum of the products of the four bytes of each word, added to c.
constexpr int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int(int8_t(unsigned(a) >> (8 * i))) * int(int8_t(unsigned(b) >> (8 * i)));
  return c;
}
constexpr unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return c;
}

// Loads and stores with a hint for the caches.
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}

namespace quorum::emulation {

// choose(a, b) of each of the two halves of a word.
template <class Half, class Choose>
constexpr unsigned choose_halves(unsigned a, unsigned b, Choose choose) {
  unsigned result = 0;
  for (int shift = 0; shift < 32; shift += 16) result |= unsigned(uint16_t(choose(Half(a >> shift), Half(b >> shift)))) << shift;
  return result;
}

}  // namespace quorum::emulation

// Minimum and maximum of the two halves of a word, signed or not.
constexpr unsigned __vmins2(unsigned a, unsigned b) {
  return quorum::emulation::choose_halves<int16_t>(a, b, [](int16_t x, int16_t y) { return x < y ? x : y; });
}
constexpr unsigned __vminu2(unsigned a, unsigned b) {
  return quorum::emulation::choose_halves<uint16_t>(a, b, [](uint16_t x, uint16_t y) { return x < y ? x : y; });
}
constexpr unsigned __vmaxs2(unsigned a, unsigned b) {
  return quorum::emulation::choose_halves<int16_t>(a, b, [](int16_t x, int16_t y) { return x > y ? x : y; });
}
constexpr unsigned __vmaxu2(unsigned a, unsigned b) {
  return quorum::emulation::choose_halves<uint16_t>(a, b, [](uint16_t x, uint16_t y) { return x > y ? x : y; });
}
