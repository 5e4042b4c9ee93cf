// The engine's own CPU backend, to which the plug-in hands what it does not compute: prefill, and masks with biases.
#pragma once

#include <cstring>
#include <memory>

#include "ggml-backend.h"
#include "ggml.h"
#include "quorum/core/error.hpp"

namespace quorum_ggml {

class EngineCpu {
 public:
  // Errors: quorum::Error(invalid_argument) if the engine has no CPU backend.
  EngineCpu() : backend_(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr), ggml_backend_free) {
    if (backend_ == nullptr)
      quorum::throw_error(quorum::ErrorCode::invalid_argument, "EngineCpu", "the engine", "with a CPU backend", "none");
    set_n_threads_ =
        reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(registration(), "ggml_backend_set_n_threads"));
    context_.reset(ggml_init({2 * ggml_graph_overhead_custom(kNodes, false), nullptr, true}));
    graph_ = ggml_new_graph_custom(context_.get(), kNodes, false);
  }

  // Whether the engine computes in OpenMP's threads: then so should we, or two sets of threads spin for the same cores.
  bool uses_openmp() const {
    const auto get_features =
        reinterpret_cast<ggml_backend_get_features_t>(ggml_backend_reg_get_proc_address(registration(), "ggml_backend_get_features"));
    if (get_features == nullptr) return false;
    for (const ggml_backend_feature* feature = get_features(registration()); feature != nullptr && feature->name != nullptr; ++feature)
      if (std::strcmp(feature->name, "OPENMP") == 0) return true;
    return false;
  }

  void set_num_threads(int num_threads) {
    if (set_n_threads_ != nullptr) set_n_threads_(backend_.get(), num_threads);
  }

  ggml_status compute(ggml_tensor* node) {
    ggml_graph_clear(graph_);
    ggml_graph_add_node(graph_, node);
    return ggml_backend_graph_compute(backend_.get(), graph_);
  }

 private:
  static constexpr size_t kNodes = 8;

  ggml_backend_reg_t registration() const { return ggml_backend_dev_backend_reg(ggml_backend_get_device(backend_.get())); }

  struct FreeContext {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  std::unique_ptr<ggml_backend, decltype(&ggml_backend_free)> backend_;
  std::unique_ptr<ggml_context, FreeContext> context_;
  ggml_cgraph* graph_ = nullptr;
  ggml_backend_set_n_threads_t set_n_threads_ = nullptr;
};

}  // namespace quorum_ggml
