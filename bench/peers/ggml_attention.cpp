// Decode attention by ggml's kernels, as llama.cpp calls them, step by step in turn with quorum's on the same keys and values.
//
//   peer_ggml [SIZE THREADS STEPS]...      e.g. 32k 2 24; one JSON object a line and variant on standard output
// Answers are compared before times: a variant whose error against quorum's dense attention exceeds its tolerance is not timed.
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstdlib>
#include <exception>
#include <map>

#include "bench/peers/json_line.hpp"
#include "bench/peers/ours.hpp"

namespace {

using namespace quorum;
using bench::Workload;

enum class Variant {
  head_major,          // flash attention on [kv_head][token][dim]
  real_layout,         // flash attention on [token][kv_head][dim], where llama.cpp keeps keys and values
  no_flash_attention,  // `-fa off`: two matrix products around a softmax, values kept transposed, as llama.cpp then does
};
// The two that share a layout lie together: the index is built for each layout.
constexpr Variant kVariants[] = {Variant::head_major, Variant::real_layout, Variant::no_flash_attention};

const char* name_of(Variant variant) {
  switch (variant) {
    case Variant::real_layout:
      return "ggml_real_layout";
    case Variant::head_major:
      return "ggml_head_major";
    case Variant::no_flash_attention:
      break;
  }
  return "ggml_no_flash_attention";
}

// ggml adds up f16 values in f16: a sum over n tokens of comparable weight loses digits with n. Peaked weights, as here, lose few.
constexpr double kTolerance = 0.05;

// Keys and values in the variant's layout; `transposed` is used by no_flash_attention alone.
struct Cache {
  const Workload& workload;
  const ggml_fp16_t* transposed_values;
};

// Values as [kv_head][dim][token].
std::vector<ggml_fp16_t> transpose_values(const Workload& workload) {
  const auto n = size_t(workload.kv.num_tokens), heads = size_t(workload.shape.num_kv_heads), d = size_t(workload.shape.head_dim);
  std::vector<ggml_fp16_t> transposed(n * heads * d);
  const auto* values = reinterpret_cast<const ggml_fp16_t*>(workload.kv.values);
  for (size_t i = 0; i < n; ++i)
    for (size_t row = 0; row < heads * d; ++row) transposed[row * n + i] = values[i * heads * d + row];
  return transposed;
}

// One decode step as a graph of ggml.
class GgmlStep {
 public:
  GgmlStep(Variant variant, const Cache& cache, int threads)
      : workload_(cache.workload), context_(ggml_init({kMemory + scratch_bytes(cache.workload), nullptr, false})), threads_(threads) {
    if (context_ == nullptr) throw std::bad_alloc();
    const AttentionShape& shape = workload_.shape;
    const int64_t n = workload_.kv.num_tokens, d = shape.head_dim, heads = shape.num_kv_heads;
    auto* keys = const_cast<std::byte*>(workload_.kv.keys);
    auto* values = const_cast<std::byte*>(workload_.kv.values);
    // What llama.cpp hands the operator: queries [dim][token][head], a mask of as many rows as there are query tokens.
    query_ = ggml_new_tensor_4d(context_, GGML_TYPE_F32, d, shape.num_qo_heads, 1, 1);
    ggml_tensor* q = ggml_permute(context_, query_, 0, 2, 1, 3);
    const bool flash = variant != Variant::no_flash_attention;
    ggml_tensor* mask = ggml_new_tensor_4d(context_, flash ? GGML_TYPE_F16 : GGML_TYPE_F32, n, 1, 1, 1);
    std::memset(mask->data, 0, ggml_nbytes(mask));  // every token is visible
    ggml_tensor *k = nullptr, *v = nullptr;
    if (variant == Variant::head_major) {
      k = over(keys, d, n, heads);
      v = over(values, d, n, heads);
    } else {
      k = ggml_permute(context_, over(keys, d, heads, n), 0, 2, 1, 3);
      v = flash ? ggml_permute(context_, over(values, d, heads, n), 0, 2, 1, 3)
                : over(const_cast<ggml_fp16_t*>(cache.transposed_values), n, d, heads);
    }
    const float scale = 1.0f / std::sqrt(float(d));
    if (flash) {
      result_ = ggml_flash_attn_ext(context_, q, k, v, mask, scale, 0.0f, 0.0f);
      ggml_prec_set_acc(result_, GGML_PREC_F32);
    } else {
      ggml_tensor* scores = ggml_mul_mat(context_, k, q);
      ggml_prec_set_acc(scores, GGML_PREC_F32);
      result_ = ggml_permute(context_, ggml_mul_mat(context_, v, ggml_soft_max_ext(context_, scores, mask, scale, 0.0f)), 0, 2, 1, 3);
      result_ = ggml_cont_2d(context_, result_, d * shape.num_qo_heads, 1);
    }
    prepare(step_, result_);
    prepare(wake_, ggml_add(context_, query_, query_));
  }
  ~GgmlStep() { ggml_free(context_); }
  GgmlStep(const GgmlStep&) = delete;
  GgmlStep& operator=(const GgmlStep&) = delete;

  const float* output() const { return static_cast<const float*>(result_->data); }

