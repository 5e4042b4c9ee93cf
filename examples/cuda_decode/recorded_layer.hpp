// The host's side of examples/cuda_decode.cu: a recorded layer, and the same step on the CPU with an index of its
// own. nvcc sees this header only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "quorum/core/decode_report.hpp"
#include "quorum/core/kv_cache_view.hpp"
#include "quorum/core/options.hpp"
#include "quorum/core/shape.hpp"

class RecordedLayer {
 public:
  // Errors: quorum::Error, for example when the file is not there.
  explicit RecordedLayer(const std::string& path);
  ~RecordedLayer();

  quorum::AttentionShape shape() const;
  quorum::DecodeOptions options() const;
  quorum::IndexOptions index_options() const;
  int num_tokens() const;
  const std::byte* keys() const;    // [num_tokens][num_kv_heads][head_dim], f16
  const std::byte* values() const;  // the same
  const std::byte* query() const;   // [num_qo_heads][head_dim], f16: the last one recorded, which stands at the last token
  quorum::QueryView prompt_queries() const;

  // Decodes on the CPU, sparse and dense, and prints what the GPU and the CPU read. True if both are near the dense output.
  bool compare(const std::vector<float>& output, const std::vector<quorum::HeadReport>& reports) const;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};
