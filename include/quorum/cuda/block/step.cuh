// What the kernels of a step get, and what they leave for one another: one structure for all, in the order of the stages.
#pragma once

#include "quorum/core/attention_output.hpp"
#include "quorum/core/attention_state.hpp"
#include "quorum/core/decode_plan.hpp"
#include "quorum/core/flat_index_view.hpp"
#include "quorum/core/paged_kv_view.hpp"
#include "quorum/core/sequence_view.hpp"

namespace quorum::cuda {

// A row is one KV head of one set of query rows: row = (sequence * num_sets + set) * num_kv_heads + kv_head. With one query row a sequence
// there is one set. What shares the row's tokens are its columns: the query heads of the first query row of the set, then of the next. What
// is to be attended for a row lies in three segments: what is read, what enters by value means, what is drawn.
enum class SegmentKind { listed, tail, draws };
inline constexpr int kSegmentKinds = 3;

// A place in the order in which clusters are read: buckets before `bucket`, and of its clusters by id the first `rank`.
struct OrderCut {
  int32_t bucket = 0;
  int32_t rank = 0;
};

// What select_tokens decided about a row. Weights are in units of exp(reference).
struct RowPlan {
  DecodePath path = DecodePath::sparse;
  bool widens = false;       // the bound missed in the round before: this one goes on
  bool complete = false;     // nothing is left unread
  int32_t first_token = 0;   // on a dense path tokens from it on are attended
  int32_t num_tokens = 0;    // no column sees one at or beyond
  int32_t num_always = 0;    // sinks and window, at the front of the list
  int32_t first_listed = 0;  // entries before it were attended in an earlier round
  int32_t num_listed = 0;    // entries of the list; on a dense path a run of tokens, and no list is needed
  int32_t num_draws = 0;
  int32_t num_tail = 0;                  // clusters whose value means are read
  int32_t num_sampled = 0;               // tokens drawn in all rounds
  int32_t num_rounds = 0;                // widenings
  int32_t first_round = 0;               // partial results of rounds before it do not count
  OrderCut cut;                          // clusters before it are listed
  uint32_t listed_steps[kMaxGroupSize];  // estimated shares of listed clusters, in steps of 2^-30
  float reference[kMaxGroupSize];        // log of the unit of weights
  float read[kMaxGroupSize];             // weight of what is listed, as far as it is known exactly
  float rest[kMaxGroupSize];             // estimated weight of what is not
  float rest_factor[kMaxGroupSize];      // correction of `rest` by the sample of the round before
  float used_rest[kMaxGroupSize];        // of the rest, what the tail's clusters hold
  bool misses[kMaxGroupSize];            // the head's bound misses the target: by merge, for the next round

