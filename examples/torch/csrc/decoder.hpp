// torch.classes.quorum.Decoder: a plan for layers of one shape and one set of options, and what its steps have read so far.
#pragma once

#include <torch/custom_class.h>

#include <memory>
#include <mutex>
#include <vector>

#include "examples/torch/csrc/options.hpp"
#include "examples/torch/csrc/tensor_views.hpp"
#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"

namespace quorum::torch_adapter {

// Sums over all calls and query heads. Bytes are of KV heads: query heads and rows that share a set count it once.
struct StepTotals {
  double calls = 0, heads = 0, sparse_heads = 0, tokens_read = 0, tokens_visible = 0, bytes_read = 0, bytes_dense = 0;
  double attained_ratio = 0, lower_bound = 0, error_estimate = 0;
  double paths[8] = {};  // by DecodePath
};

// What an operator hands to a step: views into the caller's tensors.
struct Step {
  QueryView queries;
  std::vector<SequenceView> sequences;
  std::vector<const ClusterIndex*> indexes;  // of the sequences, null: none
  std::vector<uint64_t> mask_words;
  std::vector<HeadReport> reports;
};

// Keeps its plan as long as it is large enough: then a step allocates nothing but the tensors it returns. Operators find it by its handle.
// Calls from several threads wait for one another.
class DecoderHolder : public torch::CustomClassHolder {
 public:
  // Errors: ValueError with the library's message.
  DecoderHolder(int64_t num_qo_heads, int64_t num_kv_heads, int64_t head_dim, double sm_scale, double logit_softcap,
                const OptionDict& options);
  ~DecoderHolder() override;

  int64_t handle() const { return handle_; }
  const AttentionShape& shape() const { return shape_; }
  // Sums by name since the start or the last reset.
  c10::Dict<std::string, double> statistics() const;
  void reset_statistics();

  // Runs work(decoder, step, executor) alone, with a plan that is large enough for the step that fill(step) describes.
  template <class Fill, class Work>
  void run(Fill&& fill, Work&& work) {
    std::lock_guard lock(mutex_);
    step_.sequences.clear();
    step_.indexes.clear();
    fill(step_);
    OpenMpExecutor executor(num_workers());
    translate_errors([&] { grow(executor.num_workers()); });
    work(*decoder_, step_, executor);
  }
  void count(std::span<const HeadReport> reports);

 private:
  void grow(int workers);

  AttentionShape shape_;
  DecodeOptions options_;
  DecodeLimits limits_;
  std::unique_ptr<Decoder> decoder_;
  Step step_;
  StepTotals totals_;
  mutable std::mutex mutex_;
  int64_t handle_;
};

// Errors: ValueError if no such decoder lives.
DecoderHolder& find_decoder(int64_t handle, const char* function);

}  // namespace quorum::torch_adapter
