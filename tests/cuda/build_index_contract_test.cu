// What building promises besides a right index: the same one whatever the layout, the order of threads, the memory; errors; capture.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <utility>

#include "quorum/cuda/build_index.cuh"
#include "tests/cuda/support/build_case.cuh"
#include "tests/support/error_message.hpp"
#include "tests/support/near.hpp"
#include "tests/support/recorded_traces.hpp"

namespace quorum::test {
namespace {

CaseOptions small_case() {
  CaseOptions options;
  options.shape = {4, 2, 64, 0.0f};
  options.num_tokens = {90, 210};
  options.index.segment_tokens = 120;
  options.index.cluster_size = 10;
  options.index.window_tokens = 9;
  options.index.iterations = 3;
  return options;
}

// Keys and values of one sequence as one run of tokens, head by head, whatever the case's layout.
struct LinearCache {
  cuda::DeviceBuffer keys, values;
  KvCacheView view;

  LinearCache(const HostCase& host, int sequence) {
    const AttentionShape& shape = host.options().shape;
    const int num_tokens = host.num_tokens()[size_t(sequence)];
    const size_t row = size_t(shape.head_dim) * 2;
    std::vector<std::byte> all[2];
    for (int h = 0; h < shape.num_kv_heads; ++h)
      for (int t = 0; t < num_tokens; ++t) {
        const auto place = host.kv().place(sequence, t);
        const std::byte *key = host.kv().key_row(place, h), *value = host.kv().value_row(place, h);
        all[0].insert(all[0].end(), key, key + row);
        all[1].insert(all[1].end(), value, value + row);
      }
    keys = upload(all[0]);
    values = upload(all[1]);
    const auto* typed_keys = reinterpret_cast<const bf16*>(keys.as<>());
    view = KvCacheView::hnd(typed_keys, reinterpret_cast<const bf16*>(values.as<>()), num_tokens, num_tokens, shape.head_dim);
  }
};

cuda::HostIndex copied(const cuda::ClusterIndex& index) { return cuda::HostIndex(index.heads(), 2, 64); }

TEST_CASE("cuda build: every layout of the cache gives the same index") {
  for (const CacheLayout layout : {CacheLayout::hnd, CacheLayout::nhd, CacheLayout::paged_table, CacheLayout::paged_indptr}) {
    CAPTURE(int(layout));
    CaseOptions options = small_case();
    options.layout = layout;
    const HostCase host(options);
    const DeviceCase device(host);
    for (const int s : {0, 1}) {
      const LinearCache linear(host, s);
      const cuda::HostIndex wanted = copied(build_on_device(options.shape, options.index, linear.view));
      CHECK(difference(built_index(host, device, s).view(), wanted.view()) == "");
    }
  }
}

#if defined(QUORUM_CUDA_EMULATION)
TEST_CASE("cuda build: the order of threads and blocks does not change the index") {
  const HostCase host(small_case());
  const DeviceCase device(host);
  emulation::Settings& settings = emulation::settings();
  const emulation::Settings before = settings;
  settings.order = emulation::ThreadOrder::forward;
  const cuda::HostIndex forward = built_index(host, device, 1);
  for (const auto order : {emulation::ThreadOrder::reverse, emulation::ThreadOrder::random}) {
    settings.order = order;
    CHECK(difference(built_index(host, device, 1).view(), forward.view()) == "");
  }
  settings = before;
}
#endif

TEST_CASE("cuda build: twice into the same memory, captured in a graph, in as many kernels as promised") {
  for (const bool codes : {true, false}) {
    CaseOptions options = small_case();
    options.index.residual_codes = codes;
    const HostCase host(options);
    const DeviceCase device(host);
    const KvCacheView kv = device_kv(host, device, 1);
    const cuda::BuildBytes bytes = cuda::build_bytes(options.shape, options.index, 210);
    const cuda::DeviceBuffer index(bytes.index), workspace(bytes.workspace);
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    const FlatHeadView* heads = build_on_device(options.shape, options.index, kv, {}, {index.as<>(), workspace.as<>()}, stream);
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    size_t num_nodes = 0;
    REQUIRE(cudaGraphGetNodes(graph, nullptr, &num_nodes) == cudaSuccess);
    CHECK(num_nodes == size_t(13 + 3 * options.index.iterations + (codes ? 2 : 0)));
    cudaGraphExec_t executable = nullptr;
    REQUIRE(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess);
    const cuda::HostIndex wanted = built_index(host, device, 1);
    for (int turn = 0; turn < 2; ++turn) {
      REQUIRE(cudaGraphLaunch(executable, stream) == cudaSuccess);
      REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
      CHECK(difference(cuda::HostIndex(heads, 2, 64).view(), wanted.view()) == "");
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

double bytes_read(const CaseResult& result) {
  double bytes = 0.0;
  for (const HeadReport& report : result.reports) bytes += double(report.bytes_read);
  return bytes;
}

TEST_CASE("cuda build: decoding over the index meets its target with the bytes that the host's index takes, on both backends") {
  CaseOptions options;
  options.trace = kExampleTrace;
  options.num_tokens = {1500};
  options.index.cluster_size = 16;
  options.index.window_tokens = 32;
  options.index.iterations = 6;
  const HostCase host(options);
  const DeviceCase device(host);
  const AttentionShape& shape = host.options().shape;
  const Factors factors = trace_factors(options.trace, options.index);
  const cuda::DeviceBuffer forward = upload(factors.forward), inverse = upload(factors.inverse);
  const cuda::ClusterIndex index =
      build_on_device(shape, options.index, device_kv(host, device), {forward.as<float>(), inverse.as<float>()});
  DecodeOptions decode_options;
  decode_options.dense_below = 0;
  decode_options.target_ratio = 0.9f;
  decode_options.certificate.enabled = true;
  decode_options.unit = ReadUnit::clusters;
  const CaseResult dense = host.reference();

  const CaseResult by_host = device.decode(decode_options);
  CaseResult by_device = by_host;
  {
    const auto decoder = device.decoder(decode_options);
    cuda::DecodeBatch batch = device.batch();
    batch.heads = index.heads();
    const cuda::DeviceBuffer output = upload(by_host.output), lse = upload(by_host.lse), reports = upload(by_host.reports);
    REQUIRE(decode(*decoder, batch, {output.as<float>(), lse.as<float>()}, reports.as<HeadReport>(), nullptr) == DecodeStatus::ok);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    by_device = {download(output.as<float>(), by_host.output.size()), download(lse.as<float>(), by_host.lse.size()),
                 download(reports.as<HeadReport>(), by_host.reports.size())};
  }
  const cuda::HostIndex back(index.heads(), shape.num_kv_heads, shape.head_dim);
  const CaseResult cpu_by_host = host.cpu_decode(decode_options), cpu_by_device = host.cpu_decode(decode_options, back.view());
  using Results = std::pair<const CaseResult*, const CaseResult*>;
  for (const auto& [found, wanted] : {Results(&by_device, &by_host), Results(&cpu_by_device, &cpu_by_host)}) {
    for (const HeadReport& report : found->reports) {
      CHECK(report.path == DecodePath::sparse);
      CHECK(report.attained_ratio_estimate >= 0.9f);
    }
    CHECK(bytes_read(*found) <= 1.1 * bytes_read(*wanted));
    CHECK(relative_error(found->output, dense.output) <= 1.3 * relative_error(wanted->output, dense.output) + 0.005);
  }
  // By residual codes, which were made on the device, on the CPU.
  decode_options.unit = ReadUnit::tokens;
  decode_options.certificate.enabled = false;
  const CaseResult tokens_by_host = host.cpu_decode(decode_options), tokens_by_device = host.cpu_decode(decode_options, back.view());
  CHECK(bytes_read(tokens_by_device) <= 1.1 * bytes_read(tokens_by_host));
  CHECK(bytes_read(tokens_by_device) < bytes_read(cpu_by_device));
  CHECK(relative_error(tokens_by_device.output, dense.output) <= 1.3 * relative_error(tokens_by_host.output, dense.output) + 0.005);
}

std::string message_of(
    const std::function<void(AttentionShape&, IndexOptions&, KvCacheView&, MetricFactorView&, cuda::BuildMemory&)>& break_it) {
  AttentionShape shape{4, 2, 64, 0.0f};
  IndexOptions options;
  const cuda::DeviceBuffer block(1 << 16);
  KvCacheView kv;
  kv.keys = kv.values = block.as<>();
  kv.num_tokens = 100;
  MetricFactorView metric;
  cuda::BuildMemory memory{block.as<>(), block.as<>()};
  break_it(shape, options, kv, metric, memory);
  return argument_error([&] { build_on_device(shape, options, kv, metric, memory, nullptr); });
}

TEST_CASE("cuda build: every error names argument, rule and value") {
  CHECK(message_of([](auto& shape, auto&, auto&, auto&, auto&) { shape.num_qo_heads = 0; }) ==
        "cuda::build_index: shape.num_qo_heads must be at least 1, got 0");
  CHECK(message_of([](auto& shape, auto&, auto&, auto&, auto&) { shape.head_dim = 80; }) ==
        "cuda::build_index: shape.head_dim must be 64, 96, 128 or 256, got 80");
  CHECK(message_of([](auto&, auto& options, auto&, auto&, auto&) { options.iterations = 0; }) ==
        "cuda::build_index: options.iterations must be 1 to 1000, got 0");
  CHECK(message_of([](auto&, auto& options, auto&, auto&, auto&) { options.storage = IndexStorage::f32; }) ==
        "cuda::build_index: options.storage must be int8 on this device, got f32");
  CHECK(message_of([](auto&, auto& options, auto&, auto&, auto&) {
          options.variance = VarianceModel::diagonal;
        }).starts_with("cuda::build_index: options.variance must be none or shared on this device, got "));
  CHECK(message_of([](auto&, auto& options, auto&, auto&, auto&) { options.segment_tokens = 65536; }) ==
        "cuda::build_index: options.segment_tokens must be at most 65535 on this device, got 65536");
  CHECK(message_of([](auto&, auto& options, auto& kv, auto&, auto&) {
          options.segment_tokens = 8192;
          options.cluster_size = 1;
          kv.num_tokens = 9000;
        }) == "cuda::build_index: options.cluster_size must be so large that a segment has at most 3072 clusters on this device, got 1");
  CHECK(message_of([](auto&, auto& options, auto& kv, auto&, auto&) {
          options.segment_tokens = 1;
          options.cluster_size = 1;
          kv.num_tokens = 70000;
        }) == "cuda::build_index: options.segment_tokens must be so large that there are at most 65535 segments on this device, got 1");
  CHECK(message_of([](auto&, auto&, auto& kv, auto&, auto&) { kv.num_tokens = -1; }) ==
        "cuda::build_index: kv.num_tokens must be 0 to 2^30, got -1");
  CHECK(message_of([](auto&, auto&, auto& kv, auto&, auto&) { kv.type = ElementType::f32; }) ==
        "cuda::build_index: kv.type must be f16, bf16 or fp8_e4m3, got f32");
  const float scales[2] = {1.0f, 1.0f};
  CHECK(message_of([&](auto&, auto&, auto& kv, auto&, auto&) { kv.key_scales = scales; }) ==
        "cuda::build_index: kv.key_scales and kv.value_scales must be null unless keys and values are fp8_e4m3, got f16");
  CHECK(message_of([](auto&, auto&, auto& kv, auto&, auto&) { kv.keys = nullptr; }) ==
        "cuda::build_index: kv.keys must be not null, got null");
  CHECK(message_of([](auto&, auto&, auto& kv, auto&, auto&) { kv.values = nullptr; }) ==
        "cuda::build_index: kv.values must be not null, got null");
  CHECK(message_of([](auto&, auto&, auto& kv, auto&, auto&) {
          kv.pages = reinterpret_cast<const int32_t*>(kv.keys);
          kv.page_size = 0;
        }) == "cuda::build_index: kv.page_size must be at least 1 with pages, got 0");
  CHECK(message_of([](auto&, auto&, auto& kv, auto& metric, auto&) {
          metric.forward = reinterpret_cast<const float*>(kv.keys);
        }).starts_with("cuda::build_index: metric.inverse must be given exactly with metric.forward, got "));
  CHECK(message_of([](auto&, auto&, auto&, auto&, auto& memory) {
          memory.index = nullptr;
        }).starts_with("cuda::build_index: memory.index must be not null and aligned to 256 bytes, got "));
  CHECK(message_of([](auto&, auto&, auto&, auto&, auto& memory) {
          memory.index += 128;
        }).starts_with("cuda::build_index: memory.index must be not null and aligned to 256 bytes, got "));
  CHECK(message_of([](auto&, auto&, auto&, auto&, auto& memory) {
          memory.workspace += 16;
        }).starts_with("cuda::build_index: memory.workspace must be not null and aligned to 256 bytes, got "));
  CHECK(message_of([](auto&, auto&, auto&, auto&, auto& memory) {
          memory.workspace = nullptr;
        }).starts_with("cuda::build_index: memory.workspace must be not null and aligned to 256 bytes, got "));
}

TEST_CASE("cuda build: sizes") {
  const AttentionShape shape{4, 2, 64, 0.0f};
  IndexOptions options;
  CHECK(cuda::num_cluster_slots(shape, options, 4) == 0);
  CHECK(cuda::num_cluster_slots(shape, options, 5) == 16);
  CHECK(cuda::num_cluster_slots(shape, options, 8192 + 4 + 100) == 256 + 16);
  CHECK(cuda::build_bytes(shape, options, 4).workspace == 0);
  CHECK(cuda::build_bytes(shape, options, 4).index > 0);
  const cuda::BuildBytes with = cuda::build_bytes(shape, options, 5000);
  options.residual_codes = false;
  const cuda::BuildBytes without = cuda::build_bytes(shape, options, 5000);
  CHECK(with.index > without.index);
  CHECK(with.workspace > without.workspace);
  CHECK(argument_error([&] { cuda::build_bytes(shape, options, -1); }) == "cuda::build_index: kv.num_tokens must be 0 to 2^30, got -1");
}

}  // namespace
}  // namespace quorum::test
