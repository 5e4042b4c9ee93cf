// What each variant exports: plain functions over plain pointers, so that no inline function crosses the border of a module.
#pragma once

#include <cstdint>

extern "C" {

// The instruction set the module was compiled for.
const char* variant_instruction_set();

// One query of four heads over one KV head of 64 dimensions: dense and sparse attention. keys, values [num_tokens][64]; queries, dense,
// sparse [4][64]; tokens_read [4]. Returns 0, or 1 and writes nothing that counts when something failed; never throws.
int variant_decode(const float* keys, const float* values, const float* queries, int num_tokens, float* dense, float* sparse,
                   int32_t* tokens_read);
}
