#include "tests/cuda/emulation/ptx.hpp"

#include "tests/cuda/emulation/scheduler.hpp"

namespace quorum::emulation {
namespace {

constexpr int kLanes = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// One lane's fragments.
template <class Sum>
struct Fragments {
  Sum* d;
  const uint32_t* a;
  const uint32_t* b;
};

// Where a lane's elements lie: lane = 4 row + column pair. With kPerWord elements in a word, a[0..3] are rows (row, row + 8, row, row + 8)
// of A and columns (low, low, high, high half); b[0..1] the low and high half of B's rows; d[0..3] two neighbours of rows row, row + 8.
template <int kPerWord>
int inner_of(int lane, int half) {
  return lane % 4 * kPerWord + half * 4 * kPerWord;
}

// d += a b for A of 16 x kInner, B of kInner x 8 elements, of which a word holds kPerWord.
template <class Sum, int kPerWord, class A, class B>
void multiply(void** payloads, A element_of_a, B element_of_b) {
  constexpr int kInner = 8 * kPerWord;
  Sum a[16][kInner], b[kInner][8], product[16][8] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<const Fragments<Sum>*>(payloads[lane]);
    for (int i = 0; i < kPerWord; ++i) {
      for (int word = 0; word < 4; ++word)
        a[lane / 4 + word % 2 * 8][inner_of<kPerWord>(lane, word / 2) + i] = element_of_a(own.a[word], i);
      for (int word = 0; word < 2; ++word) b[inner_of<kPerWord>(lane, word) + i][lane / 4] = element_of_b(own.b[word], i);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kInner; ++k) {
      for (int column = 0; column < 8; ++column) product[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<const Fragments<Sum>*>(payloads[lane]);
    for (int i = 0; i < 4; ++i) own.d[i] += product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

template <class T>
float half_of(uint32_t word, int i) {
  return to_float(T{uint16_t(word >> (16 * i))});
}
template <class T>
void multiply_halves(void** payloads, int) {
  multiply<float, 2>(payloads, half_of<T>, half_of<T>);
}
void multiply_bytes(void** payloads, int) {
  multiply<int32_t, 4>(
      payloads, [](uint32_t word, int i) { return int32_t(uint8_t(word >> (8 * i))); },
      [](uint32_t word, int i) { return int32_t(int8_t(word >> (8 * i))); });
}

struct Matrices {
  uint32_t* r;
  const Row* row;
  bool transposed;
};

// Element (row, column) of the matrix whose rows the lanes from `first` on named.
uint32_t element(void** payloads, int first, int row, int column) {
  const Row& named = *static_cast<const Matrices*>(payloads[first + row])->row;
  return named.words[column / 2] >> (16 * (column % 2)) & 0xffff;
}

void combine_matrices(void** payloads, int) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<const Matrices*>(payloads[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int first = matrix * 8;
      own.r[matrix] = own.transposed ? element(payloads, first, column, row) | element(payloads, first, column + 1, row) << 16
                                     : element(payloads, first, row, column) | element(payloads, first, row, column + 1) << 16;
    }
  }
}

struct Word {
  uint32_t given, got;
};

// The element (row, column) lies in lane 4 row + column / 2.
void combine_transpose(void** payloads, int) {
  const auto given = [&](int row, int column) {
    return static_cast<const Word*>(payloads[row * 4 + column / 2])->given >> (16 * (column % 2)) & 0xffff;
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    static_cast<Word*>(payloads[lane])->got = given(column, row) | given(column + 1, row) << 16;
  }
}

}  // namespace

void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments<float> own = {d, a, b};
  meet_warp("mma.m16n8k16.bf16", kFullMask, &own, multiply_halves<bf16>, Meeting::matrix, site);
}
void multiply_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments<float> own = {d, a, b};
  meet_warp("mma.m16n8k16.f16", kFullMask, &own, multiply_halves<f16>, Meeting::matrix, site);
}
void multiply_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments<int32_t> own = {d, a, b};
  meet_warp("mma.m16n8k32.u8.s8", kFullMask, &own, multiply_bytes, Meeting::matrix, site);
}

void distribute_matrices(uint32_t (&r)[4], const Row& row, bool transposed, Site site) {
  Matrices own = {r, &row, transposed};
  meet_warp(transposed ? "ldmatrix.trans" : "ldmatrix", kFullMask, &own, combine_matrices, Meeting::matrix, site);
}

uint32_t transpose_matrix(uint32_t r, Site site) {
  Word own = {r, 0};
  meet_warp("movmatrix.trans", kFullMask, &own, combine_transpose, Meeting::matrix, site);
  return own.got;
}

}  // namespace quorum::emulation
