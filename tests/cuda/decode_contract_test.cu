// What cuda::Decoder promises beside its numbers: errors, statuses, memory, capture, determinism.
#include <doctest/doctest.h>

#include <cstring>
#include <string>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

struct Plan {
  AttentionShape shape{8, 2, 64, 0.0f};
  ElementType type = ElementType::bf16;
  DecodeOptions options;
  DecodeLimits limits{2, 1000, 0, 1};
};

template <class Change>
std::string message_of(Change&& change) {
  Plan plan;
  change(plan);
  try {
    make_decoder(plan.shape, plan.type, plan.options, plan.limits);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::invalid_argument);
    return error.what();
  }
  return "no error";
}

TEST_CASE("cuda decoder: every mistake is named: argument, rule, value") {
  CHECK(message_of([](Plan&) {}) == "no error");
  CHECK(message_of([](Plan& p) { p.shape.head_dim = 80; }) == "cuda::Decoder: shape.head_dim must be 64, 96, 128 or 256, got 80");
  CHECK(message_of([](Plan& p) { p.type = ElementType::f32; }) == "cuda::Decoder: kv_type must be f16, bf16 or fp8_e4m3, got f32");
  CHECK(message_of([](Plan& p) { p.type = ElementType::q8_0; }) == "cuda::Decoder: kv_type must be f16, bf16 or fp8_e4m3, got q8_0");
  CHECK(message_of([](Plan& p) { p.options.unit = ReadUnit::tokens; }) == "no error");
  CHECK(message_of([](Plan& p) { p.options.target_error = 0.5f; }) == "no error");
  CHECK(message_of([](Plan& p) { p.options.variance = VarianceModel::diagonal; }) ==
        "cuda::Decoder: options.variance must be none or shared on this device, got 2");
  CHECK(message_of([](Plan& p) { p.options.scope = SelectionScope::head; }) ==
        "cuda::Decoder: options.scope must be group on this device, got 1");
  CHECK(message_of([](Plan& p) { p.limits.max_clusters = 1 << 24; }) ==
        "cuda::Decoder: limits.max_clusters must be so many that six bytes each fit into the shared memory of the blocks of a row, got "
        "16777216");
  // Those of shape, options and limits in general; tests/core has them all.
  CHECK(message_of([](Plan& p) { p.shape.num_kv_heads = 3; }).find("cuda::Decoder: shape.") == 0);
  CHECK(message_of([](Plan& p) { p.options.target_ratio = 0.0f; }) == "cuda::Decoder: options.target_ratio must be in (0, 1], got 0");
  CHECK(message_of([](Plan& p) { p.options.certificate.num_samples = 1; }) ==
        "cuda::Decoder: options.certificate.num_samples must be 2 to 256, got 1");
  CHECK(message_of([](Plan& p) { p.limits.max_tokens = 0; }) == "cuda::Decoder: limits.max_tokens must be 1 to 2^30, got 0");
  Plan plan;
  CHECK_THROWS_AS(workspace_bytes(plan.shape, ElementType::f32, plan.options, plan.limits), Error);
}

