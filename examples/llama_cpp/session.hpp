// A model and a context of llama.cpp, for the programs of this folder: as much of llama.h as they need, owned and checked.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace quorum_ggml {

// "--name value" after the positional arguments; unknown names are refused.
class Arguments {
 public:
  // Errors: std::runtime_error naming the program.
  Arguments(int argc, char** argv, size_t num_positional, std::map<std::string, std::string> defaults) : values_(std::move(defaults)) {
    const std::string program = argv[0];
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      if (argument.rfind("--", 0) != 0) {
        positional_.push_back(argument);
      } else if (values_.count(argument.substr(2)) == 0 || i + 1 == argc) {
        throw std::runtime_error(program + ": unknown or incomplete option " + argument);
      } else {
        values_[argument.substr(2)] = argv[++i];
      }
    }
    if (positional_.size() != num_positional) throw std::runtime_error(program + ": takes " + std::to_string(num_positional) + " files");
  }
  const std::string& file(size_t i) const { return positional_[i]; }
  const std::string& text(const std::string& name) const { return values_.at(name); }
  int number(const std::string& name) const { return std::stoi(values_.at(name)); }

 private:
  std::vector<std::string> positional_;
  std::map<std::string, std::string> values_;
};

inline std::string read_text(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

class Session {
 public:
  static constexpr int kBatch = 512;  // tokens of a prompt that are read together

  struct Options {
    int context = 8192;
    int threads = 2;
    bool flash = true;  // llama.cpp's -fa
    int sequences = 1;
    bool unified = true;  // one cache for all sequences
    ggml_backend_sched_eval_callback on_node = nullptr;
    void* on_node_data = nullptr;
  };

  // Errors: std::runtime_error.
  Session(const std::string& model_path, const Options& options) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    ggml_backend_load_all();
    model_.reset(llama_model_load_from_file(model_path.c_str(), llama_model_default_params()));
    if (model_ == nullptr) throw std::runtime_error("cannot load " + model_path);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = uint32_t(options.context);
    params.n_batch = params.n_ubatch = kBatch;
    params.n_seq_max = uint32_t(options.sequences);
    params.n_threads = params.n_threads_batch = options.threads;
    params.flash_attn_type = options.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.kv_unified = options.unified;
    params.cb_eval = options.on_node;
    params.cb_eval_user_data = options.on_node_data;
    params.no_perf = true;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (context_ == nullptr) throw std::runtime_error("cannot make a context for " + model_path);
    batch_ = llama_batch_init(kBatch, 0, 1);
  }
  ~Session() { llama_batch_free(batch_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  llama_context* context() const { return context_.get(); }
  llama_memory_t memory() const { return llama_get_memory(context_.get()); }
  const llama_model* model() const { return model_.get(); }
  const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
  int vocabulary_size() const { return llama_vocab_n_tokens(vocab()); }

  std::vector<llama_token> tokenize(const std::string& text, bool special) const {
    std::vector<llama_token> tokens(text.size() + 8);
    const int count = llama_tokenize(vocab(), text.data(), int(text.size()), tokens.data(), int(tokens.size()), special, special);
    if (count < 0) throw std::runtime_error("the text cannot be tokenized");
    tokens.resize(size_t(count));
    return tokens;
  }
  std::string piece(llama_token token) const {
    char text[256];
    const int length = llama_token_to_piece(vocab(), token, text, sizeof(text), 0, true);
    return {text, size_t(length > 0 ? length : 0)};
  }

  // Reads tokens at positions from `position` on. Returns the logits of the last one, valid until the next call.
  std::span<const float> decode(std::span<const llama_token> tokens, int position, int sequence = 0) {
    for (size_t first = 0; first < tokens.size(); first += kBatch) {
      const size_t count = std::min(size_t(kBatch), tokens.size() - first);
      batch_.n_tokens = int(count);
      for (size_t i = 0; i < count; ++i) {
        batch_.token[i] = tokens[first + i];
        batch_.pos[i] = position + int(first + i);
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = sequence;
        batch_.logits[i] = first + i + 1 == tokens.size();
      }
      if (const int status = llama_decode(context_.get(), batch_); status != 0)
        throw std::runtime_error("llama_decode failed with status " + std::to_string(status));
    }
    return {llama_get_logits_ith(context_.get(), -1), size_t(vocabulary_size())};
  }

 private:
  std::unique_ptr<llama_model, decltype(&llama_model_free)> model_{nullptr, llama_model_free};
  std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, llama_free};
  llama_batch batch_{};
};

}  // namespace quorum_ggml
