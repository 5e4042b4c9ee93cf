// libquorum-ggml.so: a backend for an unpatched ggml, loaded with GGML_BACKEND_PATH. It takes attention nodes above a context length and
// nothing else. docs/llama_cpp.md tells how to use it.
#include <mutex>
#include <set>

#include "attention_backend.hpp"
#include "ggml-backend-impl.h"

using quorum_ggml::AttentionBackend;
using quorum_ggml::AttentionNode;
using quorum_ggml::Settings;

namespace {

constexpr const char* kName = "quorum";

// Set by ggml_backend_init, before anything else is called.
Settings& settings() {
  static Settings instance;
  return instance;
}

// Backends that live: statistics and invalidation speak to all of them.
struct Living {
  std::mutex mutex;
  std::set<AttentionBackend*> backends;
};
Living& living() {
  static Living instance;
  return instance;
}

AttentionBackend& state(ggml_backend_t backend) { return *static_cast<AttentionBackend*>(backend->context); }

// ---- a backend ----

void free_backend(ggml_backend_t backend) {
  {
    std::lock_guard lock(living().mutex);
    living().backends.erase(&state(backend));
  }
  delete &state(backend);
  delete backend;
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph* graph) {
  for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
    ggml_tensor* node = ggml_graph_node(graph, i);
    if (node->op != GGML_OP_FLASH_ATTN_EXT || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;  // the rest are views
    if (const ggml_status status = state(backend).attend(node); status != GGML_STATUS_SUCCESS) return status;
  }
  return GGML_STATUS_SUCCESS;
}

ggml_guid_t guid() {
  static ggml_guid id = {0x71, 0x75, 0x6f, 0x72, 0x75, 0x6d, 0x2d, 0x67, 0x67, 0x6d, 0x6c, 0x2d, 0x30, 0x30, 0x30, 0x31};
  return &id;
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char*) {
  try {
    auto own = std::make_unique<AttentionBackend>(settings());
    auto backend = std::make_unique<ggml_backend>();  // value-initialised: what is not set is null
    backend->guid = guid();
    backend->iface.get_name = [](ggml_backend_t) { return kName; };
    backend->iface.free = free_backend;
    backend->iface.graph_compute = compute;
    backend->device = device;
    std::lock_guard lock(living().mutex);
    living().backends.insert(own.get());
    backend->context = own.release();
    return backend.release();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quorum: %s\n", error.what());
    return nullptr;
  }
}

// ---- the device ----

const char* unsupported_reason(const ggml_tensor* op) {
  if (op->op != GGML_OP_FLASH_ATTN_EXT) return "op: only attention nodes (FLASH_ATTN_EXT) are computed";
  if (op->src[1]->ne[1] <= settings().min_context) return "context: at most QUORUM_MIN_CONTEXT cells";
  return AttentionNode(op).unsupported_reason();
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor* op) {
  switch (op->op) {
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
      return true;
    default:
      return unsupported_reason(op) == nullptr;
  }
}

void get_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  *props = {};
  props->name = device->iface.get_name(device);
  props->description = device->iface.get_description(device);
  props->type = device->iface.get_type(device);
  props->caps.buffer_from_host_ptr = true;
  props->caps.mmap_support = true;
}

ggml_backend_device make_device(ggml_backend_reg_t registration) {
  ggml_backend_device device{};
  device.reg = registration;
  device.iface.get_name = [](ggml_backend_dev_t) { return kName; };
  device.iface.get_description = [](ggml_backend_dev_t) { return "sparse attention"; };
  device.iface.get_memory = [](ggml_backend_dev_t, size_t* free, size_t* total) { *free = *total = 0; };
  device.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; };
  device.iface.get_props = get_props;
  device.iface.init_backend = init_backend;
  device.iface.get_buffer_type = [](ggml_backend_dev_t) { return ggml_backend_cpu_buffer_type(); };
  device.iface.buffer_from_host_ptr = [](ggml_backend_dev_t, void* data, size_t size, size_t) {
    return ggml_backend_cpu_buffer_from_ptr(data, size);
  };
  device.iface.supports_op = supports_op;
  device.iface.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t type) { return ggml_backend_buft_is_host(type); };
  return device;
}

// ---- functions that may be asked for by name ----

void set_n_threads(ggml_backend_t backend, int num_threads) { state(backend).set_num_threads(num_threads); }

// Of the backend that was made last; writes at most `size` bytes, the zero included, and returns how many the whole line has.
size_t statistics(char* out, size_t size) {
  std::lock_guard lock(living().mutex);
  quorum_ggml::Statistics sum;
  for (const AttentionBackend* backend : living().backends) sum = backend->statistics();
  const std::string line = sum.line();
  if (size > 0) std::snprintf(out, size, "%s", line.c_str());
  return line.size();
}

void invalidate() {
  std::lock_guard lock(living().mutex);
  for (AttentionBackend* backend : living().backends) backend->invalidate();
}

void* get_proc_address(ggml_backend_reg_t, const char* name) {
  const std::string wanted = name;
  if (wanted == "ggml_backend_set_n_threads") return reinterpret_cast<void*>(&set_n_threads);
  if (wanted == "quorum_unsupported_reason") return reinterpret_cast<void*>(&unsupported_reason);
  if (wanted == "quorum_statistics") return reinterpret_cast<void*>(&statistics);
  if (wanted == "quorum_invalidate") return reinterpret_cast<void*>(&invalidate);
  return nullptr;
}

ggml_backend_dev_t get_device(ggml_backend_reg_t registration, size_t) {
  static ggml_backend_device device = make_device(registration);
  return &device;
}

ggml_backend_reg_t registration() {
  static ggml_backend_reg instance = [] {
    ggml_backend_reg made{};
    made.api_version = GGML_BACKEND_API_VERSION;
    made.iface.get_name = [](ggml_backend_reg_t) { return kName; };
    made.iface.get_device_count = [](ggml_backend_reg_t) -> size_t { return 1; };
    made.iface.get_device = get_device;
    made.iface.get_proc_address = get_proc_address;
    return made;
  }();
  return &instance;
}

}  // namespace

extern "C" {

// What ggml calls once it has loaded the library; null refuses.
__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
  try {
    settings() = quorum_ggml::read_settings();
    return registration();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quorum: %s\n", error.what());
    return nullptr;
  }
}
}
