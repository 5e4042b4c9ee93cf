// torch.classes.quorum.ClusterIndex: the index of one sequence in one layer, owned by Python, found by operators through its handle.
#pragma once

#include <torch/custom_class.h>

#include <span>

#include "examples/torch/csrc/options.hpp"
#include "quorum/cpu/cluster_index.hpp"

namespace quorum::torch_adapter {

// Operators take tensors; so an index goes to them as a number, valid while the object lives. 0 is no index.
//
// Shapes: key and value [kv_head][token][head_dim] of one sequence, any strides but the last; queries [qo_head][row][head_dim]. Errors: all
// functions raise ValueError with the library's message. Caller: as quorum::ClusterIndex, one writer at a time.
class IndexHolder : public torch::CustomClassHolder {
 public:
  IndexHolder(int64_t num_qo_heads, int64_t num_kv_heads, int64_t head_dim, double sm_scale, const OptionDict& options);
  explicit IndexHolder(ClusterIndex index);
  ~IndexHolder() override;

  void build(const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& queries);
  void append(const at::Tensor& key, const at::Tensor& value);
  void truncate(int64_t num_tokens);
  void erase(int64_t begin, int64_t end);
  void overwrite(int64_t begin, int64_t end);
  void invalidate(int64_t begin, int64_t end);
  c10::intrusive_ptr<IndexHolder> fork() const { return c10::make_intrusive<IndexHolder>(index_); }
  at::Tensor save() const;
  // The index that save() wrote; the shape is this one's.
  c10::intrusive_ptr<IndexHolder> load(const at::Tensor& bytes) const;

  int64_t num_tokens() const { return index_.num_tokens(); }
  int64_t num_live_tokens() const { return index_.num_live_tokens(); }
  int64_t bytes() const { return index_.bytes(); }
  int64_t handle() const { return handle_; }
  const ClusterIndex& index() const { return index_; }

 private:
  ClusterIndex index_;
  int64_t handle_;
};

// The index of a handle, null for 0. Errors: ValueError if no such index lives.
const ClusterIndex* find_index(int64_t handle, const char* function);

// Bytes of several indexes, what forks share counted once.
int64_t total_index_bytes(const std::vector<c10::intrusive_ptr<IndexHolder>>& indexes);

}  // namespace quorum::torch_adapter
