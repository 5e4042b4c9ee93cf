// A segment without some of its tokens.
#pragma once

#include <algorithm>

#include "quorum/cpu/segment.hpp"
#include "quorum/cpu/token_ledger.hpp"

namespace quorum::cpu {

// Copies one array of a view into the vector that stands for it.
struct CopyArray {
  template <class Vector, class T>
  void operator()(Vector& array, const T* from, int64_t count) const {
    if (from != nullptr) array.assign(from, from + count);
  }
};

// Copies what is left of a cluster's codes, lane by lane: the bits of a token are four bytes in each line of its block.
inline void copy_code(const SegmentView& from, int64_t from_slot, int64_t to_slot, int head_dim, HeadSegment& out) {
  const int64_t block = code_block_bytes(head_dim);
  const uint8_t* source = from.codes + from_slot / kCodeBlock * block + from_slot % kCodeBlock * 4;
  uint8_t* target = out.codes.data() + to_slot / kCodeBlock * block + to_slot % kCodeBlock * 4;
  for (int line = 0; line < code_lines(head_dim); ++line) std::memcpy(target + line * kCodeLineBytes, source + line * kCodeLineBytes, 4);
  out.code_scale[size_t(to_slot)] = from.code_scale[from_slot];
}

// One KV head's clusters without the tokens of a range. Centroids, spreads and value means stay those of all the tokens that were there:
// estimates, which the exact weights of what is read replace.
inline HeadSegment erase_tokens(const HeadSegment& segment, TokenRange range, int head_dim) {
  const SegmentView from = segment.view();
  const SegmentSizes sizes = SegmentSizes::of(from, head_dim);
  HeadSegment out;
  out.num_clusters = segment.num_clusters;
  out.non_finite = segment.non_finite;
  out.moments = segment.moments;
  SegmentView unchanged = from;
  unchanged.cluster_tokens = nullptr;
  unchanged.codes = nullptr;
  unchanged.code_scale = nullptr;
  HeadSegment::for_each_array(out, unchanged, CopyArray(), sizes);
  std::vector<int64_t> kept;  // code slots
  for (int64_t j = 0; j < sizes.slots; ++j) {
    out.cluster_indptr[size_t(j)] = int32_t(out.cluster_tokens.size());
    for (int i = from.cluster_indptr[j]; i < from.cluster_indptr[j + 1]; ++i) {
      if (range.contains(from.cluster_tokens[i])) continue;
      out.cluster_tokens.push_back(from.cluster_tokens[i]);
      if (from.codes != nullptr) kept.push_back(int64_t(from.code_indptr[j]) * kCodeBlock + (i - from.cluster_indptr[j]));
    }
    out.size[size_t(j)] = float(int32_t(out.cluster_tokens.size()) - out.cluster_indptr[size_t(j)]);
  }
  out.cluster_indptr[size_t(sizes.slots)] = int32_t(out.cluster_tokens.size());
  out.cluster_tokens.shrink_to_fit();
  if (from.codes == nullptr) return out;
  for (int64_t j = 0; j < sizes.slots; ++j)
    out.code_indptr[size_t(j) + 1] = out.code_indptr[size_t(j)] + num_code_blocks(int(out.size[size_t(j)]));
  const int64_t blocks = out.code_indptr[size_t(sizes.slots)];
  out.codes = AlignedVector<uint8_t>(size_t(blocks * code_block_bytes(head_dim)), 0);
  out.code_scale = AlignedVector<f16>(size_t(blocks * kCodeBlock), f16{});
  for (int64_t j = 0; j < sizes.slots; ++j)
    for (int i = out.cluster_indptr[size_t(j)]; i < out.cluster_indptr[size_t(j) + 1]; ++i)
      copy_code(from, kept[size_t(i)], int64_t(out.code_indptr[size_t(j)]) * kCodeBlock + (i - out.cluster_indptr[size_t(j)]), head_dim,
                out);
  return out;
}

// All KV heads; null if nothing is left. Cost: a copy of the segment.
inline std::shared_ptr<const Segment> erase_tokens(const Segment& segment, TokenRange range, int head_dim) {
  auto out = std::make_shared<Segment>();
  for (const HeadSegment& head : segment.heads) out->heads.push_back(erase_tokens(head, range, head_dim));
  const auto& tokens = out->heads[0].cluster_tokens;
  if (tokens.empty()) return nullptr;
  out->set_tokens(tokens);
  return out;
}

}  // namespace quorum::cpu
