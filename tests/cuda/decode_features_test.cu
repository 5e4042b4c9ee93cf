// A whole step with what only some layers have: several query rows, soft-capping, sinks as logits, sliding windows, erased tokens; against
// the reference and the CPU's step.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <utility>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

constexpr int kDim = 64;

// Two KV heads of two query heads; the window holds what the rows do not all see.
CaseOptions feature_case(std::vector<int> num_tokens = {500, 90}) {
  CaseOptions options;
  options.shape = {4, 2, kDim, 0.0f};
  options.num_tokens = std::move(num_tokens);
  options.index.window_tokens = 20;
  options.index.recluster_every = 16;
  options.index.cluster_size = 16;
  return options;
}
DecodeOptions sparse_options(float target = 0.9f) {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::clusters;
  options.target_ratio = target;
  return options;
}
std::vector<float> sinks_of(int num_qo_heads) {
  std::vector<float> sinks;
  for (int h = 0; h < num_qo_heads; ++h) sinks.push_back(float(h % 5) - 1.0f);
  sinks[0] = -kInfinity;
  return sinks;
}

// Everything is attended: by a dense path, and by a target that only all clusters reach. Both are the reference's.
void check_whole(const HostCase& host, bool sparse_too = true) {
  const DeviceCase device(host);
  const CaseResult expected = host.reference();
  DecodeOptions dense = sparse_options(1.0f), sparse = sparse_options(0.5f);
  sparse.min_tokens = kMaxCount;
  for (const DecodeOptions& options : {dense, sparse}) {
    if (!sparse_too && options.target_ratio < 1.0f) continue;
    const CaseResult result = device.decode(options);
    CAPTURE(options.target_ratio);
    CHECK(distance(result.output, expected.output) <= 0.01);
    for (size_t i = 0; i < expected.lse.size(); ++i)
      CHECK((result.lse[i] == expected.lse[i] || std::fabs(result.lse[i] - expected.lse[i]) <= 0.01f));
    for (const HeadReport& report : result.reports)
      CHECK(report.tokens_read * int64_t(kDim) * 2 * element_bytes(host.options().type) == report.bytes_dense);
  }
}

// A target is met, as the CPU's step meets it, from as many tokens up to estimates; reports agree on what is a matter of counting.
void check_against_cpu(const HostCase& host, const DecodeOptions& options) {
  const CaseResult result = DeviceCase(host).decode(options), cpu = host.cpu_decode(options), dense = host.reference();
  double read = 0.0, read_by_cpu = 0.0;
  for (size_t i = 0; i < result.reports.size(); ++i) {
    const HeadReport &own = result.reports[i], &other = cpu.reports[i];
    CAPTURE(i);
    CHECK(own.shared_rows == other.shared_rows);
    CHECK(own.bytes_dense == other.bytes_dense);
    CHECK(own.attained_ratio_estimate >= options.target_ratio - 0.1f);
    read += own.tokens_read;
    read_by_cpu += other.tokens_read;
  }
  CHECK(read <= 1.25 * read_by_cpu);
  CHECK(read >= 0.75 * read_by_cpu);
  CHECK(distance(result.output, dense.output) <= distance(cpu.output, dense.output) + 0.05);
}

TEST_CASE("cuda decode: rows of a sequence see what stands before them, in sets of up to 16 columns") {
  for (const int num_rows : {2, 5, 11}) {  // one set, one, and two of which the second is not full
    CAPTURE(num_rows);
    CaseOptions options = feature_case();
    options.num_rows = num_rows;
    options.query_type = ElementType::bf16;
    const HostCase host(options);
    check_whole(host);
    if (num_rows != 2) check_against_cpu(host, sparse_options());
  }
}

TEST_CASE("cuda decode: rows that all see everything share whatever their number; sets of their own if that is wanted") {
  CaseOptions options = feature_case();
  options.num_rows = 3;
  options.causal = false;
  const HostCase host(options);
  check_whole(host);
  check_against_cpu(host, sparse_options());
  DecodeOptions own = sparse_options();
  own.rows = RowSets::own;
  const CaseResult result = DeviceCase(host).decode(own);
  for (const HeadReport& report : result.reports) CHECK(report.shared_rows == 1);
  check_against_cpu(host, own);
}

TEST_CASE("cuda decode: a row that does not see all that is indexed makes its set dense; rows before the first token get zeros") {
  CaseOptions options = feature_case({300, 3});
  options.index.window_tokens = 0;
  options.num_rows = 5;
  const HostCase host(options);
  const CaseResult result = DeviceCase(host).decode(sparse_options()), expected = host.reference();
  CHECK(distance(result.output, expected.output) <= 0.01);
  CHECK(result.reports[0].path == DecodePath::dense_by_view);
  CHECK(result.reports[0].bytes_dense == 300 * kDim * 4);
  const size_t before = 5 * 4;  // rows 0 and 1 of the second sequence
  CHECK(result.lse[before] == -kInfinity);
  CHECK(result.lse[before + 2 * 4] != -kInfinity);
}