TEST_CASE("cuda decoder: the caller's workspace, of the size that was asked for; misaligned is refused") {
  CaseOptions small;
  const HostCase host(small);
  const DeviceCase device(host);
  DecodeOptions options;
  options.dense_below = 0;
  const int64_t bytes = workspace_bytes(small.shape, small.type, options, device.limits());
  const cuda::DeviceBuffer memory(bytes + 256);
  std::string message;
  try {
    make_decoder(small.shape, small.type, options, device.limits(), memory.as<>() + 16);
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK(message.find("cuda::Decoder: workspace must be aligned to 256 bytes, got ") == 0);
  const auto mark = std::vector<std::byte>(256, std::byte{0x5a});
  StepCase::put(memory.as<>() + bytes, mark);
  const auto decoder = make_decoder(small.shape, small.type, options, device.limits(), memory.as<>());
  CHECK(decoder->shape().head_dim == 64);
  CHECK(decoder->options().dense_below == 0);
  CHECK(distance(device.decode(*decoder).output, device.decode(options).output) == 0.0);
  CHECK(download(memory.as<>() + bytes, 256) == mark);
}

TEST_CASE("cuda decoder: a status says why nothing was enqueued") {
  CaseOptions small;
  small.num_tokens = {60, 40};
  const HostCase host(small);
  const DeviceCase device(host);
  const auto decoder = device.decoder(DecodeOptions{});
  const std::vector<float> untouched(2 * 8 * 64, 7.0f);
  const cuda::DeviceBuffer output = upload(untouched);
  const auto status_of = [&](auto&& change) {
    cuda::DecodeBatch batch = device.batch();
    change(batch);
    return decode(*decoder, batch, {output.as<float>(), nullptr}, nullptr, nullptr);
  };
  CHECK(status_of([](auto& b) { b.num_sequences = 1; }) == DecodeStatus::batch_mismatch);
  CHECK(status_of([](auto& b) { b.num_rows = 0; }) == DecodeStatus::too_many_rows);
  CHECK(status_of([](auto& b) { b.num_rows = 2; }) == DecodeStatus::too_many_rows);
  CHECK(status_of([](auto& b) { b.num_sequences = b.queries.num_rows = 3; }) == DecodeStatus::too_many_sequences);
  CHECK(status_of([](auto& b) { b.kv.type = ElementType::f16; }) == DecodeStatus::type_mismatch);
  CHECK(status_of([](auto& b) { b.queries.type = ElementType::q8_0; }) == DecodeStatus::type_mismatch);
  CHECK(status_of([](auto& b) { b.queries.type = ElementType::fp8_e4m3; }) == DecodeStatus::type_mismatch);
  const float scales[2] = {1.0f, 1.0f};
  CHECK(status_of([&](auto& b) { b.kv.key_scales = scales; }) == DecodeStatus::scales_mismatch);
  CHECK(status_of([&](auto& b) { b.kv.value_scales = scales; }) == DecodeStatus::scales_mismatch);
  CHECK(status_of([](auto& b) { b.num_sequences = b.queries.num_rows = 0; }) == DecodeStatus::ok);
  CHECK(download(output.as<float>(), untouched.size()) == untouched);
  CHECK(std::string(status_message(DecodeStatus::type_mismatch)) ==
        "decode: kv.type must be the plan's, and queries.type f32, f16 or bf16");
  CHECK(status_of([](auto& b) { b.num_sequences = b.queries.num_rows = 1; }) == DecodeStatus::ok);  // fewer than planned
  const std::vector<float> after = download(output.as<float>(), untouched.size());
  CHECK(after[0] != 7.0f);
  CHECK(after[8 * 64] == 7.0f);
  CHECK(status_of([](auto&) {}) == DecodeStatus::ok);  // lse and reports may be absent
}

TEST_CASE("cuda decoder: the same call gives the same bits") {
  CaseOptions small;
  small.num_tokens = {900, 400};
  const HostCase host(small);
  const DeviceCase device(host);
  for (const ReadUnit unit : {ReadUnit::clusters, ReadUnit::tokens}) {
    DecodeOptions options;
    options.dense_below = 0;
    options.unit = unit;
    options.certificate.enabled = unit == ReadUnit::clusters;
    const CaseResult first = device.decode(options), second = device.decode(options);
    CHECK(first.output == second.output);
    CHECK(first.lse == second.lse);
    for (size_t i = 0; i < first.reports.size(); ++i) {
      CHECK(first.reports[i].tokens_read == second.reports[i].tokens_read);
      CHECK(first.reports[i].attained_ratio_estimate == second.reports[i].attained_ratio_estimate);
      CHECK(first.reports[i].attained_ratio_lower_bound == second.reports[i].attained_ratio_lower_bound);
    }
  }
}

// One capture, and what a replay gives.
class Graph {
 public:
  Graph(cuda::Decoder& decoder, const cuda::DecodeBatch& batch, size_t heads, size_t elements)
      : output_(upload(std::vector<float>(elements, kNan))),
        lse_(upload(std::vector<float>(heads, kNan))),
        reports_(upload(std::vector<HeadReport>(heads))) {
    REQUIRE(cudaStreamCreate(&stream_) == cudaSuccess);
    REQUIRE(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(decode(decoder, batch, {output_.as<float>(), lse_.as<float>()}, reports_.as<HeadReport>(), stream_) == DecodeStatus::ok);
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamEndCapture(stream_, &graph) == cudaSuccess);
    REQUIRE(cudaGraphGetNodes(graph, nullptr, &num_nodes) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&executable_, graph, 0) == cudaSuccess);
    cudaGraphDestroy(graph);
  }
  ~Graph() {
    cudaGraphExecDestroy(executable_);
    cudaStreamDestroy(stream_);
  }
  CaseResult replay() const {
    REQUIRE(cudaGraphLaunch(executable_, stream_) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream_) == cudaSuccess);
    return {download(output_.as<float>(), size_t(output_.bytes() / 4)), download(lse_.as<float>(), size_t(lse_.bytes() / 4)),
            download(reports_.as<HeadReport>(), size_t(reports_.bytes()) / sizeof(HeadReport))};
  }
  size_t num_nodes = 0;

 private:
  cuda::DeviceBuffer output_, lse_, reports_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

