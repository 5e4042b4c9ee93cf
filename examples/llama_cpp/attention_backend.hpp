// The plug-in's work for one context of the engine: its caches' indexes, its decoders and threads.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <unordered_map>

#include "quorum/cpu/decode.hpp"

#include "attention_node.hpp"
#include "cache_follower.hpp"
#include "engine_cpu.hpp"
#include "settings.hpp"
#include "statistics.hpp"
#include "visible_cells.hpp"

namespace quorum_ggml {

class AttentionBackend {
 public:
  explicit AttentionBackend(const Settings& settings);
  ~AttentionBackend() { write_statistics(statistics(), settings_.stats_file); }
  AttentionBackend(const AttentionBackend&) = delete;
  AttentionBackend& operator=(const AttentionBackend&) = delete;

  // As the engine says before each graph. Cost: nothing unless it has changed.
  void set_num_threads(int num_threads);

  // Computes one attention node. Errors: a status that is not success; never throws.
  ggml_status attend(ggml_tensor* op) noexcept;

  // Every cache is looked at anew: for an engine that changes keys in place and knows it.
  void invalidate();

  Statistics statistics() const;

 private:
  // Layers whose keys lie in one buffer are written together, so the first of a step answers for all of them. One for each stream.
  struct Cache {
    uint64_t step = 0;
    bool changed = false;    // the first layer's cells have, in this step
    bool has_built = false;  // a layer has had its first index in this step
  };
  struct Layer {
    std::unique_ptr<CacheFollower> follower;
    quorum::ElementType type = quorum::ElementType::f16;
    uint64_t step = 0;  // of the last call
  };

  ggml_status attend_rows(const AttentionNode& node, ggml_tensor* op);
  ggml_status hand_on(const AttentionNode& node, ggml_tensor* op);
  bool decode(const AttentionNode& node, int stream);
  CacheFollower& follow(const AttentionNode& node, int stream, int extent, bool prefill);
  Layer& layer_of(const AttentionNode& node, int stream);
  quorum::Decoder& decoder_for(const quorum::AttentionShape& shape, int num_tokens, int num_clusters);
  quorum::Executor& executor();

  Settings settings_;
  EngineCpu cpu_;
  int num_threads_ = 1;
  std::map<int, std::unique_ptr<quorum::Executor>> executors_;  // by number of workers
  std::map<std::pair<const void*, int64_t>, Cache> caches_;     // by the buffer that holds the keys and the stream
  std::unordered_map<const void*, Layer> layers_;               // by the first key of a stream
  std::vector<std::unique_ptr<quorum::Decoder>> decoders_;      // one a shape
  std::vector<VisibleCells> visible_;                           // [streams of the call]
  std::vector<quorum::HeadReport> reports_;
  Statistics statistics_;
};

}  // namespace quorum_ggml