  // In seconds, on cold caches that `ours` cleans. Both sides' threads spin for a while after their work: each waits until the other's
  // sleep, and then wakes its own.
  double run(bench::Ours& ours, int query) {
    ours.clean_caches();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::memcpy(query_->data, workload_.query(query).data, ggml_nbytes(query_));
    for (int i = 0; i < 8; ++i) compute(wake_);
    const double seconds = bench::seconds_of([&] { compute(step_); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return seconds;
  }

 private:
  struct Graph {
    ggml_cgraph* graph = nullptr;
    ggml_cplan plan{};
    std::vector<uint8_t> work;
  };
  static constexpr size_t kMemory = size_t(16) << 20;

  // Scores before and after the softmax, and the mask.
  static size_t scratch_bytes(const Workload& workload) {
    return size_t(workload.kv.num_tokens) * size_t(2 * workload.shape.num_qo_heads + 1) * sizeof(float);
  }
  // A tensor over memory that is there already.
  ggml_tensor* over(void* data, int64_t a, int64_t b, int64_t c) {
    ggml_set_no_alloc(context_, true);
    ggml_tensor* tensor = ggml_new_tensor_4d(context_, GGML_TYPE_F16, a, b, c, 1);
    ggml_set_no_alloc(context_, false);
    tensor->data = data;
    return tensor;
  }
  void prepare(Graph& graph, ggml_tensor* result) {
    graph.graph = ggml_new_graph(context_);
    ggml_build_forward_expand(graph.graph, result);
    graph.plan = ggml_graph_plan(graph.graph, threads_, nullptr);
    graph.work.resize(graph.plan.work_size + 64);
    graph.plan.work_data = graph.work.data();
  }
  static void compute(Graph& graph) {
    if (ggml_graph_compute(graph.graph, &graph.plan) != GGML_STATUS_SUCCESS) throw std::runtime_error("ggml could not compute");
  }

  const Workload& workload_;
  ggml_context* context_;
  int threads_;
  ggml_tensor* query_ = nullptr;
  ggml_tensor* result_ = nullptr;
  Graph step_, wake_;
};

struct Job {
  std::string size;
  int threads = 1;
  int steps = 1;
};

std::string measure(Variant variant, const Cache& cache, const ClusterIndex& index, const Job& job) {
  bench::Ours ours(cache.workload, index, job.threads);
  GgmlStep ggml(variant, cache, job.threads);
  bench::JsonLine line;
  line.add("name", std::string(name_of(variant)) + "/" + cache.workload.name + "/threads:" + std::to_string(job.threads));
  double error = 0.0, sparse_error = 0.0;
  const int queries = std::min(4, ours.num_queries());
  for (int query = 0; query < queries; ++query) {
    ours.dense_step(query);
    ours.sparse_step(query);
    ggml.run(ours, query);
    error += ours.error_of(ggml.output()) / queries;
    sparse_error += ours.sparse_error() / queries;
  }
  line.add("error_vs_dense", error).add("tolerance", kTolerance).add("quorum_sparse5_error", sparse_error);
  if (!(error <= kTolerance)) return line.add("error_message", "the answers differ by more than the tolerance").str();
  std::vector<double> theirs, dense, sparse;
  for (int step = 0; step < job.steps; ++step) {
    const int query = step % ours.num_queries();
    dense.push_back(ours.dense_step(query) * 1e6);
    sparse.push_back(ours.sparse_step(query) * 1e6);
    theirs.push_back(ggml.run(ours, query) * 1e6);
  }
  return line.add("us", theirs).add("quorum_dense_us", dense).add("quorum_sparse5_us", sparse).str();
}

// One workload is kept, and the index on it: building takes longer than measuring.
struct Prepared {
  std::string size;
  bool head_major = false;
  std::optional<Workload> workload;
  std::optional<ClusterIndex> index;
  std::vector<ggml_fp16_t> transposed;

  void prepare(const std::string& wanted, Variant variant) {
    const bool by_head = variant == Variant::head_major;
    if (!workload || size != wanted || head_major != by_head) {
      std::fprintf(stderr, "peer_ggml: preparing %s ...\n", wanted.c_str());
      transposed.clear();
      index.reset();
      workload.reset();
      workload = bench::llama8b_workload(wanted, by_head);
      index = bench::build_index(*workload);
      size = wanted;
      head_major = by_head;
    }
    if (variant == Variant::no_flash_attention && transposed.empty()) transposed = transpose_values(*workload);
  }
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4 || argc % 3 != 1) {
    std::fprintf(stderr, "usage: peer_ggml [SIZE THREADS STEPS]...\n");
    return 2;
  }
  Eigen::setNbThreads(1);  // the index is built by quorum's own threads
  ggml_cpu_init();
  std::vector<Job> jobs;
  for (int i = 1; i < argc; i += 3) jobs.push_back({argv[i], std::max(1, std::atoi(argv[i + 1])), std::max(1, std::atoi(argv[i + 2]))});
  Prepared prepared;
  std::vector<std::string> sizes;
  for (const Job& job : jobs)
    if (std::find(sizes.begin(), sizes.end(), job.size) == sizes.end()) sizes.push_back(job.size);
  for (const std::string& size : sizes) {
    for (const Variant variant : kVariants) {
      prepared.prepare(size, variant);
      for (const Job& job : jobs) {
        if (job.size != size) continue;
        std::printf("%s\n", measure(variant, {*prepared.workload, prepared.transposed.data()}, *prepared.index, job).c_str());
        std::fflush(stdout);
      }
    }
  }
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "peer_ggml: %s\n", problem.what());
  return 1;
}
