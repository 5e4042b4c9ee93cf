// The step on a GPU: dense attention, whole steps, single stages and the building of an index, as replays of CUDA graphs over several
// layers, so that no layer finds its keys, values or index in the cache. Writes a table, and with --json FILE the same as JSON.
//   bench_cuda [--json FILE] [--tokens N] [--batch B] [--kv bf16|fp8_e4m3]
// --tokens and --batch may be repeated; default 32768, 131072 and 1, 8. --kv: type of keys and values, default bf16.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "bench/cuda/workload.hpp"
#include "quorum/cuda.cuh"

namespace quorum::bench {
namespace {

using cuda::check;
using cuda::DeviceBuffer;

constexpr int kKvHeads = 8, kGroupSize = 4, kHeadDim = 128, kQueryHeads = kKvHeads * kGroupSize;

template <class T>
DeviceBuffer upload(const std::vector<T>& from) {
  DeviceBuffer buffer(int64_t(from.size() * sizeof(T)));
  check(cudaMemcpy(buffer.as<>(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "bench", "cudaMemcpy");
  return buffer;
}

// Elements of a cache, which are in f16, as those of another type.
template <class T>
std::vector<std::byte> converted(const std::byte* from, int64_t count) {
  std::vector<std::byte> out(size_t(count) * sizeof(T));
  auto* elements = reinterpret_cast<T*>(out.data());
  for (int64_t i = 0; i < count; ++i) elements[i] = from_float<T>(to_float(reinterpret_cast<const f16*>(from)[i]));
  return out;
}
std::vector<std::byte> converted(ElementType type, const std::byte* from, int64_t count) {
  return type == ElementType::bf16 ? converted<bf16>(from, count) : converted<fp8_e4m3>(from, count);
}

// One layer's caches and indexes, every sequence with its own copy.
struct Layer {
  DeviceBuffer keys, values, heads;
  std::vector<cuda::ClusterIndex> indexes;
};

// Median time of a layer in microseconds, from replays of a graph of all layers.
double time_layers(cudaStream_t stream, int num_layers, const std::function<void()>& enqueue) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "bench", "cudaStreamBeginCapture");
  enqueue();
  check(cudaStreamEndCapture(stream, &graph), "bench", "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&executable, graph, 0), "bench", "cudaGraphInstantiate");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "bench", "cudaEventCreate");
  check(cudaEventCreate(&end), "bench", "cudaEventCreate");
  std::vector<float> times;
  for (int i = 0; i < 45; ++i) {
    check(cudaEventRecord(begin, stream), "bench", "cudaEventRecord");
    check(cudaGraphLaunch(executable, stream), "bench", "cudaGraphLaunch");
    check(cudaEventRecord(end, stream), "bench", "cudaEventRecord");
    check(cudaStreamSynchronize(stream), "bench", "cudaStreamSynchronize");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "bench", "cudaEventElapsedTime");
    if (i >= 5) times.push_back(milliseconds);
  }
  check(cudaGraphExecDestroy(executable), "bench", "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "bench", "cudaGraphDestroy");
  std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
  return double(times[times.size() / 2]) * 1000.0 / num_layers;
}

class StepBench {
 public:
  StepBench(int num_tokens, int batch, ElementType type, std::ostream& json)
      : workload_(num_tokens, kKvHeads, kGroupSize, kHeadDim, 32), num_tokens_(num_tokens), batch_(batch), type_(type), json_(json) {
    const int64_t elements = int64_t(num_tokens) * kKvHeads * kHeadDim;
    const std::vector<std::byte> keys = converted(type, workload_.kv().keys, elements);
    const std::vector<std::byte> values = converted(type, workload_.kv().values, elements);
    layers_.resize(batch >= 8 ? 2 : 6);
    for (Layer& layer : layers_) add_layer(layer, keys, values);
    std::vector<float> queries;
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < kQueryHeads; ++h) {
        const auto* row = reinterpret_cast<const float*>(workload_.queries().row(b % workload_.queries().num_rows, h));
        queries.insert(queries.end(), row, row + kHeadDim);
      }
    queries_ = upload(queries);
    lengths_ = upload(std::vector<int32_t>(size_t(batch), num_tokens));
    output_ = DeviceBuffer(int64_t(queries.size()) * 4);
    reports_ = DeviceBuffer(int64_t(batch) * kQueryHeads * int64_t(sizeof(HeadReport)));
    limits_.max_sequences = batch;
    limits_.max_tokens = num_tokens;
    limits_.max_clusters = workload_.num_cluster_slots();
    check(cudaStreamCreate(&stream_), "bench", "cudaStreamCreate");
  }
  ~StepBench() { cudaStreamDestroy(stream_); }

  void run() {
    DecodeOptions options;
    options.dense_below = 0;
    options.unit = ReadUnit::clusters;
    dense_ = measure("dense", options, false);
    for (const double share : {0.02, 0.05, 0.10})
      for (const Tail tail : {Tail::drop, Tail::calibrated}) {
        DecodeOptions budget = options;
        budget.fixed_budget = int(share * num_tokens_);
        budget.tail = tail;
        std::ostringstream name;
        name << "budget " << int(share * 100 + 0.5) << " %, tail " << tail_name(tail);
        measure(name.str(), budget, true);
      }
    measure("target 0.9", options, true);
    options.certificate.enabled = true;
    measure("target 0.9, certificate", options, true);
    measure_tokens();
    if (batch_ == 1) measure_build();
  }

 private:
  void add_layer(Layer& layer, const std::vector<std::byte>& keys, const std::vector<std::byte>& values) {
    const size_t bytes = keys.size();
    layer.keys = DeviceBuffer(int64_t(bytes) * batch_);
    layer.values = DeviceBuffer(int64_t(bytes) * batch_);
    std::vector<FlatHeadView> heads(size_t(batch_) * kKvHeads);
    for (int b = 0; b < batch_; ++b) {
      const size_t offset = size_t(b) * bytes;
      check(cudaMemcpy(layer.keys.as<>() + offset, keys.data(), bytes, cudaMemcpyHostToDevice), "bench", "cudaMemcpy");
      check(cudaMemcpy(layer.values.as<>() + offset, values.data(), bytes, cudaMemcpyHostToDevice), "bench", "cudaMemcpy");
      layer.indexes.emplace_back(workload_.index());
      check(cudaMemcpy(heads.data() + b * kKvHeads, layer.indexes.back().heads(), kKvHeads * sizeof(FlatHeadView), cudaMemcpyDeviceToHost),
            "bench", "cudaMemcpy");
    }
    layer.heads = upload(heads);
  }

  // The view that `make` makes of a layer's keys and values, by their type.
  template <class Make>
  auto kv_of(const Layer& layer, Make&& make) const {
    if (type_ == ElementType::bf16) return make(layer.keys.as<bf16>(), layer.values.as<bf16>());
    return make(layer.keys.as<fp8_e4m3>(), layer.values.as<fp8_e4m3>());
  }

  cuda::DecodeBatch batch_of(const Layer& layer, bool sparse) const {
    cuda::DecodeBatch batch;
    batch.queries = QueryView::contiguous(queries_.as<float>(), batch_, kQueryHeads, kHeadDim);
    batch.kv = kv_of(layer, [&](const auto* keys, const auto* values) {
      return PagedKvView::hnd(keys, values, lengths_.as<int32_t>(), num_tokens_, kKvHeads, kHeadDim);
    });
    batch.heads = sparse ? layer.heads.as<FlatHeadView>() : nullptr;
    batch.num_sequences = batch_;
    return batch;
  }

  // Single tokens, by their residual codes.
  void measure_tokens() {
    DecodeOptions options;
    options.dense_below = 0;
    options.unit = ReadUnit::tokens;
    for (const double share : {0.01, 0.05}) {
      DecodeOptions budget = options;
      budget.fixed_budget = int(share * num_tokens_);
      measure("tokens, budget " + std::to_string(int(share * 100 + 0.5)) + " %", budget, true);
    }
    measure("tokens, target 0.9", options, true);
    options.target_error = 0.05f;
    measure("tokens, error 0.05", options, true);
  }

  // Returns the time of a step; prints and records it with its stages and bytes. Stages are those of the first round.
  double measure(const std::string& name, const DecodeOptions& options, bool sparse) {
    cuda::Decoder decoder(workload_.shape(), type_, options, limits_);
    const AttentionOutput out{output_.as<float>(), nullptr};
    const int layers = int(layers_.size());
    const auto time = [&](const std::function<void(const Layer&)>& enqueue) {
      return time_layers(stream_, layers, [&] {
        for (const Layer& layer : layers_) enqueue(layer);
      });
    };
    const auto params = [&](const Layer& layer) { return decoder.params(batch_of(layer, sparse), out, reports_.as<HeadReport>()); };
    const double step = time([&](const Layer& layer) {
      const DecodeStatus status = decoder.decode(batch_of(layer, sparse), out, reports_.as<HeadReport>(), stream_);
      if (status != DecodeStatus::ok) throw Error(ErrorCode::cuda_failure, status_message(status));
    });
    double score = 0.0, select = 0.0;
    if (sparse) {
      score = time([&](const Layer& layer) { check(cuda::score_clusters(params(layer), stream_), "bench", "score_clusters"); });
      select = time([&](const Layer& layer) {
        const cuda::StepParams p = params(layer);
        check(cuda::select_tokens(p, stream_), "bench", "select_tokens");
        if (!p.by_tokens) return;
        check(cuda::scan_candidates(p, stream_), "bench", "scan_candidates");
        check(cuda::select_coded_tokens(p, stream_), "bench", "select_coded_tokens");
      });
    }
    const double attend = time(
        [&](const Layer& layer) { check(cuda::sparse_attention(params(layer), decoder.device(), stream_), "bench", "sparse_attention"); });
    std::vector<HeadReport> reports(size_t(batch_) * kQueryHeads);
    check(cudaMemcpy(reports.data(), reports_.as<>(), reports.size() * sizeof(HeadReport), cudaMemcpyDeviceToHost), "bench", "cudaMemcpy");
    double tokens = 0.0, bytes = 0.0, all = 0.0;
    for (size_t i = 0; i < reports.size(); i += kGroupSize) {  // a KV head's query heads read the same
      tokens += reports[i].tokens_read;
      bytes += double(reports[i].bytes_read);
      all += double(reports[i].bytes_dense);
    }
    const double ratio = sparse ? dense_ / step : 1.0;
    std::printf("%7d x %d  %-28s %8.1f us  x%-5.2f  tokens %6.2f %%  bytes %6.2f %%  %5.2f TB/s  score %6.1f  select %6.1f  attend %6.1f\n",
                num_tokens_, batch_, name.c_str(), step, ratio, 100.0 * tokens / double(batch_ * kKvHeads) / num_tokens_,
                100.0 * bytes / all, bytes / step * 1e-6, score, select, attend);
    json_ << (first_ ? "" : ",\n") << "    {\"tokens\": " << num_tokens_ << ", \"batch\": " << batch_ << ", \"case\": \"" << name
          << "\", \"microseconds\": " << step << ", \"ratio_to_own_dense\": " << ratio << ", \"bytes\": " << bytes
          << ", \"share_of_dense_bytes\": " << bytes / all << ", \"score\": " << score << ", \"select\": " << select
          << ", \"attend\": " << attend << "}";
    first_ = false;
    return step;
  }

  // The time of building a layer's index on the device, as its sequences would be built: one after another on a stream.
  void measure_build() {
    const IndexOptions options;
    const cuda::BuildBytes bytes = cuda::build_bytes(workload_.shape(), options, num_tokens_);
    const DeviceBuffer index(bytes.index), workspace(bytes.workspace);
    const double build = time_layers(stream_, int(layers_.size()), [&] {
      for (const Layer& layer : layers_) {
        const KvCacheView kv = kv_of(layer, [&](const auto* keys, const auto* values) {
          return KvCacheView::hnd(keys, values, num_tokens_, num_tokens_, kHeadDim);
        });
        cuda::build_index(workload_.shape(), options, kv, {}, {index.as<>(), workspace.as<>()}, stream_);
      }
    });
    std::printf("%7d x 1  %-28s %8.1f us  index %.1f MB, workspace %.1f MB\n", num_tokens_, "build", build, double(bytes.index) * 1e-6,
                double(bytes.workspace) * 1e-6);
    json_ << ",\n    {\"tokens\": " << num_tokens_ << ", \"batch\": 1, \"case\": \"build\", \"microseconds\": " << build << "}";
  }

  HostWorkload workload_;
  int num_tokens_, batch_;
  ElementType type_;
  std::ostream& json_;
  std::vector<Layer> layers_;
  DeviceBuffer queries_, lengths_, output_, reports_;
  DecodeLimits limits_;
  cudaStream_t stream_ = nullptr;
  double dense_ = 0.0;
  static inline bool first_ = true;
};

int run(int argc, char** argv) {
  std::vector<int> tokens, batches;
  std::string path, type = element_name(ElementType::bf16);
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--json")
      path = argv[i + 1];
    else if (option == "--tokens")
      tokens.push_back(std::stoi(argv[i + 1]));
    else if (option == "--batch")
      batches.push_back(std::stoi(argv[i + 1]));
    else if (option == "--kv")
      type = argv[i + 1];
    else
      throw Error(ErrorCode::invalid_argument, "bench_cuda: options are --json FILE, --tokens N, --batch B and --kv TYPE, got " + option);
  }
  if (tokens.empty()) tokens = {32768, 131072};
  if (batches.empty()) batches = {1, 8};
  const bool is_fp8 = type == element_name(ElementType::fp8_e4m3);
  require(is_fp8 || type == element_name(ElementType::bf16), "bench_cuda", "--kv", "bf16 or fp8_e4m3", type.c_str());
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "bench", "cudaGetDeviceProperties");
  std::ostringstream json;
  json << "{\n  \"device\": \"" << device.name << "\",\n  \"shape\": \"32 query heads, 8 KV heads, head_dim 128, " << type
       << "\",\n  \"steps\": [\n";
  std::printf("%s; 32 query heads, 8 KV heads, head_dim 128, %s; clusters of 32\n", device.name, type.c_str());
  for (const int n : tokens)
    for (const int b : batches) StepBench(n, b, is_fp8 ? ElementType::fp8_e4m3 : ElementType::bf16, json).run();
  json << "\n  ]\n}\n";
  if (!path.empty()) std::ofstream(path) << json.str();
  return 0;
}

}  // namespace
}  // namespace quorum::bench

int main(int argc, char** argv) {
  try {
    return quorum::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_cuda: %s\n", error.what());
    return 1;
  }
}
