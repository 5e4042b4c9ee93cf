// What a centroid leaves of a key, in one bit a coordinate and one scale a token (algorithm.md eq. 13), and how the bits lie in memory.
#pragma once

#include "quorum/core/element.hpp"

namespace quorum {

// Codes come in blocks of 16 tokens of one cluster, the unit of scanning; a line of 64 bytes holds 32 coordinates of a block.
inline constexpr int kCodeBlock = 16;
inline constexpr int kCodeLineDim = 32;
inline constexpr int kCodeLineBytes = 64;

constexpr int code_lines(int head_dim) { return int(ceil_div(head_dim, kCodeLineDim)); }
constexpr int64_t code_block_bytes(int head_dim) { return int64_t(code_lines(head_dim)) * kCodeLineBytes; }
// Bytes that scanning reads for each slot of a block: bits and scale.
constexpr int64_t code_bytes_per_token(int head_dim) { return code_block_bytes(head_dim) / kCodeBlock + 2; }
QUORUM_HOST_DEVICE constexpr int num_code_blocks(int num_tokens) { return (num_tokens + kCodeBlock - 1) / kCodeBlock; }

// Where the bit of a coordinate of the token in `lane` of a block is: line c / 32, in it four bytes a token; the low halves of the bytes
// hold coordinates 0-15 by fours, the high halves 16-31. Each half byte is an index into a table of 16 sums.
struct CodeBit {
  int byte = 0;
  int shift = 0;
};
QUORUM_HOST_DEVICE constexpr CodeBit code_bit(int coordinate, int lane) {
  const int in_line = coordinate % kCodeLineDim;
  return {coordinate / kCodeLineDim * kCodeLineBytes + lane * 4 + in_line % 16 / 4, in_line / 16 * 4 + in_line % 4};
}

// The other way round: the first of the four coordinates whose bits are in the low (0) or high (1) half of a byte of a block.
QUORUM_HOST_DEVICE constexpr int code_coordinate(int byte, int half) {
  return byte / kCodeLineBytes * kCodeLineDim + half * 16 + byte % 4 * 4;
}
// Scale of a code from the sum of the residual's magnitudes: their mean, as f16 holds it.
QUORUM_HOST_DEVICE constexpr f16 code_scale(float sum, int head_dim) {
  constexpr float kLargestF16 = 65504.0f;
  const float mean = sum / float(head_dim);
  return from_float<f16>(mean > kLargestF16 ? kLargestF16 : mean);
}

// A table holds, for every four coordinates, the sums of +-q' of all 16 sign patterns in steps of `step`, plus kCodeTableZero.
inline constexpr int kCodeTableEntries = 16;
inline constexpr int kCodeTableZero = 128;
// Bytes of the tables of one query head; those of coordinates beyond head_dim hold the zero point.
constexpr int code_table_bytes(int head_dim) { return code_lines(head_dim) * kCodeLineDim / 4 * kCodeTableEntries; }

// Codes under-rate the tokens that matter: those aligned with the query. The mean magnitude is the best guess for a token picked at random,
// pi/2 times as much the unbiased one (RaBitQ, arXiv 2405.12497); in between the output error is least (docs/algorithm.md section 7).
inline constexpr float kCodeGain = 1.15f;

// Share of a residual's energy that its signs and mean magnitude lose, for normal coordinates: 1 - 2 / pi. Measured on real keys: within 2
// %.
inline constexpr float kLostEnergy = 0.36338f;

// Variance of a score, given the code, for each unit of a cluster's spread. query_square: |q'|^2.
QUORUM_HOST_DEVICE constexpr float lost_variance(float query_square, int head_dim) { return kLostEnergy * query_square / float(head_dim); }

// Coded weights beyond this share of everything that was expected are taken for that: sums stay finite, and f16, as which a CPU keeps
// shares, ends at 65504.
inline constexpr float kLargestLogShare = 15.8f;  // base 2

// Score of a coded token: its centroid's, plus the signs' dot product with the query times the mean magnitude of the residual (times the
// gain, which callers put into sign_dot). V is float or a SIMD batch.
template <class V>
QUORUM_HOST_DEVICE QUORUM_ALWAYS_INLINE V coded_score(V centroid_score, V scale, V sign_dot) {
  return centroid_score + scale * sign_dot;
}

}  // namespace quorum
