// The C interface that lane.py calls through ctypes. A lane is one setting of the end-to-end run: the KV caches, the indexes and the
// decoder of every layer. Strings are UTF-8 and belong to the library; functions that can fail say so, lane_error() says why.
#pragma once

#include <cstdint>

extern "C" {

struct Lane;

struct LaneShape {
  int32_t num_layers;
  int32_t num_qo_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t max_tokens;  // of the prompt and the decoded positions together
};

struct LanePrompt {
  const uint16_t* keys;         // [num_tokens][num_kv_heads][head_dim], f16, after RoPE
  const uint16_t* values;       // likewise
  const float* prompt_queries;  // [num_prompt_queries][num_qo_heads][head_dim], after RoPE
  int32_t num_tokens;
  int32_t num_prompt_queries;
};

struct LaneStep {
  const float* query;     // [num_qo_heads][head_dim], after RoPE
  const float* key;       // [num_kv_heads][head_dim], after RoPE
  const float* value;     // [num_kv_heads][head_dim]
  float* output;          // [num_qo_heads][head_dim]
  double* report;         // [num_qo_heads][columns of lane_report_columns()]
  double append_seconds;  // out: the index takes the token in
  double decode_seconds;  // out: attention alone
};

// The message of the last failure in this thread.
const char* lane_error();

// Comma-separated names of what a step reports of each query head.
const char* lane_report_columns();

// Names and numbers of options as settings.py reads them; what is not named keeps the library's default. Null on failure.
Lane* lane_create(const LaneShape* shape, int32_t num_options, const char* const* names, const double* numbers);
void lane_destroy(Lane* lane);

// Copies the prompt's keys and values into the cache of a layer and indexes them. False on failure.
bool lane_prefill(Lane* lane, int32_t layer, const LanePrompt* prompt);

// Appends a token to the cache and to the index of a layer, then attends. False on failure.
bool lane_decode(Lane* lane, int32_t layer, LaneStep* step);

}  // extern "C"
