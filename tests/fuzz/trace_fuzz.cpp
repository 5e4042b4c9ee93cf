// Trace: sizes of an accepted trace agree, its rows are finite, aligned and all there, its positions point at keys.
#include "quorum/io/trace.hpp"

#include "tests/fuzz/safetensors_input.hpp"

using namespace quorum;
using fuzz::expect;
using io::Trace;

namespace {

float element(const std::byte* row, ElementType type, int i) {
  io::Tensor one{"", "", io::Dtype::f32, {}, row + i * element_bytes(type), size_t(element_bytes(type))};
  one.dtype = type == ElementType::f32 ? io::Dtype::f32 : type == ElementType::f16 ? io::Dtype::f16 : io::Dtype::bf16;
  return io::to_floats(one)[0];
}

void check_row(const std::byte* row, ElementType type, int head_dim) {
  expect(reinterpret_cast<uintptr_t>(row) % uintptr_t(element_bytes(type)) == 0, "rows are aligned to their elements");
  fuzz::touch(row, size_t(head_dim) * size_t(element_bytes(type)));
  for (int i = 0; i < head_dim; ++i) expect(std::isfinite(element(row, type, i)), "rows are finite");
}

void check_queries(const QueryView& queries, int num_heads, int head_dim) {
  for (int r = 0; r < queries.num_rows; ++r)
    for (int h = 0; h < num_heads; ++h) check_row(queries.row(r, h), queries.type, head_dim);
}

void check(const Trace& trace) {
  expect(trace.num_tokens > 0 && trace.num_kv_heads > 0 && trace.head_dim > 0 && trace.num_queries > 0, "sizes are positive");
  expect(trace.num_qo_heads % trace.num_kv_heads == 0, "query heads divide among KV heads");
  expect(trace.sm_scale > 0.0f && std::isfinite(trace.sm_scale), "sm_scale is positive");
  const KvCacheView kv = trace.kv_cache();
  for (int t = 0; t < kv.num_tokens; ++t)
    for (int h = 0; h < trace.num_kv_heads; ++h) {
      check_row(kv.key_row(t, h), kv.type, trace.head_dim);
      check_row(kv.value_row(t, h), kv.type, trace.head_dim);
    }
  expect(trace.query_view().num_rows == trace.num_queries, "a view of all queries");
  check_queries(trace.query_view(), trace.num_qo_heads, trace.head_dim);
  check_queries(trace.prompt_query_view(), trace.num_qo_heads, trace.head_dim);
  expect(int(trace.query_positions.size()) == trace.num_queries, "a position for each query");
  for (const int32_t position : trace.query_positions) expect(position >= 0 && position < trace.num_tokens, "positions point at keys");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::accepts([&] {
    Trace read = Trace::from_file(io::SafetensorsFile::parse(fuzz::input_bytes(data, size), fuzz::kInputName));
    const Trace trace = std::move(read);  // moving keeps the views
    ++fuzz::num_accepted;
    check(trace);
  });
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return fuzz::mutate_safetensors(data, size, max_size, seed, fuzz::random_trace);
}
