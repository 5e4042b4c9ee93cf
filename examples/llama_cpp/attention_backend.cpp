#include "attention_backend.hpp"

#include <cstdio>

namespace quorum_ggml {

namespace {

constexpr int kPiecesPerStep = 2;  // of clustering, in a decode step and layer: no step waits long

// Adds the time until its end to a sum.
class Timer {
 public:
  explicit Timer(double& sum) : sum_(sum), begin_(std::chrono::steady_clock::now()) {}
  ~Timer() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  double& sum_;
  std::chrono::steady_clock::time_point begin_;
};

bool same_shape(const quorum::AttentionShape& a, const quorum::AttentionShape& b) {
  return a.num_qo_heads == b.num_qo_heads && a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim && a.sm_scale == b.sm_scale &&
         a.logit_softcap == b.logit_softcap && a.sink_logits == b.sink_logits;
}

}  // namespace

AttentionBackend::AttentionBackend(const Settings& settings) : settings_(settings) {}

void AttentionBackend::set_num_threads(int num_threads) {
  if (num_threads_ == num_threads) return;
  num_threads_ = num_threads;
  cpu_.set_num_threads(num_threads);
}

quorum::Executor& AttentionBackend::executor() {
  const int workers = settings_.threads > 0 ? settings_.threads : num_threads_;
  auto& executor = executors_[workers];
  if (executor != nullptr) return *executor;
  if (workers == 1)
    executor = std::make_unique<quorum::SerialExecutor>();
  else if (cpu_.uses_openmp())
    executor = std::make_unique<quorum::OpenMpExecutor>(workers);
  else
    executor = std::make_unique<quorum::ThreadExecutor>(workers, quorum::LateWorkers::leave_out);
  return *executor;
}

ggml_status AttentionBackend::attend(ggml_tensor* op) noexcept {
  try {
    const AttentionNode node(op);
    ++statistics_.calls;
    return node.num_rows() > settings_.max_rows ? hand_on(node, op) : attend_rows(node, op);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quorum: %s\n", error.what());
    return GGML_STATUS_FAILED;
  }
}

// A few rows a stream: decoding, or the check of a draft.
ggml_status AttentionBackend::attend_rows(const AttentionNode& node, ggml_tensor* op) {
  const int num_streams = node.num_streams();
  if (int(visible_.size()) < num_streams) visible_.resize(size_t(num_streams));
  for (int s = 0; s < num_streams; ++s) {
    const auto mask_row = [&](int row) { return node.mask_row(s, row); };
    if (!visible_[size_t(s)].read(mask_row, node.num_rows(), node.num_cells())) return hand_on(node, op);
  }
  bool done = true;
  for (int s = 0; s < num_streams && done; ++s) done = decode(node, s);
  return done ? GGML_STATUS_SUCCESS : hand_on(node, op);
}

bool AttentionBackend::decode(const AttentionNode& node, int stream) {
  const VisibleCells& visible = visible_[size_t(stream)];
  const quorum::AttentionShape shape = node.shape();
  const CacheFollower& follower = follow(node, stream, visible.end(), false);
  Timer timer(statistics_.seconds_attend);
  quorum::SequenceView sequence = visible.sequence(node.cache(stream), follower.num_tokens());
  sequence.index = follower.view();
  const int clusters = follower.built() ? follower.view()->heads[0].num_cluster_slots() : 0;
  quorum::Decoder& decoder = decoder_for(shape, node.num_cells(), clusters);
  reports_.resize(size_t(node.num_rows()) * size_t(shape.num_qo_heads));
  const quorum::DecodeStatus status = decoder.decode(node.queries(stream), {&sequence, 1}, node.output(stream), reports_, executor());
  if (status != quorum::DecodeStatus::ok) std::fprintf(stderr, "quorum: %s\n", quorum::status_message(status));
  if (status == quorum::DecodeStatus::ok) statistics_.add(reports_, 2 * quorum::row_bytes(sequence.kv.type, shape.head_dim));
  return status == quorum::DecodeStatus::ok;
}

// The engine computes; we take a sample of the queries and cluster the keys, so that decoding can begin at once.
ggml_status AttentionBackend::hand_on(const AttentionNode& node, ggml_tensor* op) {
  ++statistics_.calls_handed_on;
  if (node.num_rows() > settings_.max_rows && node.mask() != nullptr) {
    for (int s = 0; s < node.num_streams(); ++s) {
      const int end = visible_end([&](int row) { return node.mask_row(s, row); }, node.num_rows(), node.num_cells());
      follow(node, s, end, true);
    }
  }
  Timer timer(statistics_.seconds_handed_on);
  return cpu_.compute(op);
}

CacheFollower& AttentionBackend::follow(const AttentionNode& node, int stream, int extent, bool prefill) {
  Layer& layer = layer_of(node, stream);
  CacheFollower& follower = *layer.follower;
  if (settings_.decode.target_ratio == 1.0f && settings_.decode.target_error == 0.0f) return follower;  // dense: no index is read
  const quorum::KvCacheView kv = node.cache(stream);
  Cache& cache = caches_[node.cache_id(stream)];
  const bool first = layer.step == cache.step;  // this layer has had its turn: a new step begins
  if (first) cache = {cache.step + 1, false, false};
  layer.step = cache.step;
  {
    Timer timer(statistics_.seconds_compare);
    const bool changed = follower.compare(kv, extent, first || cache.changed ? Check::all : Check::some);
    cache.changed = cache.changed || changed;
    statistics_.cells_changed += changed ? 1 : 0;
  }
  Timer timer(statistics_.seconds_index);
  if (prefill) follower.sample_queries(node.queries(stream));
  const bool was_built = follower.built();
  follower.follow(kv, extent, prefill ? 0 : kPiecesPerStep, prefill || !cache.has_built, executor());
  cache.has_built = cache.has_built || follower.built() != was_built;
  return follower;
}

AttentionBackend::Layer& AttentionBackend::layer_of(const AttentionNode& node, int stream) {
  const quorum::KvCacheView kv = node.cache(stream);
  const quorum::AttentionShape shape = node.shape();
  Layer& layer = layers_[kv.keys];
  if (layer.follower == nullptr || layer.type != kv.type || !same_shape(layer.follower->shape(), shape)) {
    layer.follower = std::make_unique<CacheFollower>(shape, settings_.index);
    layer.type = kv.type;
  }
  return layer;
}

quorum::Decoder& AttentionBackend::decoder_for(const quorum::AttentionShape& shape, int num_tokens, int num_clusters) {
  const int workers = executor().num_workers();
  auto found = std::find_if(decoders_.begin(), decoders_.end(), [&](const auto& decoder) { return same_shape(decoder->shape(), shape); });
  if (found == decoders_.end()) found = decoders_.insert(found, nullptr);
  const quorum::DecodeLimits had = *found != nullptr ? (*found)->limits() : quorum::DecodeLimits{};
  if (had.max_tokens >= num_tokens && had.max_clusters >= num_clusters && had.num_workers >= workers) return **found;
  quorum::DecodeLimits limits;  // half as much again: the next ones come soon
  limits.max_tokens = std::max(had.max_tokens, num_tokens + num_tokens / 2);
  limits.max_clusters = std::max({had.max_clusters, num_clusters + num_clusters / 2, limits.max_tokens / 16 + 64});
  limits.num_workers = std::max(had.num_workers, workers);
  limits.max_rows = settings_.max_rows;
  *found = std::make_unique<quorum::Decoder>(shape, settings_.decode, limits);
  return **found;
}

void AttentionBackend::invalidate() {
  for (auto& [key, layer] : layers_) layer.follower->drop();
}

Statistics AttentionBackend::statistics() const {
  Statistics statistics = statistics_;
  for (const auto& [key, layer] : layers_) statistics.index_bytes += layer.follower->bytes();
  return statistics;
}

}  // namespace quorum_ggml
