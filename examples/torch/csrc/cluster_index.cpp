#include "examples/torch/csrc/cluster_index.hpp"

#include <mutex>
#include <unordered_map>

#include "examples/torch/csrc/tensor_views.hpp"

namespace quorum::torch_adapter {

namespace {

// Handles are never used twice, so that a stale one is found out.
struct Registry {
  std::mutex mutex;
  std::unordered_map<int64_t, const ClusterIndex*> indexes;
  int64_t last = 0;

  static Registry& instance() {
    static Registry registry;
    return registry;
  }
  int64_t add(const ClusterIndex* index) {
    std::lock_guard lock(mutex);
    indexes[++last] = index;
    return last;
  }
};

AttentionShape shape_of(int64_t num_qo_heads, int64_t num_kv_heads, int64_t head_dim, double sm_scale) {
  return {int(num_qo_heads), int(num_kv_heads), int(head_dim), float(sm_scale)};
}

void check_kv(const KvTensors& kv, const AttentionShape& shape, const char* function) {
  check(kv.num_kv_heads() == shape.num_kv_heads, function, "key", "[num_kv_heads, token, head_dim]", kv.key.sizes());
  check(kv.head_dim() == shape.head_dim, function, "key", "[num_kv_heads, token, head_dim]", kv.key.sizes());
}

// Calls work(view, executor) with the cache of one sequence.
template <class Work>
void with_cache(const AttentionShape& shape, const at::Tensor& key, const at::Tensor& value, const char* function, Work&& work) {
  check(key.dim() == 3 && value.dim() == 3, function, "key and value", "[num_kv_heads, token, head_dim]", key.sizes());
  const at::Tensor keys = key.unsqueeze(0), values = value.unsqueeze(0);
  const KvTensors kv(keys, values, function);
  check_kv(kv, shape, function);
  OpenMpExecutor executor(num_workers());
  translate_errors([&] { work(kv.sequence(0, 0, kv.num_tokens()), executor); });
}

}  // namespace

IndexHolder::IndexHolder(int64_t num_qo_heads, int64_t num_kv_heads, int64_t head_dim, double sm_scale, const OptionDict& options)
    : index_(
          translate_errors([&] { return ClusterIndex(shape_of(num_qo_heads, num_kv_heads, head_dim, sm_scale), index_options(options)); })),
      handle_(Registry::instance().add(&index_)) {}
IndexHolder::IndexHolder(ClusterIndex index) : index_(std::move(index)), handle_(Registry::instance().add(&index_)) {}

IndexHolder::~IndexHolder() {
  Registry& registry = Registry::instance();
  std::lock_guard lock(registry.mutex);
  registry.indexes.erase(handle_);
}

void IndexHolder::build(const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& queries) {
  constexpr const char* kFunction = "ClusterIndex.build";
  with_cache(index_.shape(), key, value, kFunction, [&](const KvCacheView& kv, Executor& executor) {
    if (!queries.has_value()) return index_.build(kv, executor);
    check(queries->dim() == 3, kFunction, "queries", "[qo_head, row, head_dim]", queries->sizes());
    const QueryTensor rows(queries->unsqueeze(0), kFunction);
    const bool fits = rows.num_qo_heads() == index_.shape().num_qo_heads && rows.head_dim() == index_.shape().head_dim;
    check(fits, kFunction, "queries", "[num_qo_heads, row, head_dim]", queries->sizes());
    const QueryView view = rows.view();
    index_.build(kv, &view, executor);
  });
}

void IndexHolder::append(const at::Tensor& key, const at::Tensor& value) {
  with_cache(index_.shape(), key, value, "ClusterIndex.append",
             [&](const KvCacheView& kv, Executor& executor) { index_.append(kv, executor); });
}

void IndexHolder::truncate(int64_t num_tokens) {
  translate_errors([&] { index_.truncate(int(num_tokens)); });
}
void IndexHolder::erase(int64_t begin, int64_t end) {
  translate_errors([&] { index_.erase(int(begin), int(end)); });
}
void IndexHolder::overwrite(int64_t begin, int64_t end) {
  translate_errors([&] { index_.overwrite(int(begin), int(end)); });
}
void IndexHolder::invalidate(int64_t begin, int64_t end) {
  translate_errors([&] { index_.invalidate(int(begin), int(end)); });
}

at::Tensor IndexHolder::save() const {
  const std::vector<std::byte> bytes = index_.save();
  at::Tensor tensor = at::empty({int64_t(bytes.size())}, at::kByte);
  std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(tensor.mutable_data_ptr()));
  return tensor;
}

c10::intrusive_ptr<IndexHolder> IndexHolder::load(const at::Tensor& bytes) const {
  const bool fits = bytes.scalar_type() == at::kByte && bytes.dim() == 1 && bytes.is_contiguous() && bytes.is_cpu();
  check(fits, "ClusterIndex.load", "bytes", "contiguous uint8 [size] on the CPU", bytes.sizes());
  const std::span<const std::byte> span(static_cast<const std::byte*>(bytes.const_data_ptr()), size_t(bytes.numel()));
  return translate_errors([&] { return c10::make_intrusive<IndexHolder>(ClusterIndex::load(index_.shape(), span)); });
}

const ClusterIndex* find_index(int64_t handle, const char* function) {
  if (handle == 0) return nullptr;
  Registry& registry = Registry::instance();
  std::lock_guard lock(registry.mutex);
  const auto found = registry.indexes.find(handle);
  check(found != registry.indexes.end(), function, "indexes", "handles of indexes that live, or 0", handle);
  return found->second;
}

int64_t total_index_bytes(const std::vector<c10::intrusive_ptr<IndexHolder>>& indexes) {
  std::vector<const ClusterIndex*> pointers;
  for (const auto& holder : indexes) pointers.push_back(&holder->index());
  return ClusterIndex::total_bytes(pointers);
}

}  // namespace quorum::torch_adapter
