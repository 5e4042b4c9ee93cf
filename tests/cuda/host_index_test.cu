#include "quorum/cuda/host_index.cuh"

#include <doctest/doctest.h>

#include <utility>

#include "tests/cuda/support/build_case.cuh"

namespace quorum::test {
namespace {

CaseOptions segments_case(int head_dim, bool codes) {
  CaseOptions options;
  options.shape = {4, 2, head_dim, 0.0f};
  options.num_tokens = {700};
  options.index.segment_tokens = 250;  // more clusters in one than in another, none a multiple of 16
  options.index.cluster_size = 7;
  options.index.residual_codes = codes;
  options.index.window_tokens = 11;
  return options;
}

cuda::HostIndex there_and_back(const ClusterIndexView& index) {
  const cuda::ClusterIndex device(index);
  return cuda::HostIndex(device.heads(), index.num_kv_heads, index.head_dim);
}

TEST_CASE("cuda host index: from the host to the device and back is the identity, erased tokens included") {
  for (const int head_dim : {64, 96})
    for (const bool codes : {true, false})
      for (const bool erased : {true, false}) {
        CAPTURE(head_dim);
        CAPTURE(codes);
        CAPTURE(erased);
        CaseOptions options = segments_case(head_dim, codes);
        if (erased) options.erased = {100, 163};
        const HostCase host(options);
        const cuda::HostIndex back = there_and_back(host.index(0));
        CHECK(difference(back.view(), host.index(0)) == "");
        CHECK(back.num_cluster_slots() == host.max_cluster_slots());
        CHECK(back.bytes() > 0);
        CHECK((back.view().live != nullptr) == erased);
        CHECK(difference(there_and_back(back.view()).view(), back.view()) == "");
      }
}

TEST_CASE("cuda host index: the CPU decodes it as it decodes the original") {
  const HostCase host(segments_case(64, true));
  cuda::HostIndex first = there_and_back(host.index(0));
  const cuda::HostIndex back = std::move(first);  // views stay valid
  for (const ReadUnit unit : {ReadUnit::clusters, ReadUnit::tokens}) {
    DecodeOptions options;
    options.dense_below = 0;
    options.unit = unit;
    options.fixed_budget = 100;
    const CaseResult wanted = host.cpu_decode(options), found = host.cpu_decode(options, back.view());
    for (size_t i = 0; i < wanted.reports.size(); ++i) {
      CHECK(wanted.reports[i].path == (unit == ReadUnit::tokens ? DecodePath::sparse_tokens : DecodePath::sparse));
      CHECK(found.reports[i].path == wanted.reports[i].path);
      CHECK(found.reports[i].tokens_read == wanted.reports[i].tokens_read);
      CHECK(found.reports[i].bytes_read == wanted.reports[i].bytes_read);
    }
    for (size_t i = 0; i < wanted.output.size(); ++i) CHECK(found.output[i] == doctest::Approx(wanted.output[i]).epsilon(1e-4));
  }
}

TEST_CASE("cuda host index: one that holds nothing") {
  CaseOptions options = segments_case(64, false);
  options.num_tokens = {3};
  const HostCase host(options);
  const cuda::HostIndex back = there_and_back(host.index(0));
  CHECK(difference(back.view(), host.index(0)) == "");
  CHECK(back.view().empty());
  CHECK(back.num_cluster_slots() == 0);
  CHECK(back.view().always.count(3) == 3);
}

}  // namespace
}  // namespace quorum::test
