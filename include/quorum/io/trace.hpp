// A recorded attention layer: keys and values of a sequence and the queries that saw them, from one safetensors file.
#pragma once

#include <cmath>
#include <cstdio>
#include <locale>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "quorum/core/kv_cache_view.hpp"
#include "quorum/io/safetensors.hpp"

namespace quorum::io {

// Rows of vectors inside the file, contiguous: [num_rows][num_heads][head_dim]. Aligned to its elements.
struct TraceRows {
  const std::byte* data = nullptr;
  ElementType type = ElementType::f16;
  int num_rows = 0;
  int num_heads = 0;
  int head_dim = 0;

  int64_t head_bytes() const { return quorum::row_bytes(type, head_dim); }
  int64_t row_bytes() const { return head_bytes() * num_heads; }
};

// One layer of one sequence, after the rotary embedding: key i is position i, a query at position t sees keys 0..t.
//
// File: tensors keys, values [num_tokens][num_kv_heads][head_dim]; queries [num_queries][num_qo_heads][head_dim]; query_positions
//   [num_queries], I32; optionally prompt_queries [num_prompt_queries][num_qo_heads][head_dim], a sample of the prompt's own queries.
//   Vectors are f16, bf16 or f32, keys and values alike. Metadata: sm_scale (required); model, layer, text and others (free text).
// Memory: keeps the file mapped; views live as long as the Trace (moving it keeps them). Tensors that lie unaligned in the file are copied.
// Errors: as SafetensorsFile; Error(invalid_file) naming the file and the tensor or field: missing, wrong dtype or shape, sizes that
//   disagree, positions beyond the keys, NaN or infinity in the data, sm_scale that is no positive number.
// Cost: one pass over the data to check it.
struct Trace {
  std::string name;   // file name without folder and ending
  std::string model;  // metadata, may be empty
  std::string layer;  // metadata, may be empty
  TraceRows keys, values, queries, prompt_queries;
  std::vector<int32_t> query_positions;  // [num_queries]
  int num_tokens = 0;
  int num_kv_heads = 0;
  int num_qo_heads = 0;
  int head_dim = 0;
  int num_queries = 0;
  int num_prompt_queries = 0;
  float sm_scale = 0.0f;

  static Trace open(const std::string& path) { return from_file(SafetensorsFile::open(path)); }
  static Trace from_file(SafetensorsFile file);

  KvCacheView kv_cache() const {
    return {keys.data, values.data, keys.type, num_tokens, keys.row_bytes(), keys.head_bytes(), values.row_bytes(), values.head_bytes()};
  }
  QueryView query_view() const { return view(queries); }
  QueryView prompt_query_view() const { return view(prompt_queries); }

 private:
  static QueryView view(const TraceRows& rows) { return {rows.data, rows.type, rows.num_rows, rows.row_bytes(), rows.head_bytes()}; }
  static ElementType element_type(const Tensor& tensor);
  TraceRows read_rows(const std::string& tensor_name);
  void read_positions();
  void read_metadata();
  void check_sizes() const;
  [[noreturn]] void fail(const std::string& field, const std::string& rule, const std::string& got) const {
    throw_error(ErrorCode::invalid_file, "Trace", file_->name() + ": " + field, rule, got);
  }