TEST_CASE("cuda decode: capped scores, in every segment that is attended") {
  CaseOptions options = feature_case({700});
  options.shape.logit_softcap = 2.0f;
  options.shape.sm_scale = 0.5f;
  for (const ElementType type : {ElementType::bf16, ElementType::f16, ElementType::fp8_e4m3}) {
    options.type = type;
    const HostCase host(options);
    check_whole(host);
    DecodeOptions certified = sparse_options(0.8f);
    certified.certificate.enabled = true;
    check_against_cpu(host, certified);
  }
}

TEST_CASE("cuda decode: sinks take their share at the end, of one row and of several") {
  for (const int num_rows : {1, 3}) {
    CaseOptions options = feature_case();
    options.sink_logits = sinks_of(4);
    options.num_rows = num_rows;
    const HostCase host(options);
    check_whole(host);
    check_against_cpu(host, sparse_options(0.8f));
  }
  CaseOptions none = feature_case({0, 40});
  none.sink_logits = sinks_of(4);
  const HostCase host(none);
  const CaseResult result = DeviceCase(host).decode(sparse_options());
  CHECK(result.output[0] == 0.0f);
  CHECK(result.lse[0] == -kInfinity);
  CHECK(result.lse[1] == none.sink_logits[1]);  // nothing but the sink
}

TEST_CASE("cuda decode: a sliding window that cuts is attended as a whole, one that does not changes nothing") {
  for (const int num_rows : {1, 4}) {
    CaseOptions options = feature_case();
    options.shape.sliding_window = 100;
    options.num_rows = num_rows;
    const HostCase host(options);
    check_whole(host, false);
    const CaseResult result = DeviceCase(host).decode(sparse_options());
    CHECK(result.reports[0].path == DecodePath::dense_by_view);
    CHECK(result.reports[0].tokens_read == 100 + num_rows - 1);
    CHECK(result.reports[size_t(num_rows) * 4].path == DecodePath::sparse);  // 90 tokens
  }
  CaseOptions options = feature_case();
  const HostCase without(options);
  options.shape.sliding_window = 500;
  const HostCase with(options);
  CHECK(DeviceCase(with).decode(sparse_options()).output == DeviceCase(without).decode(sparse_options()).output);
}

TEST_CASE("cuda decode: erased tokens are neither read nor counted") {
  for (const int num_rows : {1, 2}) {
    CaseOptions options = feature_case({500});
    options.erased = {40, 190};
    options.num_rows = num_rows;
    HostCase host(options);
    check_whole(host);
    check_against_cpu(host, sparse_options());
    host.poison(false, 0, 100, 0, 3, kNan);  // weight 0, whatever lies there
    const CaseResult result = DeviceCase(host).decode(sparse_options());
    CHECK(std::isfinite(result.output[0]));
    CHECK(result.reports[0].bytes_dense == 350 * kDim * 4);
  }
}

TEST_CASE("cuda decode: several blocks that choose for a row choose what one does") {
  CaseOptions shape;
  shape.shape = {4, 1, 64, 0.0f};
  shape.num_tokens = {3000};
  const HostCase host(shape);
  const DeviceCase device(host);
  for (const ReadUnit unit : {ReadUnit::clusters, ReadUnit::tokens}) {
    CAPTURE(unit == ReadUnit::tokens);
    DecodeOptions options;
    options.dense_below = 0;
    options.target_ratio = 0.85f;
    options.unit = unit;
    options.certificate.enabled = true;
    options.certificate.policy = MissPolicy::dense;
    // A plan for more clusters than there are gives a row more blocks than one, where the device has teams of them.
    DecodeLimits large = device.limits();
    large.max_clusters = 4 * cuda::kSelectThreads;
    const auto several = make_decoder(device.shape(), shape.type, options, large), one = device.decoder(options);
    CHECK(several->device().select_blocks(1, large.max_clusters, 1) == (several->device().has_teams ? 4 : 1));
    CHECK(one->device().select_blocks(1, host.max_cluster_slots(), 1) == 1);
    const CaseResult result = device.decode(*several), expected = device.decode(*one);
    for (size_t i = 0; i < result.reports.size(); ++i) {
      CHECK(result.reports[i].path == expected.reports[i].path);
      CHECK(result.reports[i].tokens_read == expected.reports[i].tokens_read);
      CHECK(result.reports[i].rounds == expected.reports[i].rounds);
      CHECK(result.reports[i].attained_ratio_lower_bound == doctest::Approx(expected.reports[i].attained_ratio_lower_bound).epsilon(0.02));
    }
    CHECK(distance(result.output, expected.output) <= 0.02);  // a draw at the border of two clusters may fall into the other one
  }
}

}  // namespace
}  // namespace quorum::test
