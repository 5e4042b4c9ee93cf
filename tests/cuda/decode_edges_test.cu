// A whole step at its edges: values that are no numbers, sequences of any length, keys that are all alike.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {
namespace {

constexpr int kGroup = 3, kHeads = 6, kDim = 64;  // two KV heads

CaseOptions edge_case(std::vector<int> num_tokens = {300}) {
  CaseOptions options;
  options.shape = {kHeads, 2, kDim, 0.0f};
  options.num_tokens = std::move(num_tokens);
  options.index.window_tokens = 5;
  options.index.recluster_every = 32;
  return options;
}
DecodeOptions sparse_options(float target = 0.8f) {
  DecodeOptions options;
  options.dense_below = 0;
  options.unit = ReadUnit::clusters;
  options.target_ratio = target;
  return options;
}
// Whether a head's outputs are all finite, and whether they are another result's; the work is cut elsewhere when other rows change.
bool finite_head(const CaseResult& result, int head) {
  bool finite = std::isfinite(result.lse[size_t(head)]);
  for (int c = 0; c < kDim; ++c) finite = finite && std::isfinite(result.output[size_t(head * kDim + c)]);
  return finite;
}
bool same_head(const CaseResult& a, const CaseResult& b, int head) {
  float largest = std::fabs(a.lse[size_t(head)] - b.lse[size_t(head)]);
  for (int c = head * kDim; c < (head + 1) * kDim; ++c) largest = std::max(largest, std::fabs(a.output[size_t(c)] - b.output[size_t(c)]));
  return largest <= 1e-2f && finite_head(a, head) && a.reports[size_t(head)].tokens_read == b.reports[size_t(head)].tokens_read;
}

TEST_CASE("cuda decode: NaN and infinity in an always-read key poison the heads of its KV head alone, densely") {
  for (const float bad : {kNan, kInfinity, -kInfinity})
    for (const int token : {0, 298}) {  // a sink, one of the window
      CAPTURE(bad);
      HostCase host(edge_case());
      const CaseResult clean = DeviceCase(host).decode(sparse_options());
      host.poison(false, 0, token, 1, 7, bad);
      const CaseResult result = DeviceCase(host).decode(sparse_options());
      for (int head = 0; head < kGroup; ++head) CHECK(same_head(result, clean, head));
      int poisoned = 0;
      for (int head = kGroup; head < kHeads; ++head) {
        CHECK((result.reports[size_t(head)].path == DecodePath::dense_by_numerics || bad == -kInfinity || bad == kInfinity));
        poisoned += finite_head(result, head) ? 0 : 1;
      }
      const CaseResult expected = host.reference();
      for (int head = kGroup; head < kHeads; ++head) {
        const bool is_finite = finite_head(expected, head);
        CHECK(finite_head(result, head) == is_finite);
      }
      if (std::isnan(bad)) CHECK(poisoned == kGroup);
    }
}

TEST_CASE("cuda decode: NaN in an always-read value poisons its coordinate, and leaves the choice alone") {
  HostCase host(edge_case());
  const CaseResult clean = DeviceCase(host).decode(sparse_options());
  host.poison(true, 0, 299, 0, 9, kNan);
  const CaseResult result = DeviceCase(host).decode(sparse_options());
  for (int head = 0; head < kHeads; ++head) {
    CHECK(result.reports[size_t(head)].path == DecodePath::sparse);
    CHECK(result.lse[size_t(head)] == clean.lse[size_t(head)]);
    for (int c = 0; c < kDim; ++c) {
      const size_t at = size_t(head * kDim + c);
      CHECK(std::isnan(result.output[at]) == (head < kGroup && c == 9));
    }
  }
}

TEST_CASE("cuda decode: NaN and infinity in a query poison its own head; the others of its group are attended densely") {
  const HostCase host(edge_case());
  const DeviceCase device(host);
  const CaseResult clean = device.decode(sparse_options()), dense = host.reference();
  for (const float bad : {kNan, kInfinity}) {
    const auto decoder = device.decoder(sparse_options());
    cuda::DecodeBatch batch = device.batch();
    std::vector<float> queries(size_t(kHeads) * kDim);
    std::memcpy(queries.data(), host.query_bytes().data(), queries.size() * 4);
    queries[4 * kDim + 20] = bad;
    const cuda::DeviceBuffer memory = upload(queries), output = upload(std::vector<float>(kHeads * kDim)),
                             lse = upload(std::vector<float>(kHeads)), reports = upload(std::vector<HeadReport>(kHeads));
    batch.queries.data = memory.as<>();
    REQUIRE(decode(*decoder, batch, {output.as<float>(), lse.as<float>()}, reports.as<HeadReport>(), nullptr) == DecodeStatus::ok);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const CaseResult result{download(output.as<float>(), kHeads * kDim), download(lse.as<float>(), kHeads),
                            download(reports.as<HeadReport>(), kHeads)};
    for (int head = 0; head < kHeads; ++head) {
      const bool in_group = head >= kGroup;
      CHECK(result.reports[size_t(head)].path == (in_group ? DecodePath::dense_by_numerics : DecodePath::sparse));
      CHECK(finite_head(result, head) == (head != 4));
      if (!in_group) CHECK(same_head(result, clean, head));
      if (in_group && head != 4) CHECK(std::fabs(result.lse[size_t(head)] - dense.lse[size_t(head)]) <= 1e-3f);
    }
  }
}

TEST_CASE("cuda decode: a NaN that was there when the index was built makes its KV head dense") {
  CaseOptions options = edge_case({40});
  options.spread = kInfinity;  // keys of infinities and NaN
  const HostCase host(options);
  const CaseResult result = DeviceCase(host).decode(sparse_options());
  for (const HeadReport& report : result.reports) CHECK(is_dense(report.path));
}

TEST_CASE("cuda decode: ragged batches; a sequence's result does not depend on its neighbours") {
  const HostCase batch(edge_case({0, 1, 4, 5, 16, 17, 330}));
  const CaseResult result = DeviceCase(batch).decode(sparse_options(0.95f)), expected = batch.reference();
  for (size_t s = 0; s < 7; ++s)
    for (int head = 0; head < kHeads; ++head) {
      const size_t at = s * kHeads + size_t(head);
      const HeadReport& report = result.reports[at];
      CHECK(report.bytes_dense == int64_t(batch.num_tokens()[s]) * kDim * 2 * 2);
      CHECK(report.tokens_read <= batch.num_tokens()[s]);
      if (!is_dense(report.path)) continue;
      CHECK(report.path == DecodePath::dense_by_length);
      CHECK((result.lse[at] == expected.lse[at] ||
             std::fabs(result.lse[at] - expected.lse[at]) <= 2e-3f * (1.0f + std::fabs(expected.lse[at]))));
    }
  CHECK(result.lse[0] == -kInfinity);
  CHECK(result.output[0] == 0.0f);
  CHECK(result.reports[0].tokens_read == 0);
  CHECK(!is_dense(result.reports[6 * kHeads].path));
}

TEST_CASE("cuda decode: a window longer than the sequence, target 1, one token") {
  CaseOptions options = edge_case({120, 1});
  options.index.window_tokens = 1000;
  const HostCase host(options);
  const DeviceCase device(host);
  const CaseResult expected = host.reference();
  for (const float target : {0.5f, 1.0f}) {
    const CaseResult result = device.decode(sparse_options(target));
    CHECK(distance(result.output, expected.output) <= 6e-3);
    CHECK(distance(result.lse, expected.lse) <= 1e-3);
    for (const HeadReport& report : result.reports) CHECK(report.path == DecodePath::dense_by_length);
  }
}

TEST_CASE("cuda decode: all keys equal: any share of the tokens has that share of the weight") {
  CaseOptions options = edge_case({400});
  options.spread = 0.0f;
  options.index.num_sink_tokens = 0;
  options.index.window_tokens = 0;
  const HostCase host(options);
  const CaseResult result = DeviceCase(host).decode(sparse_options(0.5f));
  for (const HeadReport& report : result.reports) {
    CHECK(report.path == DecodePath::sparse);
    CHECK(report.tokens_read >= 195);
    CHECK(report.tokens_read <= 400);
    CHECK(std::fabs(report.attained_ratio_estimate - float(report.tokens_read) / 400.0f) <= 0.02f);
  }
  for (const float lse : result.lse) CHECK(std::fabs(lse - std::log(400.0f)) <= 0.02f);
}

}  // namespace
}  // namespace quorum::test
