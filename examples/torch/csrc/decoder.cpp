#include "examples/torch/csrc/decoder.hpp"

#include <algorithm>
#include <unordered_map>

namespace quorum::torch_adapter {

namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<int64_t, DecoderHolder*> decoders;
  int64_t last = 0;

  static Registry& instance() {
    static Registry registry;
    return registry;
  }
};

// A limit that a plan has to be made anew for only now and then.
int with_room(int needed, int step) { return int(std::min<int64_t>(round_up(int64_t(needed) + needed / 4, step), kMaxCount)); }

constexpr const char* kPathNames[] = {"sparse",          "sparse_tokens",     "dense_by_length", "dense_by_target",
                                      "dense_by_policy", "dense_by_numerics", "dense_by_cost",   "dense_by_capacity"};

}  // namespace

DecoderHolder::DecoderHolder(int64_t num_qo_heads, int64_t num_kv_heads, int64_t head_dim, double sm_scale, double logit_softcap,
                             const OptionDict& options)
    : shape_{int(num_qo_heads), int(num_kv_heads), int(head_dim), float(sm_scale), float(logit_softcap)} {
  translate_errors([&] {
    options_ = decode_options(options);
    validate(shape_, "Decoder");
    validate(options_, "Decoder");
  });
  Registry& registry = Registry::instance();
  std::lock_guard lock(registry.mutex);
  handle_ = ++registry.last;
  registry.decoders[handle_] = this;
}

DecoderHolder::~DecoderHolder() {
  Registry& registry = Registry::instance();
  std::lock_guard lock(registry.mutex);
  registry.decoders.erase(handle_);
}

void DecoderHolder::grow(int workers) {
  int sequences = 1, tokens = 1, slots = 1, rows = 1;
  for (const SequenceView& sequence : step_.sequences) {
    tokens = std::max(tokens, sequence.kv.num_tokens);
    rows = std::max(rows, sequence.num_rows);
  }
  sequences = std::max(sequences, int(step_.sequences.size()));
  for (const ClusterIndex* index : step_.indexes)
    if (index != nullptr) slots = std::max(slots, index->num_cluster_slots());
  const bool fits = decoder_ != nullptr && sequences <= limits_.max_sequences && tokens <= limits_.max_tokens &&
                    slots <= limits_.max_clusters && workers <= limits_.num_workers && rows <= limits_.max_rows;
  if (fits) return;
  DecodeLimits limits;
  limits.max_sequences = std::max(limits_.max_sequences, sequences);
  limits.max_tokens = std::max(limits_.max_tokens, with_room(tokens, 1024));
  limits.max_clusters = std::max(limits_.max_clusters, with_room(slots, 256));
  limits.num_workers = std::max(limits_.num_workers, workers);
  limits.max_rows = std::max(limits_.max_rows, rows);
  decoder_ = std::make_unique<Decoder>(shape_, options_, limits);
  limits_ = limits;
}

void DecoderHolder::count(std::span<const HeadReport> reports) {
  totals_.calls += 1;
  for (const HeadReport& report : reports) {
    const double sharers = double(shape_.group_size()) * report.shared_rows;
    totals_.heads += 1;
    totals_.sparse_heads += is_dense(report.path) ? 0 : 1;
    totals_.paths[size_t(report.path)] += 1;
    totals_.tokens_read += report.tokens_read;
    totals_.bytes_read += double(report.bytes_read) / sharers;
    totals_.bytes_dense += double(report.bytes_dense) / sharers;
    totals_.attained_ratio += double(report.attained_ratio_estimate);
    totals_.lower_bound += double(report.attained_ratio_lower_bound);
    totals_.error_estimate += double(report.error_estimate);
  }
  for (const SequenceView& sequence : step_.sequences)
    for (int row = 0; row < sequence.num_rows; ++row)
      totals_.tokens_visible += double(sequence.filter(row, 1, shape_.sliding_window).count()) * shape_.num_qo_heads;
}

c10::Dict<std::string, double> DecoderHolder::statistics() const {
  std::lock_guard lock(mutex_);
  c10::Dict<std::string, double> out;
  out.insert("calls", totals_.calls);
  out.insert("heads", totals_.heads);
  out.insert("sparse_heads", totals_.sparse_heads);
  out.insert("tokens_read", totals_.tokens_read);
  out.insert("tokens_visible", totals_.tokens_visible);
  out.insert("bytes_read", totals_.bytes_read);
  out.insert("bytes_dense", totals_.bytes_dense);
  out.insert("attained_ratio", totals_.attained_ratio);
  out.insert("attained_ratio_lower_bound", totals_.lower_bound);
  out.insert("error_estimate", totals_.error_estimate);
  for (size_t path = 0; path < std::size(kPathNames); ++path) out.insert(kPathNames[path], totals_.paths[path]);
  return out;
}

void DecoderHolder::reset_statistics() {
  std::lock_guard lock(mutex_);
  totals_ = {};
}

DecoderHolder& find_decoder(int64_t handle, const char* function) {
  Registry& registry = Registry::instance();
  std::lock_guard lock(registry.mutex);
  const auto found = registry.decoders.find(handle);
  check(found != registry.decoders.end(), function, "decoder", "the handle of a decoder that lives", handle);
  return *found->second;
}

}  // namespace quorum::torch_adapter
