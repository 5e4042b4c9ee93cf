// One vector of floats as wide as the compiler's flags allow, and loads of every element type into it.
//
// Everything above this folder is written with `Vector` and never names an instruction set. xsimd supplies the arithmetic; the few
// conversions it lacks (f16, bf16) and a scalar stand-in (define QUORUM_SCALAR) are here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quorum/core/config.hpp"
#include "quorum/core/element.hpp"

// GCC 12 warns about the undefined operands inside its own AVX-512 intrinsics (GCC bug 105593); the warning belongs to their lines.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif
#if !defined(QUORUM_SCALAR)
#include <xsimd/xsimd.hpp>
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace quorum::simd {

// The instruction set that the compiler's flags chose, by the names of docs/instruction_sets.md.
constexpr const char* instruction_set() noexcept {
#if defined(QUORUM_SCALAR)
  return "scalar";
#elif defined(__AVX512F__) && defined(__AVX512VNNI__)
  return "avx512_vnni";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#elif defined(__AVX__)
  return "avx";
#elif defined(__SSE2__)
  return "sse2";
#elif defined(__ARM_NEON) && defined(__aarch64__) && defined(__ARM_FEATURE_MATMUL_INT8)
  return "neon_i8mm";
#elif defined(__ARM_NEON) && defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
  return "neon_dotprod";
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return "neon";
#else
  return "other";
#endif
}

#if defined(QUORUM_SCALAR)

// Four plain floats with the operations of an xsimd batch that this library uses.
struct Vector {
  static constexpr int size = 4;
  float lane[size];

  Vector() = default;
  explicit Vector(float x) : lane{x, x, x, x} {}
  static Vector load_unaligned(const float* p) {
    Vector v;
    std::memcpy(v.lane, p, sizeof(v.lane));
    return v;
  }
  void store_unaligned(float* p) const { std::memcpy(p, lane, sizeof(lane)); }
  template <class F>
  static Vector apply(F f) {
    Vector v;
    for (int i = 0; i < size; ++i) v.lane[i] = f(i);
    return v;
  }
  friend Vector operator+(Vector a, Vector b) {
    return apply([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  friend Vector operator-(Vector a, Vector b) {
    return apply([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  friend Vector operator*(Vector a, Vector b) {
    return apply([&](int i) { return a.lane[i] * b.lane[i]; });
  }
};
inline constexpr int kVectorSize = Vector::size;
QUORUM_ALWAYS_INLINE Vector min(Vector a, Vector b) {
  return Vector::apply([&](int i) { return std::min(a.lane[i], b.lane[i]); });
}
QUORUM_ALWAYS_INLINE Vector max(Vector a, Vector b) {
  return Vector::apply([&](int i) { return std::max(a.lane[i], b.lane[i]); });
}
QUORUM_ALWAYS_INLINE Vector sqrt(Vector a) {
  return Vector::apply([&](int i) { return std::sqrt(a.lane[i]); });
}
QUORUM_ALWAYS_INLINE Vector operator/(Vector a, Vector b) {
  return Vector::apply([&](int i) { return a.lane[i] / b.lane[i]; });
}
QUORUM_ALWAYS_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
QUORUM_ALWAYS_INLINE Vector maximum(Vector a, Vector b) {
  return Vector::apply([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// The second operand if either is NaN.
QUORUM_ALWAYS_INLINE Vector minimum(Vector a, Vector b) {
  return Vector::apply([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// Lanes of a where condition > 0, else of b.
QUORUM_ALWAYS_INLINE Vector where_positive(Vector condition, Vector a, Vector b) {
  return Vector::apply([&](int i) { return condition.lane[i] > 0.0f ? a.lane[i] : b.lane[i]; });
}
// Lanes of x where key >= threshold, else of y.
QUORUM_ALWAYS_INLINE Vector where_at_least(Vector key, Vector threshold, Vector x, Vector y) {
  return Vector::apply([&](int i) { return key.lane[i] >= threshold.lane[i] ? x.lane[i] : y.lane[i]; });
}
QUORUM_ALWAYS_INLINE float reduce_add(Vector v) { return (v.lane[0] + v.lane[1]) + (v.lane[2] + v.lane[3]); }
QUORUM_ALWAYS_INLINE Vector exponential(Vector x) {
  return Vector::apply([&](int i) { return x.lane[i] >= -87.0f ? std::exp(x.lane[i]) : x.lane[i] != x.lane[i] ? x.lane[i] : 0.0f; });
}

#else

using Vector = xsimd::batch<float>;
inline constexpr int kVectorSize = int(Vector::size);

QUORUM_ALWAYS_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return xsimd::fma(a, b, c); }
// The second operand if either is NaN.
QUORUM_ALWAYS_INLINE Vector maximum(Vector a, Vector b) {
#if defined(__ARM_NEON) && defined(__aarch64__)
  return vbslq_f32(vcgtq_f32(a, b), a, b);  // fmax would give NaN
#else
  return xsimd::max(a, b);
#endif
}
QUORUM_ALWAYS_INLINE Vector minimum(Vector a, Vector b) {
#if defined(__ARM_NEON) && defined(__aarch64__)
  return vbslq_f32(vcltq_f32(a, b), a, b);
#else
  return xsimd::min(a, b);
#endif
}
// Lanes of a where condition > 0, else of b.
QUORUM_ALWAYS_INLINE Vector where_positive(Vector condition, Vector a, Vector b) { return xsimd::select(condition > Vector(0.0f), a, b); }
// Lanes of x where key >= threshold, else of y.
QUORUM_ALWAYS_INLINE Vector where_at_least(Vector key, Vector threshold, Vector x, Vector y) {
  return xsimd::select(key >= threshold, x, y);
}
QUORUM_ALWAYS_INLINE float reduce_add(Vector v) {
#if XSIMD_VERSION_MAJOR >= 9
  return xsimd::reduce_add(v);
#else
  return xsimd::hadd(v);
#endif
}

// exp(x) for x <= 88, relative error below 3e-7; 0 below -87 (no subnormals: they cost hundreds of cycles), NaN stays NaN.
QUORUM_ALWAYS_INLINE Vector exponential(Vector x) {
#if defined(__AVX512F__)
  // exp(x) = 2^n * p(f), n = round(x / ln 2), f in [-1/2, 1/2]; Taylor coefficients of 2^f, degree 6. 1 / ln 2 is taken in two parts:
  // rounded to one float it would put the result off by 1.4e-6 at -87.
  const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 n = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_fmadd_ps(x, _mm512_set1_ps(1.925963033e-8f), _mm512_fmsub_ps(x, _mm512_set1_ps(1.44269504f), n));
  __m512 p = _mm512_set1_ps(1.5403530e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  const __mmask16 vanishes = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), vanishes, _mm512_setzero_ps());
#else
  return xsimd::select(x < Vector(-87.0f), Vector(0.0f), xsimd::exp(xsimd::select(x < Vector(-87.0f), Vector(-87.0f), x)));
#endif
}

#endif

// 2^x for x <= 127, relative error below 1e-5, for weights that are estimates anyway; below -120 what -120 gives, NaN stays NaN.
QUORUM_ALWAYS_INLINE Vector power_of_two(Vector x) {
  const Vector bounded = maximum(Vector(-120.0f), x);
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  // 2^n * p(f) as in exponential(); the polynomial of degree 4 with the least relative error on [-1/2, 1/2].
  const __m512 n = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(bounded, n);
  __m512 p = _mm512_set1_ps(9.5701e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.591786e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4024734e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9312181e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9999926e-1f));
  return _mm512_scalef_ps(p, n);
#else
  return exponential(bounded * Vector(0.69314718f));
#endif
}

// Largest lane; NaN lanes do not count, -inf if all are.
QUORUM_ALWAYS_INLINE float reduce_max(Vector v) {
  float lanes[kVectorSize], largest = -kInfinity;
  v.store_unaligned(lanes);
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

QUORUM_ALWAYS_INLINE Vector load(const float* p) { return Vector::load_unaligned(p); }
QUORUM_ALWAYS_INLINE void store(float* p, Vector v) { v.store_unaligned(p); }

// Stores kVectorSize floats as f16, rounded to nearest even.
QUORUM_ALWAYS_INLINE void store_as_f16(f16* p, Vector v) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__) && defined(__AVX__) && !defined(QUORUM_SCALAR)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
#else
  float lanes[kVectorSize];
  v.store_unaligned(lanes);
  for (int i = 0; i < kVectorSize; ++i) p[i] = from_float<f16>(lanes[i]);
#endif
}

// Loads kVectorSize elements of any type as floats; no alignment needed.
QUORUM_ALWAYS_INLINE Vector load_as_float(const float* p) { return load(p); }

template <class T>
QUORUM_ALWAYS_INLINE Vector load_converted(const T* p) {
  float lanes[kVectorSize];
  for (int i = 0; i < kVectorSize; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}

QUORUM_ALWAYS_INLINE Vector load_as_float(const f16* p) {
#if defined(QUORUM_SCALAR)
  return load_converted(p);
#elif defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && defined(__AVX__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
#else
  return load_converted(p);
#endif
}

// The f16 at p in every lane; no alignment needed. Caller: four bytes may be read there, since a load into the low end of a register
// costs no shuffle.
QUORUM_ALWAYS_INLINE Vector broadcast_f16(const std::byte* p) {
#if defined(__F16C__) && defined(__AVX2__) && !defined(QUORUM_SCALAR)
  int low;
  std::memcpy(&low, p, sizeof(low));
  const __m128 first = _mm_cvtph_ps(_mm_cvtsi32_si128(low));
#if defined(__AVX512F__)
  return _mm512_broadcastss_ps(first);
#else
  return _mm256_broadcastss_ps(first);
#endif
#else
  f16 x;
  std::memcpy(&x, p, sizeof(x));
#if defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x.bits)));
#else
  return Vector(to_float(x));
#endif
#endif
}

QUORUM_ALWAYS_INLINE Vector load_as_float(const bf16* p) {
#if defined(QUORUM_SCALAR)
  return load_converted(p);
#elif defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
#else
  return load_converted(p);
#endif
}

// fp8_e4m3 times kFp8AsF16, as which its bits moved to those of an f16 read: the exponents' biases are 7 and 15. NaN stays NaN.
inline constexpr float kFp8AsF16 = 0x1p-8f;
QUORUM_ALWAYS_INLINE Vector load_as_float(const fp8_e4m3* p) {
#if defined(__F16C__) && defined(__AVX2__) && !defined(QUORUM_SCALAR)
  const auto to_f16 = [](__m256i wide, auto halves) {  // sign-extended: the sign comes to lie in bits 14 and 15
    const __m256i moved = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(short(0xbfff)));
    const __m256i largest = _mm256_set1_epi16(0x3f80);
    return halves(_mm256_or_si256(moved, _mm256_cmpeq_epi16(_mm256_and_si256(moved, largest), largest)));
  };
#if defined(__AVX512F__)
  return to_f16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                [](__m256i bits) { return _mm512_cvtph_ps(bits); });
#else
  return to_f16(_mm256_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
                [](__m256i bits) { return _mm256_cvtph_ps(_mm256_castsi256_si128(bits)); });
#endif
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  uint32_t four;
  std::memcpy(&four, p, 4);
  const uint16x4_t wide = vreinterpret_u16_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
  const uint16x4_t moved = vand_u16(vshl_n_u16(wide, 7), vdup_n_u16(0xbfff)), largest = vdup_n_u16(0x3f80);
  return vcvt_f32_f16(vreinterpret_f16_u16(vorr_u16(moved, vceq_u16(vand_u16(moved, largest), largest))));
#else
  return load_converted(p) * Vector(kFp8AsF16);
#endif
}

// int8 coordinates as floats.
QUORUM_ALWAYS_INLINE Vector load_as_float(const int8_t* p) {
#if defined(QUORUM_SCALAR)
  float lanes[kVectorSize];
  for (int i = 0; i < kVectorSize; ++i) lanes[i] = float(p[i]);
  return load(lanes);
#elif defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(__ARM_NEON) && defined(__aarch64__)
  uint32_t four;  // eight would be read otherwise
  std::memcpy(&four, p, 4);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
#else
  float lanes[kVectorSize];
  for (int i = 0; i < kVectorSize; ++i) lanes[i] = float(p[i]);
  return load(lanes);
#endif
}

// Integers as floats, exact up to 2^24.
QUORUM_ALWAYS_INLINE Vector load_as_float(const int32_t* p) {
#if defined(__AVX512F__) && !defined(QUORUM_SCALAR)
  return _mm512_cvtepi32_ps(_mm512_loadu_si512(p));
#elif defined(__AVX2__) && !defined(QUORUM_SCALAR)
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(QUORUM_SCALAR)
  return vcvtq_f32_s32(vld1q_s32(p));
#else
  float lanes[kVectorSize];
  for (int i = 0; i < kVectorSize; ++i) lanes[i] = float(p[i]);
  return load(lanes);
#endif
}

// The first `count` (< kVectorSize) elements; the other lanes are 0. Reads nothing beyond.
template <class T>
QUORUM_ALWAYS_INLINE Vector load_partial(const T* p, int count) {
  T lanes[kVectorSize] = {};
  std::memcpy(lanes, p, size_t(count) * sizeof(T));
  return load_as_float(lanes);
}

// Keeps a value in a register. Compilers fold a load into every use of it, and four folded loads a step make a kernel wait for L1.
QUORUM_ALWAYS_INLINE void keep_in_register(Vector& v) {
#if !defined(QUORUM_SCALAR) && defined(__AVX512F__)
  asm("" : "+v"(v.data));
#elif !defined(QUORUM_SCALAR) && defined(__SSE2__)
  asm("" : "+x"(v.data));
#elif !defined(QUORUM_SCALAR) && defined(__ARM_NEON) && defined(__aarch64__)
  asm("" : "+w"(v.data));
#else
  (void)v;
#endif
}

// The same for an address from which others follow. Compilers compute those before the loop instead, and run out of registers.
template <class T>
QUORUM_ALWAYS_INLINE void keep_in_register(const T*& p) {
#if defined(__GNUC__)
  asm("" : "+r"(p));
#else
  (void)p;
#endif
}

// Asks for the cache line at p; never faults. Into L2: a core tracks about two dozen lines on their way to L1, which bounds it to
// 12 GB/s at 120 ns of memory latency, but many more on their way to L2 (dense attention of 256 dimensions: 10 against 18 GB/s).
QUORUM_ALWAYS_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace quorum::simd
