// The fixed orthogonal mixing of coordinates: signs, then Hadamard transforms. It makes every coordinate alike, so that int8 rows and
// short codes lose little, and costs d log d additions where a random rotation would cost d^2.
#pragma once

#include <cmath>

#include "quorum/cpu/simd/vector.hpp"

namespace quorum::simd {

// Unnormalised Walsh-Hadamard transform of x[0, n), n a power of two. Cost: n log2 n additions.
inline void hadamard(float* x, int n) {
  for (int half = n / 2; half >= 1; half /= 2) {
    for (int block = 0; block < n; block += 2 * half) {
      float* a = x + block;
      float* b = a + half;
      int i = 0;
      for (; i + kVectorSize <= half; i += kVectorSize) {
        const Vector u = load(a + i), v = load(b + i);
        store(a + i, u + v);
        store(b + i, u - v);
      }
      for (; i < half; ++i) {
        const float u = a[i], v = b[i];
        a[i] = u + v;
        b[i] = u - v;
      }
    }
  }
}

// x = rotation(signs * x), orthogonal, in place. For dimensions that are no power of two, two transforms of the largest power of two
// overlap: first over the front, then, with the signs once more but shifted, over the back. Without signs in between, the second
// transform would undo the first where they overlap.
inline void rotate(float* x, const float* signs, int head_dim) {
  int power = 8;
  while (2 * power <= head_dim) power *= 2;
  const float norm = 1.0f / std::sqrt(float(power));
  for (int c = 0; c < head_dim; ++c) x[c] *= signs[c] * (c < power ? norm : 1.0f);
  hadamard(x, power);
  if (power == head_dim) return;
  float* back = x + head_dim - power;
  for (int c = 0; c < power; ++c) back[c] *= norm * signs[c];
  hadamard(back, power);
}

}  // namespace quorum::simd