  std::unique_ptr<SafetensorsFile> file_;
  std::vector<std::vector<std::byte>> copies_;  // of unaligned tensors
};

inline ElementType Trace::element_type(const Tensor& tensor) {
  return tensor.dtype == Dtype::f32 ? ElementType::f32 : tensor.dtype == Dtype::f16 ? ElementType::f16 : ElementType::bf16;
}

inline TraceRows Trace::read_rows(const std::string& tensor_name) {
  const Tensor& tensor = file_->tensor(tensor_name);
  const std::string label = "tensor '" + tensor_name + "', shape,";
  if (tensor.shape.size() != 3) fail(label, "of 3 dimensions [rows, heads, head_dim]", shape_text(tensor.shape));
  for (const int64_t size : tensor.shape) {
    if (size < 1 || size > std::numeric_limits<int32_t>::max()) fail(label, "of sizes 1 to 2147483647", shape_text(tensor.shape));
  }
  require_finite(tensor);  // refuses other dtypes than f32, f16 and bf16 too
  TraceRows rows{tensor.data, element_type(tensor), int(tensor.shape[0]), int(tensor.shape[1]), int(tensor.shape[2])};
  if (reinterpret_cast<uintptr_t>(rows.data) % uintptr_t(element_bytes(rows.type)) != 0) {
    copies_.emplace_back(tensor.data, tensor.data + tensor.bytes);  // new memory is aligned to every element type
    rows.data = copies_.back().data();
  }
  return rows;
}

inline void Trace::read_positions() {
  const Tensor& tensor = file_->tensor("query_positions");
  if (tensor.dtype != Dtype::i32) fail("tensor 'query_positions', dtype,", "I32", dtype_name(tensor.dtype));
  if (tensor.shape != std::vector<int64_t>{num_queries}) {
    fail("tensor 'query_positions', shape,", "[" + std::to_string(num_queries) + "] like the queries", shape_text(tensor.shape));
  }
  for (int i = 0; i < num_queries; ++i) {
    const auto position = load_element<int32_t>(tensor, i);
    if (position < 0 || position >= num_tokens) {
      fail("tensor 'query_positions', element " + std::to_string(i) + ",", "0 to " + std::to_string(num_tokens - 1),
           std::to_string(position));
    }
    query_positions.push_back(position);
  }
}

inline void Trace::read_metadata() {
  const auto& metadata = file_->metadata();
  const auto text = [&](const char* key) {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string() : it->second;
  };
  model = text("model");
  layer = text("layer");
  const std::string layout = text("layout"), scale = text("sm_scale");
  if (!layout.empty() && layout != "NHD") fail("'__metadata__', layout,", "NHD", "'" + layout + "'");
  std::istringstream stream(scale);
  stream.imbue(std::locale::classic());  // the file's decimal point is a point wherever the program runs
  stream >> std::noskipws >> sm_scale;
  if (stream.fail() || stream.peek() != EOF || !std::isfinite(sm_scale) || sm_scale <= 0.0f) {
    fail("'__metadata__', sm_scale,", "a positive number", "'" + scale + "'");
  }
}

inline void Trace::check_sizes() const {
  const auto same = [&](int got, int wanted, const char* field, const char* rule) {
    if (got != wanted) fail(field, rule + std::string(" (") + std::to_string(wanted) + ")", std::to_string(got));
  };
  same(values.num_rows, num_tokens, "tensor 'values', number of tokens,", "that of the keys");
  same(values.num_heads, num_kv_heads, "tensor 'values', number of heads,", "that of the keys");
  same(values.head_dim, head_dim, "tensor 'values', head_dim,", "that of the keys");
  same(queries.head_dim, head_dim, "tensor 'queries', head_dim,", "that of the keys");
  if (values.type != keys.type)
    fail("tensor 'values', dtype,", element_name(keys.type) + std::string(" like the keys"), element_name(values.type));
  if (num_qo_heads % num_kv_heads != 0) {
    fail("tensor 'queries', number of heads,", "a multiple of the keys' " + std::to_string(num_kv_heads), std::to_string(num_qo_heads));
  }
  if (num_prompt_queries == 0) return;
  same(prompt_queries.num_heads, num_qo_heads, "tensor 'prompt_queries', number of heads,", "that of the queries");
  same(prompt_queries.head_dim, head_dim, "tensor 'prompt_queries', head_dim,", "that of the keys");
}

inline Trace Trace::from_file(SafetensorsFile file) {
  Trace trace;
  trace.file_ = std::make_unique<SafetensorsFile>(std::move(file));
  const std::string& path = trace.file_->name();
  const std::string base = path.substr(path.find_last_of('/') + 1);  // npos + 1 is 0
  trace.name = base.substr(0, base.rfind(".safetensors"));
  trace.read_metadata();
  trace.keys = trace.read_rows("keys");
  trace.values = trace.read_rows("values");
  trace.queries = trace.read_rows("queries");
  if (trace.file_->find("prompt_queries") != nullptr) trace.prompt_queries = trace.read_rows("prompt_queries");
  trace.num_tokens = trace.keys.num_rows;
  trace.num_kv_heads = trace.keys.num_heads;
  trace.head_dim = trace.keys.head_dim;
  trace.num_queries = trace.queries.num_rows;
  trace.num_qo_heads = trace.queries.num_heads;
  trace.num_prompt_queries = trace.prompt_queries.num_rows;
  trace.check_sizes();
  trace.read_positions();
  return trace;
}

}  // namespace quorum::io
