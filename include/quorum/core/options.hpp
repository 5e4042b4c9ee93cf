// Every setting a caller can choose, with its consequence, and the check of each.
#pragma once

#include <cmath>

#include "quorum/core/cluster_estimate.hpp"
#include "quorum/core/error.hpp"
#include "quorum/core/tail_estimate.hpp"

namespace quorum {

// Largest number of tokens or clusters in an option or limit: sums and rounded-up sizes of them stay inside an int.
inline constexpr int kMaxCount = 1 << 30;

// How centroids and value means are kept.
enum class IndexStorage : uint8_t {
  int8,  // one byte a coordinate and a scale a row: no measurable loss of accuracy
  f32,   // four times the bytes; to compare
};

// How an index is built. Defaults are the ones the accuracy tables were made with.
struct IndexOptions {
  // Mean number of tokens in a cluster: 32 where residual codes choose among them, about 16 where clusters are read as a whole. Doubling it
  // halves what scoring reads and costs about 12 % more tokens of whole clusters at equal attained ratio.
  int cluster_size = 32;
  // Tokens clustered together. Longer segments find slightly better clusters; building costs segment_tokens / cluster_size
  // distances a token and iteration.
  int segment_tokens = 8192;
  // Rounds of Lloyd's algorithm; stops early once no token moves.
  int iterations = 10;
  // First tokens of the sequence: never indexed, always read.
  int num_sink_tokens = 4;
  // Newest tokens that stay unindexed, hence always read.
  int window_tokens = 0;
  // Tokens that wait beyond window_tokens before they are clustered. Larger: less work, more tokens always read.
  int recluster_every = 64;
  // Appended tokens are clustered together with the newest segment until it holds a quarter of this; segments of less than half of it are
  // clustered anew together once they hold all of it. At equal error, clusters among 512 tokens read 20 % more bytes than among 8192, among
  // 1024 tokens 0 to 20 %, among 4096 no more (docs/performance.md). At most segment_tokens; 0: every append that is due is a segment.
  int merge_tokens = 4096;
  // Pieces of clustering that one append() does at most, so that no step waits long; 0: all that is due. A piece is about 512 * head_dim^2
  // multiplications; clustering n tokens takes about 1 + n / 150 of them for each KV head.
  int pieces_per_append = 0;
  // Weight of the identity in the query metric, [1e-4, 1]: 1 is plain L2, smaller trusts the sampled queries more.
  float metric_shrinkage = 0.05f;
  IndexStorage storage = IndexStorage::int8;
  // `diagonal` stores head_dim + 4 more bytes a cluster and allows either model when decoding; otherwise none or shared.
  VarianceModel variance = VarianceModel::shared;
  // One bit a coordinate and a scale for every token: lets decoding choose tokens inside clusters. head_dim / 8 + 2 bytes a token, a
  // quarter more for the unfilled ends of clusters.
  bool residual_codes = true;
  // Seeds the random rotation of the coordinates.
  uint64_t seed = 1;
};

// What to do when the certified bound stays below the target.
enum class MissPolicy : uint8_t {
  accept,  // report it
  widen,   // read on, up to max_rounds times, then report
  dense,   // widen, and attend to everything if the bound still misses
};

// The sampled certificate of the attained ratio.
struct CertificateOptions {
  bool enabled = false;
  MissPolicy policy = MissPolicy::widen;
  float confidence = 0.95f;  // one-sided confidence of the reported bound, (0.5, 1)
  int max_rounds = 3;        // widenings, 0..8
  // Unread tokens drawn per KV head and round, 2..256. Against 64 draws, 128 read fewer tokens for the same bytes and miss less.
  int num_samples = 128;
};

// Whose target a set of tokens has to meet.
enum class SelectionScope : uint8_t {
  group,  // one set per KV head; every query head of the group meets its target and attends to the whole set
  head,   // one set per query head: fewer tokens a head, more bytes in total; to study
};

// How several query rows of a sequence come to their tokens.
enum class RowSets : uint8_t {
  shared,  // rows share a set, as many as make up to 16 heads with those of a group: each meets its target, the set is read once
  own,     // each row has a set of its own
};

// What is chosen and read.
enum class ReadUnit : uint8_t {
  automatic,  // tokens where the index has residual codes, clusters elsewhere
  clusters,   // whole clusters
  tokens,     // single tokens; every index must have residual codes
};

struct DecodeOptions {
  // Share of the attention weight to reach, (0, 1]; 1 attends to everything.
  float target_ratio = 0.9f;
  // Bounds on the indexed tokens chosen per KV head, in whole clusters; sinks and window come on top.
  int min_tokens = 0;
  int max_tokens = kMaxCount;
  // If positive: ignore target_ratio and read the best clusters or tokens until this many tokens.
  int fixed_budget = 0;
  // If positive, (0, 1): ignore target_ratio and choose tokens until the estimated error of the output, relative to its length, is no
  // larger. Needs residual codes. A knob, no promise: means came out between 0.8 and 1.4 times what was asked, single heads and steps
  // between half and 2.7 times (docs/performance.md).
  float target_error = 0.0f;
  Tail tail = Tail::calibrated;
  CertificateOptions certificate;
  // Unread tokens drawn per KV head for the calibrated tail, 2..256; with a certificate its own number counts if it is larger.
  int num_samples = 64;
  VarianceModel variance = VarianceModel::shared;
  SelectionScope scope = SelectionScope::group;
  ReadUnit unit = ReadUnit::automatic;
  RowSets rows = RowSets::shared;
  // Share of the weight whose clusters are looked at token by token, [0.5, 1]; 0: by what is asked for, see candidate_coverage().
  float candidate_coverage = 0.0f;
  // Sequences with at most this many tokens are attended densely: about where a sparse step at target 0.9 begins to be the faster one
  // (measured: docs/performance.md).
  int dense_below = 2048;
  // Seeds the sample. The same seed, sequence and length draw the same tokens.
  uint64_t seed = 1;
};

// Share of every head's weight that candidate clusters must hold. A target ratio needs its tokens among them and wants the heavy ones that
// clusters hide; a target error cannot be better than what is left outside allows. Measured: docs/performance.md.
constexpr float candidate_coverage(const DecodeOptions& options) {
  if (options.candidate_coverage > 0.0f) return options.candidate_coverage;
  if (options.fixed_budget > 0) return 0.95f;
  if (options.target_error > 0.0f) {
    const float coverage = 1.0f - 0.5f * options.target_error;
    return coverage < 0.9f ? 0.9f : coverage > 0.99f ? 0.99f : coverage;
  }
  return 1.0f - (1.0f - options.target_ratio) / 10.0f;
}

// Draws of one round.
constexpr int samples_per_round(const DecodeOptions& options) {
  const int certified = options.certificate.enabled ? options.certificate.num_samples : 0;
  return certified > options.num_samples ? certified : options.num_samples;
}

// What a plan is sized for.
struct DecodeLimits {
  int max_sequences = 1;
  int max_tokens = 0;    // longest sequence
  int max_clusters = 0;  // most clusters of one KV head; 0: max_tokens / 4 + 16
  int num_workers = 1;   // most workers the executor will run
  int max_rows = 1;      // most query rows of one sequence
};

// Errors: Error(invalid_argument) naming the member, its rule and its value.
inline void validate(const IndexOptions& options, const char* function) {
  require(options.cluster_size >= 1 && options.cluster_size <= 1024, function, "options.cluster_size", "1 to 1024", options.cluster_size);
  require(options.segment_tokens >= options.cluster_size && options.segment_tokens <= 65536, function, "options.segment_tokens",
          "cluster_size to 65536", options.segment_tokens);
  require(options.iterations >= 1 && options.iterations <= 1000, function, "options.iterations", "1 to 1000", options.iterations);
  require(options.num_sink_tokens >= 0 && options.num_sink_tokens <= kMaxCount, function, "options.num_sink_tokens", "0 to 2^30",
          options.num_sink_tokens);
  require(options.window_tokens >= 0 && options.window_tokens <= kMaxCount, function, "options.window_tokens", "0 to 2^30",
          options.window_tokens);
  require(options.recluster_every >= 1 && options.recluster_every <= kMaxCount, function, "options.recluster_every", "1 to 2^30",
          options.recluster_every);
  require(options.merge_tokens >= 0 && options.merge_tokens <= kMaxCount, function, "options.merge_tokens", "0 to 2^30",
          options.merge_tokens);
  require(options.pieces_per_append >= 0 && options.pieces_per_append <= kMaxCount, function, "options.pieces_per_append", "0 to 2^30",
          options.pieces_per_append);
  require(options.metric_shrinkage >= 1e-4f && options.metric_shrinkage <= 1.0f, function, "options.metric_shrinkage", "in [1e-4, 1]",
          options.metric_shrinkage);
}

inline void validate(const CertificateOptions& options, const char* function) {
  require(options.confidence > 0.5f && options.confidence < 1.0f, function, "options.certificate.confidence", "in (0.5, 1)",
          options.confidence);
  require(options.max_rounds >= 0 && options.max_rounds <= 8, function, "options.certificate.max_rounds", "0 to 8", options.max_rounds);
  require(options.num_samples >= 2 && options.num_samples <= 256, function, "options.certificate.num_samples", "2 to 256",
          options.num_samples);
}

inline void validate(const DecodeOptions& options, const char* function) {
  require(options.target_ratio > 0.0f && options.target_ratio <= 1.0f, function, "options.target_ratio", "in (0, 1]", options.target_ratio);
  require(options.min_tokens >= 0, function, "options.min_tokens", "at least 0", options.min_tokens);
  require(options.max_tokens >= options.min_tokens, function, "options.max_tokens", "at least options.min_tokens", options.max_tokens);
  require(options.fixed_budget >= 0, function, "options.fixed_budget", "at least 0", options.fixed_budget);
  require(options.num_samples >= 2 && options.num_samples <= 256, function, "options.num_samples", "2 to 256", options.num_samples);
  require(options.candidate_coverage == 0.0f || (options.candidate_coverage >= 0.5f && options.candidate_coverage <= 1.0f), function,
          "options.candidate_coverage", "0 or in [0.5, 1]", options.candidate_coverage);
  require(options.target_error >= 0.0f && options.target_error < 1.0f, function, "options.target_error", "in [0, 1)", options.target_error);
  require(options.target_error == 0.0f || options.unit != ReadUnit::clusters, function, "options.target_error", "0 with ReadUnit::clusters",
          options.target_error);
  require(options.target_error == 0.0f || !options.certificate.enabled, function, "options.target_error", "0 with a certificate",
          options.target_error);
  require(options.dense_below >= 0, function, "options.dense_below", "at least 0", options.dense_below);
  validate(options.certificate, function);
}

inline void validate(const DecodeLimits& limits, const char* function) {
  require(limits.max_sequences >= 1, function, "limits.max_sequences", "at least 1", limits.max_sequences);
  require(limits.max_tokens >= 1 && limits.max_tokens <= kMaxCount, function, "limits.max_tokens", "1 to 2^30", limits.max_tokens);
  require(limits.max_clusters >= 0 && limits.max_clusters <= kMaxCount, function, "limits.max_clusters", "0 to 2^30", limits.max_clusters);
  require(limits.num_workers >= 1 && limits.num_workers <= 1024, function, "limits.num_workers", "1 to 1024", limits.num_workers);
  require(limits.max_rows >= 1 && limits.max_rows <= 1024, function, "limits.max_rows", "1 to 1024", limits.max_rows);
}

}  // namespace quorum
