// What the kernels of a build get, and what they leave for one another.
#pragma once

#include "quorum/core/clustering.hpp"
#include "quorum/core/flat_index_view.hpp"
#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/residual_code.hpp"
#include "quorum/core/shape.hpp"

namespace quorum::cuda {

// Rows that a block transforms together.
inline constexpr int kBuildRows = 16;
// Keys that a warp sums.
inline constexpr int kKeyTile = 64;
// Threads of the kernels that have a warp for a cluster or a row, or a thread for a coordinate.
inline constexpr int kBuildThreads = 256;
// Blocks of them that a multiprocessor holds at least: 64 registers a thread, or 80, keep several rows in flight.
template <int kHeadDim>
inline constexpr int kBuildBlocks = kHeadDim <= 128 ? 4 : 3;
// Most clusters of a segment: the counters of all warps that sort its tokens fit into the shared memory of a block, 96 of 99 KB.
inline constexpr int kMaxSegmentClusters = 3072;

// An index under construction: [num_kv_heads][..] each, padding clusters included. Until its clusters are encoded, centroids and
// centroid_scale are those of the search, in its coordinates.
struct IndexArrays {
  FlatHeadView* heads = nullptr;      // [kv_head], written last
  int32_t* always = nullptr;          // one list for all heads
  f16* inverse = nullptr;             // [head_dim / 16][head_dim][16]
  float* signs = nullptr;             // [head_dim]
  float* eigenvalues = nullptr;       // [head_dim]
  float* mean_key = nullptr;          // [head_dim]
  uint8_t* centroids = nullptr;       // [slots / 16][head_dim / 4][16][4]
  float* centroid_scale = nullptr;    // [slots]
  float* spread = nullptr;            // [slots]
  float* size = nullptr;              // [slots]
  int32_t* cluster_indptr = nullptr;  // [slots + 1]
  int32_t* cluster_tokens = nullptr;  // [indexed]
  int8_t* value_means = nullptr;      // [slots][head_dim]
  float* value_mean_scale = nullptr;  // [slots]
  uint8_t* codes = nullptr;           // [max_code_blocks][code_block_bytes(head_dim)]; this and the next two: residual codes only
  f16* code_scale = nullptr;          // [max_code_blocks][16]
  int32_t* code_indptr = nullptr;     // [slots + 1]
};

// What the search needs of a row besides its bytes.
struct alignas(16) RowConstants {
  float scale = 0.0f;
  float inverse_scale = 0.0f;
  int32_t zero_dot = 0;  // what the centroids' zero point adds to a dot product
  int32_t square = 0;    // squared length in steps
};

// Sums over a cluster's values: mean squared distance from their mean, squared length of the mean times the number of tokens.
struct ValueSums {
  float spread = 0.0f;
  float mean_square = 0.0f;
};

// Scratch memory: [num_kv_heads][..] each, rows in the order of the indexed tokens.
struct BuildWorkspace {
  float* key_sums = nullptr;          // [tiles of keys][head_dim], finite keys only
  int32_t* key_flags = nullptr;       // [tiles of keys], whether a key was not finite
  float* forward = nullptr;           // [head_dim][head_dim]: column of a key's coordinate i, from i to the coordinates of the search
  float* inverse = nullptr;           // [head_dim][head_dim]: the same for queries
  int8_t* rows = nullptr;             // [indexed + kRowPadding][head_dim]
  RowConstants* constants = nullptr;  // [indexed + kRowPadding]
  int32_t* assignment = nullptr;      // [indexed], cluster within its segment
  float* distance = nullptr;          // [indexed], squared, to the nearest centroid
  float* half_norm = nullptr;         // [slots], half the squared length of a centroid of the search; infinite where there is none
  int32_t* empty_rank = nullptr;      // [slots], number of empty clusters before it in its segment, -1 if it has tokens
  int32_t* num_empty = nullptr;       // [segments]
  int32_t* changed = nullptr;         // [iterations + 1][segments], tokens that changed their cluster
  float* means = nullptr;             // [slots][head_dim], coordinates of the search
  float* moment = nullptr;            // [head_dim][head_dim], of residuals
  float* turn = nullptr;              // [head_dim][head_dim], row c: coordinate c of y
  float* turned = nullptr;            // [head_dim][head_dim], moment times turn, where shared memory does not hold it
  float* to_index = nullptr;          // [head_dim][head_dim]: from a coordinate of the search to those of the index
  ValueSums* value_sums = nullptr;    // [slots]
  int32_t* value_flags = nullptr;     // [slots], whether a value was not finite
  float* code_squares = nullptr;      // [max_code_blocks], sums of squared code scales
};
// Rows that a warp of the search may read beyond the last one.
inline constexpr int kRowPadding = 64;

// One segment: where its rows and clusters begin.
struct BuildSegment {
  int first_row = 0, num_rows = 0;
  int first_slot = 0, num_clusters = 0, num_slots = 0;
};

// Passed by value to every kernel. Grids name KV heads by blockIdx.z.
struct BuildParams {
  KvCacheView kv;  // in device memory
  MetricFactorView metric;
  IndexedTokens tokens;
  int num_kv_heads = 0;
  int head_dim = 0;
  int cluster_size = 0;
  int segment_tokens = 0;
  int num_segments = 0;
  int slots_per_segment = 0;  // of every segment but the last
  int num_slots = 0;
  int max_code_blocks = 0;  // 0: no residual codes
  int iterations = 0;
  int round = 0;
  uint64_t seed = 0;
  IndexArrays index;
  BuildWorkspace workspace;

  QUORUM_HOST_DEVICE BuildSegment segment(int s) const {
    BuildSegment own;
    own.first_row = s * segment_tokens;
    own.num_rows = tokens.count - own.first_row < segment_tokens ? tokens.count - own.first_row : segment_tokens;
    own.first_slot = s * slots_per_segment;
    own.num_clusters = num_clusters_for(own.num_rows, cluster_size);
    own.num_slots = int(round_up(own.num_clusters, kClusterBlock));
    return own;
  }
  QUORUM_HOST_DEVICE int key_tiles() const { return int(ceil_div(tokens.count, kKeyTile)); }
  QUORUM_HOST_DEVICE int row_tiles() const { return int(ceil_div(tokens.count, kBuildRows)); }
  QUORUM_HOST_DEVICE int64_t padded_rows() const { return int64_t(tokens.count) + kRowPadding; }
  QUORUM_HOST_DEVICE bool residual_codes() const { return max_code_blocks > 0; }

  // Where the arrays of a head begin.
  QUORUM_HOST_DEVICE int64_t slots_of(int head) const { return int64_t(head) * num_slots; }
  QUORUM_HOST_DEVICE int64_t indptr_of(int head) const { return int64_t(head) * (num_slots + 1); }
  QUORUM_HOST_DEVICE int64_t tokens_of(int head) const { return int64_t(head) * tokens.count; }
  QUORUM_HOST_DEVICE int64_t square_of(int head) const { return int64_t(head) * head_dim * head_dim; }
  QUORUM_HOST_DEVICE int32_t& changed(int r, int s, int head) const {
    return workspace.changed[(int64_t(head) * (iterations + 1) + r) * num_segments + s];
  }
  // Whether the search of this round has anything to do: the clusters of a segment in which no token moved are final.
  QUORUM_HOST_DEVICE bool searches(int s, int head) const { return round == 0 || changed(round - 1, s, head) != 0; }
};

}  // namespace quorum::cuda
