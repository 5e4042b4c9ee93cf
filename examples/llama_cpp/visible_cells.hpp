// What the rows of a stream see of its cells, from the engine's additive mask. Knows nothing of ggml.
#pragma once

#include <algorithm>
#include <vector>

#include "quorum/core/sequence_view.hpp"

namespace quorum_ggml {

// The cell behind the last one that any row sees. mask_row(row): num_cells entries, null for all visible.
// Cost: the hidden entries at the end of each row, once.
template <class MaskRow>
int visible_end(MaskRow&& mask_row, int num_rows, int num_cells) {
  constexpr uint16_t kMinusInfinity = 0xfc00;
  int end = 0;
  for (int row = num_rows - 1; row >= 0 && end < num_cells; --row) {  // the last row sees most
    const quorum::f16* mask = mask_row(row);
    if (mask == nullptr) return num_cells;
    int cell = num_cells;
    while (cell > end && mask[cell - 1].bits == kMinusInfinity) --cell;
    end = std::max(end, cell);
  }
  return end;
}

// The rows' masks as bits.
class VisibleCells {
 public:
  // Returns false if an entry is neither 0 nor -inf; then nothing else may be asked.
  template <class MaskRow>
  bool read(MaskRow&& mask_row, int num_rows, int num_cells) {
    words_ = int(quorum::mask_words(num_cells));
    num_rows_ = num_rows;
    num_cells_ = num_cells;
    bits_.resize(size_t(words_) * size_t(num_rows));
    for (int row = 0; row < num_rows; ++row) {
      const quorum::f16* mask = mask_row(row);
      if (mask == nullptr) {
        std::fill_n(row_bits(row), words_, ~uint64_t{0});
        if (num_cells % 64 != 0) row_bits(row)[words_ - 1] = (uint64_t{1} << (num_cells % 64)) - 1;
      } else if (!quorum::bits_of_additive_mask(mask, num_cells, row_bits(row))) {
        return false;
      }
    }
    return true;
  }

  // Behind the last cell that any row sees.
  int end() const {
    int end = 0;
    for (int row = 0; row < num_rows_; ++row)
      for (int w = words_; w-- > end / 64;)
        if (const uint64_t bits = bits_[size_t(row) * size_t(words_) + size_t(w)]; bits != 0) {
          end = std::max(end, 64 * w + 64 - std::countl_zero(bits));
          break;
        }
    return end;
  }

  // The rows of a sequence over a cache of which the index knows `num_indexed` cells. Rows that see all cells up to their own, one more
  // each, need no mask: then they share what they read.
  quorum::SequenceView sequence(const quorum::KvCacheView& kv, int num_indexed) const {
    quorum::SequenceView view;
    view.num_rows = num_rows_;
    const int first = prefix_end(0);
    bool plain = first + num_rows_ - 1 >= num_indexed;
    for (int row = 0; row < num_rows_ && plain; ++row) plain = first > 0 && prefix_end(row) == first + row;
    view.kv = kv.first(plain ? first + num_rows_ - 1 : std::max(end(), num_indexed));
    view.causal = plain;
    if (plain) return view;
    view.mask = bits_.data();
    view.mask_stride = num_rows_ > 1 && !rows_agree() ? words_ : 0;
    return view;
  }

 private:
  uint64_t* row_bits(int row) { return bits_.data() + size_t(row) * size_t(words_); }

  // The number of cells a row sees if they are the first ones, otherwise -1.
  int prefix_end(int row) const {
    const uint64_t* bits = bits_.data() + size_t(row) * size_t(words_);
    int w = 0;
    while (w < words_ && bits[w] == ~uint64_t{0}) ++w;
    if (w == words_) return std::min(64 * w, num_cells_);
    const int in_word = std::countr_one(bits[w]);
    if (bits[w] >> in_word != 0) return -1;
    for (int rest = w + 1; rest < words_; ++rest)
      if (bits[rest] != 0) return -1;
    return 64 * w + in_word;
  }
  bool rows_agree() const {
    for (int row = 1; row < num_rows_; ++row)
      if (!std::equal(bits_.begin(), bits_.begin() + words_, bits_.begin() + std::ptrdiff_t(row) * words_)) return false;
    return true;
  }

  std::vector<uint64_t> bits_;  // [num_rows][words]
  int words_ = 0, num_rows_ = 0, num_cells_ = 0;
};

}  // namespace quorum_ggml
