// Uses quorum as somebody else's program would: only what is installed, no flag of its own. Keys in eight directions, the value of a
// token is the number of its direction; a query along direction 3 must give about 3 and read far from everything.
#include <cmath>
#include <cstdio>
#include <quorum/quorum.hpp>
#include <string>
#include <vector>

namespace {

constexpr int kTokens = 4096, kHeadDim = 64, kDirections = 8, kWanted = 3;

// Attention of two query heads over one KV head; the first output element, and the share of tokens read.
bool decode_sparsely(float& output, float& share) {
  std::vector<float> keys(size_t(kTokens) * kHeadDim), values(keys.size()), queries(2 * kHeadDim), outputs(2 * kHeadDim);
  for (int token = 0; token < kTokens; ++token) {
    keys[size_t(token) * kHeadDim + size_t(token % kDirections)] = 8.0f;
    for (int c = 0; c < kHeadDim; ++c) values[size_t(token) * kHeadDim + size_t(c)] = float(token % kDirections);
  }
  queries[kWanted] = queries[kHeadDim + kWanted] = 8.0f;

  const quorum::AttentionShape shape{2, 1, kHeadDim};
  const auto kv = quorum::KvCacheView::nhd(keys.data(), values.data(), kTokens, 1, kHeadDim);
  quorum::ThreadExecutor executor(2);
  quorum::ClusterIndex index(shape, quorum::IndexOptions{});
  index.build(kv, executor);

  quorum::DecodeLimits limits;
  limits.max_tokens = kTokens;
  limits.num_workers = 2;
  quorum::Decoder decoder(shape, quorum::DecodeOptions{}, limits);
  const std::vector<quorum::SequenceView> sequences{{kv, &index.view()}};
  std::vector<quorum::HeadReport> reports(2);
  const auto status = decoder.decode(quorum::QueryView::contiguous(queries.data(), 1, 2, kHeadDim), sequences, {outputs.data(), nullptr},
                                     reports, executor);
  output = outputs[0];
  share = float(reports[0].tokens_read) / kTokens;
  return status == quorum::DecodeStatus::ok;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string version =
      std::to_string(QUORUM_VERSION_MAJOR) + "." + std::to_string(QUORUM_VERSION_MINOR) + "." + std::to_string(QUORUM_VERSION_PATCH);
  if (argc == 2 && version != argv[1]) {
    std::printf("the headers say version %s, the package says %s\n", version.c_str(), argv[1]);
    return 1;
  }
  try {
    float output = 0.0f, share = 1.0f;
    if (!decode_sparsely(output, share)) {
      std::printf("decode did not return ok\n");
      return 1;
    }
    std::printf("quorum %s: output %.3f, read %.3f of the tokens\n", version.c_str(), double(output), double(share));
    return std::fabs(output - float(kWanted)) < 0.2f && share < 0.5f ? 0 : 1;
  } catch (const quorum::Error& error) {
    std::printf("quorum %s: %s\n", version.c_str(), error.what());
    return 1;
  }
}