  // With DecodePath::sparse_tokens.
  int32_t num_coded = 0;                   // tokens whose codes are scanned: those of the candidates
  int32_t num_code_blocks = 0;             // in so many blocks of codes
  int32_t token_bucket = -1;               // candidates' tokens of key buckets up to it are listed
  int32_t bucket_before = -1;              // up to this one they were in an earlier round
  float total[kMaxGroupSize];              // weight that was expected in all before codes were scanned: what shares are of
  float log_total[kMaxGroupSize];          // its log, the unit included
  float outside[kMaxGroupSize];            // expected weight of the clusters that are no candidates
  float used_outside[kMaxGroupSize];       // the same of those that enter the output, before codes were scanned
  float log_outside_scale[kMaxGroupSize];  // log of the factor with which these stand for all that is outside
  float listed[kMaxGroupSize];             // expected weight of what is listed in this round
  float output_square[kMaxGroupSize];      // with a target error: squared length of the output with nothing read but what always is
  float output_weight[kMaxGroupSize];      // its total weight
  float outside_squares[kMaxGroupSize];    // squared weights of clusters that are no candidates, over their sizes; shares of the total
  float error_estimate[kMaxGroupSize];     // of the output, relative
  float surprise[kMaxGroupSize];           // code_surprise() of what was read in the round before
};

// What a cluster is to the scan of codes, where it is not the key bucket of a candidate's first token.
inline constexpr uint16_t kNoCandidate = 0xffff;
inline constexpr uint16_t kEntersOutside = 0xfffe;  // no candidate, but its value mean enters the output

// One token drawn from the rest, and how many tokens it stands for.
struct TokenDraw {
  int32_t token = 0;
  float scale = 0.0f;
};

// What scoring needs of a column besides its int8 coordinates.
struct QueryConstants {
  float mean_score;     // q . mean_key
  float half_variance;  // half the score variance of a cluster of spread 1
  float square;         // |q'|^2
  float step;           // value of one step of the int8 query
  int32_t zero_dot;     // what the centroids' zero point adds to a dot product
};

// Where the stages leave their results: device memory of the caller.
struct StepWorkspace {
  int8_t* quantised = nullptr;               // [rows][16][head_dim], q' in steps, zero for heads beyond the group
  QueryConstants* constants = nullptr;       // [rows][16]
  float* scaled_queries = nullptr;           // [rows][16][head_dim], q times sm_scale; heads beyond the group are not there
  float* log_weight = nullptr;               // [rows][max_slots][group], log of the expected weight of a token
  AttentionState* cluster_weight = nullptr;  // [rows][score_tiles][group], sums over clusters
  AttentionState* always_weight = nullptr;   // [rows][score_tiles][group], sums over always-read tokens
  RowPlan* plan = nullptr;                   // [rows]
  int32_t* tokens = nullptr;                 // [rows][max_tokens]
  int32_t* tail_clusters = nullptr;          // [rows][max_slots]
  TokenDraw* draws = nullptr;                // [rows][num_draws]
  int32_t* counts = nullptr;                 // [rows][3], tokens to attend, clusters of the tail and draws of this round
  // Where tokens are chosen by their codes; a code block is one of the index, by its number there.
  uint16_t* cluster_key = nullptr;                // [rows][max_slots], kNoCandidate, kEntersOutside, or the best key bucket of its tokens
  float* tail_weight = nullptr;                   // [rows][max_slots][group], log of the unread weight over the number of tokens
  uint16_t* token_bucket = nullptr;               // [rows][max_code_blocks][16], key buckets of candidates' tokens
  unsigned long long* token_histogram = nullptr;  // [rows][group + 1][kNumKeyBuckets], see KeyHistogram
  uint32_t* tile_counts = nullptr;                // [rows][scan_tiles][kNumKeyBuckets], tokens by key bucket
  int32_t* tile_start = nullptr;                  // [rows][scan_tiles], place of the tile's first token in the row's list
  float* unread_weight = nullptr;           // [rows][scan_tiles][group], coded weight of what is not listed; before, what scanning expects
  float* unread_share = nullptr;            // [rows][max_slots], shares of a cluster's unread tokens by the lower ends of their buckets
  int32_t* unread_tokens = nullptr;         // [rows][max_slots], how many there are; both with a certificate only
  float* draw_weight = nullptr;             // [rows][num_draws][group], log of the drawn token's weight
  int32_t* tile_indptr = nullptr;           // [rounds][3 rows + 1], tiles of the segments before each
  AttentionState* partial_state = nullptr;  // [rounds][attend_blocks + 3 rows][group]
  float* partial_output = nullptr;          // [rounds][attend_blocks + 3 rows][group][head_dim], in units of exp(state's max)
};

struct StepParams {
  AttentionShape shape;  // sm_scale resolved
  DecodeOptions options;
  QueryView queries;  // rows [num_sequences][num_query_rows]
  PagedKvView kv;
  const FlatHeadView* heads = nullptr;  // [num_sequences][num_kv_heads]; null: attend densely
  AttentionOutput out;
  HeadReport* reports = nullptr;  // [num_sequences][num_query_rows][num_qo_heads], or null
  StepWorkspace workspace;
  int group = 1;           // columns of a row: query heads of all query rows that share its tokens
  int heads_per_row = 1;   // shape.group_size(), which costs a division
  int num_query_rows = 1;  // of every sequence
  int rows_per_set = 1;    // query rows that share a row's tokens
  int num_sets = 1;        // of a sequence
  bool causal = true;      // as in SequenceView
  int num_sequences = 0;
  int max_tokens = 0;
  int max_slots = 0;
  int score_tiles = 0;              // blocks that share the clusters of a row
  int select_blocks = 1;            // blocks that choose for a row together
  int scan_tiles = 0;               // blocks that share the codes of a row
  int attend_blocks = 0;            // blocks that share the attention of all rows
  bool by_tokens = false;           // rows whose index has codes choose single tokens
  float candidate_coverage = 0.0f;  // quorum::candidate_coverage(options)
  int num_draws = 0;
  float z = 0.0f;  // quantile of the certificate's confidence
  int round = 0;
  int num_rounds = 1;
  bool widens = true;    // a missed bound is followed by another round
  int dense_round = -1;  // the round that attends to everything where the bound still misses

  // Deals num_query_rows of every sequence to sets, as many as make up to kMaxGroupSize columns. `own`: a set for each of them.
  void deal_query_rows(int query_rows, bool is_causal, RowSets sets) {
    num_query_rows = query_rows;
    causal = is_causal;
    heads_per_row = shape.group_size();
    rows_per_set = max_shared_rows(sets, heads_per_row, query_rows);
    num_sets = int(ceil_div(query_rows, rows_per_set));
    group = rows_per_set * heads_per_row;
  }

