// What quorum/cuda/block/ptx.cuh wraps, on the host: same names, same meaning, fragments laid out as in the PTX manual.
#pragma once

#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <source_location>

#include "quorum/core/element.hpp"
#include "tests/cuda/emulation/async_copy.hpp"
#include "tests/cuda/emulation/scheduler.hpp"
#include "tests/cuda/emulation/shared_memory.hpp"

namespace quorum::emulation {

// One lane's part in d += a b.
void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site);
void multiply_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site);
void multiply_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site);

// Four 8 x 8 matrices of 16-bit elements, given by rows: rows[i] are the 16 bytes that lane i named. Transposed, or not.
struct Row {
  uint32_t words[4];
};
void distribute_matrices(uint32_t (&r)[4], const Row& row, bool transposed, Site site);
uint32_t transpose_matrix(uint32_t r, Site site);

// Read here, in a header, so that the sanitizers see it.
inline Row load_row(const void* row, Site site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: the address of a row is not a multiple of 16", site);
  const uint4 v = *static_cast<const uint4*>(row);
  return {{v.x, v.y, v.z, v.w}};
}

inline float flush_subnormal(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

}  // namespace quorum::emulation

namespace quorum::cuda {

inline void cp_async_16(void* shared, const void* global, bool valid, emulation::Site site = emulation::Site::current()) {
  const emulation::AsyncCopy copy = {shared, global, valid};
  if (emulation::issue_async_copy(copy, site)) emulation::perform(copy);
}
inline void cp_async_commit() { emulation::commit_async_copies(); }
template <int kPending>
void cp_async_wait() {
  emulation::AsyncCopy copy;
  while (emulation::take_due_async_copy(kPending, copy)) emulation::perform(copy);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emulation::Site site = emulation::Site::current()) {
  emulation::distribute_matrices(r, emulation::load_row(row, site), false, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, emulation::Site site = emulation::Site::current()) {
  emulation::distribute_matrices(r, emulation::load_row(row, site), true, site);
}
inline uint32_t movmatrix_trans(uint32_t r, emulation::Site site = emulation::Site::current()) {
  return emulation::transpose_matrix(r, site);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emulation::Site site = emulation::Site::current()) {
  if constexpr (ElementTypeOf<T>::value == ElementType::bf16) {
    emulation::multiply_bf16(d, a, b, site);
  } else {
    static_assert(ElementTypeOf<T>::value == ElementType::f16);
    emulation::multiply_f16(d, a, b, site);
  }
}
inline void mma_m16n8k32_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              emulation::Site site = emulation::Site::current()) {
  emulation::multiply_u8s8(d, a, b, site);
}

inline float exp2_approx(float x) { return emulation::flush_subnormal(std::exp2(emulation::flush_subnormal(x))); }

template <class T>
uint32_t pack(float low, float high) {
  return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
}

inline float2 unpack_f16(uint32_t word) { return {to_float(f16{uint16_t(word)}), to_float(f16{uint16_t(word >> 16)})}; }
inline float2 unpack_bf16(uint32_t word) { return {to_float(bf16{uint16_t(word)}), to_float(bf16{uint16_t(word >> 16)})}; }

inline uint32_t widen_fp8(uint32_t word) { return pack<f16>(to_float(fp8_e4m3{uint8_t(word)}), to_float(fp8_e4m3{uint8_t(word >> 8)})); }

inline uint4 load_once_16(const void* global) { return *static_cast<const uint4*>(global); }

inline unsigned team_rank() { return emulation::block_rank(); }
inline unsigned team_size() { return emulation::team_blocks(); }
inline void team_barrier(emulation::Site site = emulation::Site::current()) { emulation::meet_team("team_barrier", site); }
template <class T>
T* shared_of(T* own, unsigned rank, emulation::Site site = emulation::Site::current()) {
  return static_cast<T*>(emulation::shared_of_block(own, rank, site));
}

// Kernels run one after another.
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}

}  // namespace quorum::cuda