TEST_CASE("cuda decoder: a captured step is replayed while lengths grow, with the kernels that were promised") {
  CaseOptions small;
  small.num_tokens = {500, 300};
  const HostCase host(small);
  const DeviceCase device(host);
  DecodeOptions options;
  options.dense_below = 0;
  const struct {
    ReadUnit unit;
    int budget;
    bool certificate;
    MissPolicy policy;
    int kernels;
  } cases[] = {
      {ReadUnit::clusters, 0, false, MissPolicy::widen, 5}, {ReadUnit::clusters, 0, true, MissPolicy::widen, 8},
      {ReadUnit::clusters, 0, true, MissPolicy::dense, 11}, {ReadUnit::tokens, 50, false, MissPolicy::widen, 9},
      {ReadUnit::tokens, 0, false, MissPolicy::widen, 14},  {ReadUnit::tokens, 0, true, MissPolicy::widen, 16},
      {ReadUnit::tokens, 0, true, MissPolicy::dense, 22},
  };
  for (const auto& [unit, budget, certificate, policy, kernels] : cases) {
    options.unit = unit;
    options.fixed_budget = budget;
    options.certificate.enabled = certificate;
    options.certificate.policy = policy;
    const auto decoder = device.decoder(options);
    cuda::DecodeBatch batch = device.batch();
    const cuda::DeviceBuffer lengths = upload(std::vector<int32_t>{500, 300});
    batch.kv.num_tokens = lengths.as<int32_t>();
    const Graph graph(*decoder, batch, 16, 16 * 64);
    CHECK(int(graph.num_nodes) == kernels);
    // The tokens behind the index are in the window; a shorter sequence is one of which they have not been decoded yet.
    const int indexed = host.index(0).indexed_end;
    for (const int n : {indexed, indexed + 1, 500}) {
      if (n > 500) continue;
      StepCase::put(lengths.as<int32_t>(), std::vector<int32_t>{n, 300});
      const CaseResult replayed = graph.replay();
      CHECK(replayed.reports[0].bytes_dense == int64_t(n) * 64 * 2 * 2);
      cuda::DeviceBuffer output = upload(std::vector<float>(16 * 64, kNan));
      const cuda::DeviceBuffer lse = upload(std::vector<float>(16, kNan));
      REQUIRE(decode(*decoder, batch, {output.as<float>(), lse.as<float>()}, nullptr, nullptr) == DecodeStatus::ok);
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      CAPTURE(kernels);
      CHECK(replayed.output == download(output.as<float>(), 16 * 64));
      CHECK(replayed.lse == download(lse.as<float>(), 16));
    }
  }
}

}  // namespace
}  // namespace quorum::test