  QUORUM_HOST_DEVICE int sets() const { return num_sequences * num_sets; }
  QUORUM_HOST_DEVICE int num_rows() const { return sets() * shape.num_kv_heads; }
  QUORUM_HOST_DEVICE int sequence_of(int row) const { return row / shape.num_kv_heads / num_sets; }
  QUORUM_HOST_DEVICE int kv_head_of(int row) const { return row % shape.num_kv_heads; }
  QUORUM_HOST_DEVICE const FlatHeadView& head(int row) const { return heads[sequence_of(row) * shape.num_kv_heads + kv_head_of(row)]; }

  // The query row of a column within its sequence, not below num_query_rows in columns that the last set has in excess; those compute what
  // the last query row does and write nothing. The same within the call's queries, and the column's query head.
  QUORUM_HOST_DEVICE int query_of(int row, int column) const {
    return row / shape.num_kv_heads % num_sets * rows_per_set + column / heads_per_row;
  }
  QUORUM_HOST_DEVICE int query_row(int row, int column) const {
    return sequence_of(row) * num_query_rows + last_if_beyond(query_of(row, column));
  }
  QUORUM_HOST_DEVICE int qo_head(int row, int column) const { return kv_head_of(row) * heads_per_row + column % heads_per_row; }

  // What a column sees: tokens of [begin, end) that have not been erased. `all`: what one of the row's columns does.
  QUORUM_HOST_DEVICE TokenFilter seen_by(int row, int column) const {
    return filter(row, end_of(row, query_of(row, column)), end_of(row, query_of(row, column)));
  }
  QUORUM_HOST_DEVICE TokenFilter seen_by_all(int row) const {
    return filter(row, end_of(row, query_of(row, 0)), end_of(row, query_of(row, group - 1)));
  }
  // Whether columns of a row may see different tokens.
  QUORUM_HOST_DEVICE bool columns_differ() const { return causal && rows_per_set > 1; }
  // Whether this round reads nothing but what always is, to know the output's length before tokens are chosen (algorithm.md eq. 18).
  QUORUM_HOST_DEVICE bool surveys() const { return options.target_error > 0.0f && round == 0; }
  // Whether rows that choose by code draw from what they leave: codes know the amount of the rest better than a sample that is worth its
  // keys (algorithm.md section 7), so that only the certificate asks for one.
  QUORUM_HOST_DEVICE bool samples_coded() const { return by_tokens && options.certificate.enabled; }
  // Most code blocks of a row: every cluster may leave one unfilled.
  QUORUM_HOST_DEVICE int64_t max_code_blocks() const { return by_tokens ? max_tokens / kCodeBlock + max_slots : 0; }
  QUORUM_HOST_DEVICE int num_partials() const { return attend_blocks + kSegmentKinds * num_rows(); }

  QUORUM_HOST_DEVICE DecodePath first_path(int row) const {
    if (heads == nullptr) return DecodePath::dense_by_length;
    const FlatHeadView& own = head(row);
    const TokenFilter seen = seen_by_all(row);
    const bool sees_index = seen.begin == 0 && end_of(row, query_of(row, 0)) >= own.indexed_end && seen.end >= own.always.num_known;
    const int num_visible = sees_index && !own.empty() ? own.num_always(seen.end) + own.num_indexed : seen.end - seen.begin;
    const DecodePath path = quorum::first_path({!own.empty(), own.non_finite, own.clusters.num_clusters}, num_visible, options, max_slots);
    if (path != DecodePath::sparse) return path;
    if (!sees_index) return DecodePath::dense_by_view;
    if (by_tokens && own.residual_codes) return DecodePath::sparse_tokens;
    return options.target_error > 0.0f ? DecodePath::dense_by_target : path;
  }

 private:
  QUORUM_HOST_DEVICE int last_if_beyond(int query) const { return query < num_query_rows ? query : num_query_rows - 1; }
  // No token at or beyond is seen by a query row of the row's sequence; not positive if it stands before the first token.
  QUORUM_HOST_DEVICE int end_of(int row, int query) const {
    const int num_tokens = kv.num_tokens[sequence_of(row)];
    return causal ? num_tokens - num_query_rows + 1 + last_if_beyond(query) : num_tokens;
  }
  QUORUM_HOST_DEVICE TokenFilter filter(int row, int first_end, int last_end) const {
    TokenFilter seen;
    if (heads != nullptr) {
      seen.live = head(row).live;
      seen.num_live = head(row).always.num_known;
    }
    seen.begin = SequenceView::window_begin(first_end, shape.sliding_window);
    seen.end = last_end > 0 ? last_end : 0;
    return seen;
  }
};

}  // namespace quorum::cuda
